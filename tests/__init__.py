"""The tests, a package: an installed top-level `tests` of another project cannot shadow it."""
