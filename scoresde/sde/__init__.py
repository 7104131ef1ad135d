"""The forward process: schedules, families, and DDPM and NCSN as exact special cases."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
