"""Random generators of the tests."""

import torch


def generator(seed=0):
    """Return a CPU generator with this seed."""
    return torch.Generator().manual_seed(seed)
