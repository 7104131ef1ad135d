"""Guidance: from a model of p(x_0) to a model of p(x_0 | y), for a class or an observation y."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
