"""Data sets that know their scale, number of values and layout.

:class:`Data` holds items in memory and :class:`Mapped` leaves them on the disk. :func:`load_data` makes training and
held-out data from a name or a path, :func:`stream_batches` draws the batches of a training run, and a
:class:`Dequantization` fills the bins of integer data with noise.

Start with ``dataset.py``. ``sources.py`` finds data by name, ``batches.py`` feeds them to training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
