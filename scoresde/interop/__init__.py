"""Models of other libraries here, and ours there, one file a library.

Start with ``diffusers.py``. :class:`~scoresde.models.ScoreModel` has a class method for each library, which calls these
functions. What runs a library imports it when called.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
