"""What samplers, predictors and correctors have in common as settings."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, repr=False)
class Frozen:
    """Settings that never change: compared by value, hashable, picklable.

    Subclasses with fields are frozen dataclasses, made with ``repr=False``. What changes during a run lives in the run.
    """

    def __repr__(self) -> str:
        """Return a call that makes an equal object.

        Settings at their defaults are left out. Those that may be given by position come first.
        """
        ordered = sorted(fields(self), key=lambda f: f.kw_only is True)
        names = [f.name for f in ordered if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def _store(self, **values: object) -> None:
        """Replace settings by their checked values, in ``__post_init__`` alone."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
