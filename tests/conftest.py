"""Fixtures of all tests: one thread per worker, fixed seeds, mixtures.

Functions import torch themselves: the process that distributes the tests to the workers starts without it.
"""

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # nothing downloads in tests

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    import torch

    torch.set_num_threads(1)  # workers that all use every core wait for each other

settings.register_profile("scoresde", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("scoresde")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Hide the imports' objects from the garbage collector.

    There are a million of them, and it would visit them again and again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def generator():
    """Return a torch.Generator with a fixed seed."""
    import torch

    return torch.Generator().manual_seed(20210511)


@pytest.fixture
def float64():
    """Make float64 torch's default dtype while the test runs."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)


def _mixture(K: int, n: int, spread: float, seed: int):
    """Return a GaussianMixture of K components in n dimensions.

    Its axes are random, its standard deviations lie between .05 and .4.
    """
    import torch

    from scoresde import GaussianMixture

    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(K, n, n, generator=g, dtype=torch.float64))[0]
    stds = 0.05 + 0.35 * torch.rand(K, n, generator=g, dtype=torch.float64)
    means = spread * torch.randn(K, n, generator=g, dtype=torch.float64)
    weights = 0.5 + torch.rand(K, generator=g, dtype=torch.float64)
    return GaussianMixture(means, axes * stds[:, None].square() @ axes.mT, weights)


@pytest.fixture(scope="session")
def mixture_2d():
    """Return eight anisotropic components in the plane."""
    return _mixture(8, 2, 1.0, seed=1)


@pytest.fixture(scope="session")
def mixture_16d():
    """Return five anisotropic components in 16 dimensions."""
    return _mixture(5, 16, 0.7, seed=2)
