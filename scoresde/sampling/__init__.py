"""Sampling: from the prior to data, by the reverse SDE or the flow.

Start with ``run.py``: :func:`sample`, :func:`trajectory`, :func:`encode` and :func:`decode` run a sampler on a model.
A sampler is a settings object. ``base.py`` has the base class, ``samplers.py`` the one-step methods, and every other
family has its own file. ``steps.py`` has the reverse steps as coefficients of x, x_0, eps and noise.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
