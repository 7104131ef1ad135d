"""The forward process: SDEs, noise schedules, grids of times and levels.

Start with ``base.py``: :class:`SDE` derives everything from alpha(t) and sigma(t). ``level.py`` holds their values at
a time. ``families.py`` has VP, sub-VP, VE and flow matching, ``schedules.py`` what drives them, ``discrete.py`` DDPM
and NCSN, and ``grids.py`` the times that samplers visit. ``ncsnv2.py`` chooses noise levels for given data.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
