"""Guidance: from a model of p(x_0) to a model of p(x_0 | y).

Each function takes a model and returns one. ``classes.py`` conditions on class labels, ``observations.py`` on a
measurement y = A x_0 + noise. The operators A are in ``operators.py``, limits on x_0 in ``thresholding.py``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
