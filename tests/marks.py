"""Marks for tests that `make check` leaves out."""

import pytest


def first_fast(names, values, **options):
    """Return a `parametrize` mark whose cases but the first are slow."""
    single = isinstance(names, str) and "," not in names
    first, *others = values
    slow = [pytest.param(*([value] if single else value), marks=pytest.mark.slow) for value in others]
    return pytest.mark.parametrize(names, [first, *slow], **options)


def some_fast(name, cases, fast):
    """Return `pytest.mark.parametrize` over the cases of a dictionary.

    It marks those whose keys are not in ``fast`` as slow.
    """
    marks = {key: [] if key in fast else pytest.mark.slow for key in cases}
    return pytest.mark.parametrize(name, [pytest.param(case, id=key, marks=marks[key]) for key, case in cases.items()])
