"""scoresde: score-based generative models in continuous time.

One forward process (VP, sub-VP, VE, and DDPM and NCSN as exact special cases), one model interface, and samplers,
likelihoods and training written once for all of them. The equations are in docs/equations.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
