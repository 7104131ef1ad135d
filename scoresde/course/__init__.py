"""Ten labs that check themselves.

``scoresde course start DIR`` writes them as notebooks with blanks. :func:`check` compares an answer with a closed form,
and names the slip. Start with ``checks.py``; the labs' texts are in ``labs/``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
