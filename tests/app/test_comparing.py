"""Comparisons of two sets, and of two models on the same items."""

import math

import numpy as np
import pytest
import torch

from scoresde.app.comparing import auroc, paired_difference
from scoresde.errors import ArgumentError, ShapeError


@pytest.mark.slow
def test_auroc_equals_scikit_learns_with_ties():
    from sklearn.metrics import roc_auc_score

    g = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, 9, (n,), generator=g).double() + shift for n, shift in ((40, 1.0), (70, 0.0)))
    labels = np.r_[np.ones(40), np.zeros(70)]
    expected = roc_auc_score(labels, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside).value == pytest.approx(expected, abs=1e-12)
    assert auroc(outside, inside).value == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.slow
def test_standard_error_of_auroc_is_its_spread():
    """Compare the reported standard errors with the spread of 2000 repeats.

    Scores N(1, 1) and N(0, 1) have AUROC = Phi(1/sqrt 2). The mean lies within 4 standard errors of it (false alarm
    6e-5). The root mean square of the reported errors lies within 8 % of the spread, 5 standard errors (1.6 % each) of
    a standard deviation.
    """
    g = torch.Generator().manual_seed(1)
    found = [auroc(1 + torch.randn(60, generator=g), torch.randn(90, generator=g)) for _ in range(2000)]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    truth = 0.5 * (1 + math.erf(0.5))
    assert abs(values.mean().item() - truth) < 4 * values.std().item() / math.sqrt(2000)
    stated = math.sqrt(sum(f.stderr**2 for f in found) / 2000)
    assert stated == pytest.approx(values.std().item(), rel=0.08)


def test_perfect_separation():
    assert auroc(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])) == (1.0, 0.0)


def test_paired_difference_cancels_what_is_common():
    g = torch.Generator().manual_seed(2)
    common = 100 * torch.randn(50, generator=g)
    first, second = common + torch.randn(50, generator=g) + 1, common
    difference = paired_difference(first, second)
    d = first.double() - second.double()
    assert difference == pytest.approx((d.mean().item(), d.std().item() / math.sqrt(50)))
    assert difference.stderr < 1


def test_errors():
    with pytest.raises(ShapeError, match="inside"):
        auroc(torch.zeros(1), torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"outside.*NaN"):
        auroc(torch.zeros(3), torch.tensor([0.0, math.nan]))
    with pytest.raises(ShapeError, match="second"):
        paired_difference(torch.zeros(3), torch.zeros(4))
