"""The handwritten digits that scikit-learn carries: real images that need no download."""

from __future__ import annotations

import numpy as np
import torch

from scoresde.data.dataset import Data


def load_digits() -> Data:
    """1797 handwritten digits, ``(1, 8, 8)`` with 17 num_values (0..16), labelled 0 to 9.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test part).
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    raw = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Data("digits", raw, labels, num_values=17, class_names=tuple(map(str, range(10))))
