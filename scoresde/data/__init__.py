"""Data: toys, digits, arrays, idx files and image folders, each with its scale and number of num_values."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
