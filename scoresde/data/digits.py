"""The handwritten digits that scikit-learn carries."""

from __future__ import annotations

import numpy as np
import torch

from scoresde.data.dataset import Data


def load_digits() -> Data:
    """Load 1797 handwritten digits, labelled 0 to 9.

    An item is ``(1, 8, 8)`` with integers 0..16. The images are real and need no download.

    References: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test part).
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    raw = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Data("digits", raw, labels, num_values=17, class_names=tuple(map(str, range(10))))
