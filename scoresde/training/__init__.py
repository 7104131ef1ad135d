"""Training: objectives, time sampling, weightings, and the trainer.

Start with ``trainer.py``: ``Trainer(model, objective, config).fit(data)``. The losses are in ``objectives.py``,
``sliced.py`` and ``variational.py``. They draw times by ``time_sampling.py`` and ``discrete_times.py``, and weight them
by ``weightings.py``. Averages of the weights are in ``ema.py``, saved runs in ``checkpoints.py``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
