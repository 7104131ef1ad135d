"""Weights of quadrature, and polynomials through given nodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np


@cache
def gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Return 16 nodes on [-1, 1] and their weights, exact up to degree 31."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    return nodes, weights


def lagrange(nodes: Sequence[float], points: np.ndarray) -> np.ndarray:
    """Return the Lagrange polynomials of some nodes, ``(nodes, points)``."""
    rows = np.ones((len(nodes), len(points)))
    for j, a in enumerate(nodes):
        for k, b in enumerate(nodes):
            if k != j:
                rows[j] *= (points - b) / (a - b)
    return rows
