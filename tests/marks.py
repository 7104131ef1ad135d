"""Marks for tests that `make check` leaves out."""

import pytest


def first_fast(names, values, **options):
    """Return a `parametrize` mark whose cases but the first are slow."""
    single = isinstance(names, str) and "," not in names
    first, *others = values
    slow = [pytest.param(*([value] if single else value), marks=pytest.mark.slow) for value in others]
    return pytest.mark.parametrize(names, [first, *slow], **options)
