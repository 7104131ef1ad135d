"""Marks for tests that `make check` leaves out."""

import pytest


def first_fast(names, values, **options):
    """Return `pytest.mark.parametrize` that marks every case but the first as slow."""
    single = isinstance(names, str) and "," not in names
    first, *others = values
    slow = [pytest.param(*([value] if single else value), marks=pytest.mark.slow) for value in others]
    return pytest.mark.parametrize(names, [first, *slow], **options)
