"""Models: what estimates the data and the noise in x_t.

Start with ``model.py``: a :class:`Model` turns (x_t, t, cond) into an :class:`Estimate`. A :class:`ScoreModel` wraps a
network (``score_model.py``), and ``predictions.py`` has the table of what it may predict. Mixtures of Gaussians have
exact scores. ``moments.py`` has the algebra of the data's Gaussian, ``kernels.py`` that of the reverse transitions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
