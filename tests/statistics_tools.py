"""Statistical tests with a stated false-alarm rate."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_test(x: Tensor, y: Tensor, permutations: int = 999, seed: int = 0) -> float:
    """Return the p-value of the energy test of x ``(N, n)`` against y.

    The two-sample permutation test of Szekely & Rizzo (2013). If the laws are equal, P(p <= a) <= a for every a. So
    ``assert energy_test(x, y) > 0.001`` raises a false alarm once in 1000.
    """
    pooled = torch.cat([x, y]).double()
    distances = torch.cdist(pooled, pooled)
    n, total = len(x), len(pooled)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(permutations, total, generator=generator).argsort(1)
    member = torch.full((permutations + 1, total), -1.0 / (total - n), dtype=torch.float64)
    member[0, :n] = 1.0 / n
    member[1:].scatter_(1, order[:, :n], 1.0 / n)
    statistic = -((member @ distances) * member).sum(1)
    return ((statistic[1:] >= statistic[0]).sum().item() + 1) / (permutations + 1)


def measured_order(errors, sizes) -> float:
    """Return the least-squares slope of log error against log step size."""
    x, y = (torch.as_tensor(v, dtype=torch.float64).log() for v in (sizes, errors))
    x = x - x.mean()
    return float((x @ y) / (x @ x))
