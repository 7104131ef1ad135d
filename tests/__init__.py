"""The tests, as a package.

So an installed top-level `tests` of another project cannot shadow it.
"""
