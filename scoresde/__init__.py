"""Score-based generative models in continuous time.

One forward process (``scoresde.sde``: VP, sub-VP, VE and flow matching, with DDPM and NCSN as exact special cases) and
one interface to a model (``scoresde.models``) serve three verbs: ``scoresde.sampling``, ``scoresde.likelihood`` and
``scoresde.training``. Networks are in ``scoresde.nets``, data in ``scoresde.data``, conditioning in
``scoresde.guidance``, and the command line in ``scoresde.app``. The names of the README are here at the top.

The table of equations, docs/equations.md, names the code and the tests of each.
"""

import difflib

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    try:
        return _attribute(name)
    except AttributeError as error:
        known = {public.lower(): public for public in __all__}
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {known[near[0]]!r}?" if near else ""
        raise AttributeError(f"scoresde has no {name!r}{hint}") from error
