"""Networks: U-Net, diffusion transformer and residual MLP, their embeddings, presets, and a registry of them by name.

A network is called as ``net(x, time_input, y=None)`` and knows nothing of SDEs: ``time_input`` is any scalar made from time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
