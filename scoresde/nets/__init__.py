"""Networks that know nothing of SDEs: U-Net, transformer, residual MLP.

A network is called as ``net(x, time_input, y=None)``, where the time input is any scalar made from the time and y are
class labels. ``unet.py``, ``dit.py`` and ``mlp.py`` have one network each, ``embeddings.py`` the features of the time
input and of the class, ``registry.py`` networks by name, and ``presets.py`` those of the papers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
