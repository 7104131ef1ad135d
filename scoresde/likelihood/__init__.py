"""Likelihoods: log p(x_0), bits per dimension, variational bounds.

:func:`log_likelihood` integrates the probability flow and its divergence (``probability_flow.py``, or the project's
own method in ``gaussian_path.py``). :func:`bits_per_dim` applies it to integer data, :func:`variational_bound` gives
an ELBO, and :func:`classify` compares classes. The estimators of the divergence are in ``divergence.py``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
