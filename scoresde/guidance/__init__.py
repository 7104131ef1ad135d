"""Guidance: from a model of p(x_0) to a model of p(x_0 | y).

Each function takes a model and returns one, and each method has its own file. ``classifier.py`` and
``classifier_free.py`` condition on class labels, ``conditioning.py`` fixes a condition. ``observations.py`` sets out
guidance by a measurement y = A x_0 + noise. The operators A are in ``operators.py``, those for images in
``image_operators.py``, limits on x_0 in ``thresholding.py``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
