"""The probability flow: its field, ODE solvers and quadrature weights.

Sampling and likelihoods both integrate this ODE. ``field.py`` turns a model into the flow's vector field, ``ode.py``
integrates it on a fixed or adaptive grid, and ``weights.py`` has the weights of multistep rules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
