"""Explicit Runge-Kutta methods as tables of coefficients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: its coefficients and its order.

        k_i = f(s + c_i h, y + h sum_j a_ij k_j),    y_new = y + h sum_i b_i k_i

    Attributes:
        name: Name of the method.
        order: Its order p.
        c: Times of the stages, in steps.
        a: Weights of the earlier stages in each stage after the first.
        b: Weights of the stages in the step.
        error: b - b*, the difference to the embedded method of order p - 1. The last stage of a method with one is the
            first stage of its next step. None: the method has no embedded one.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None


TABLEAUX = {
    tableau.name: tableau
    for tableau in (
        Tableau("euler", 1, (0.0,), (), (1.0,)),
        Tableau("midpoint", 2, (0.0, 0.5), ((0.5,),), (0.0, 1.0)),
        Tableau("heun", 2, (0.0, 1.0), ((1.0,),), (0.5, 0.5)),
        Tableau("rk4", 4, (0.0, 0.5, 0.5, 1.0), ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        Tableau(  # Bogacki & Shampine 1989
            "bosh3",
            3,
            (0.0, 1 / 2, 3 / 4, 1.0),
            ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
            (2 / 9, 1 / 3, 4 / 9, 0.0),
            (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        ),
        Tableau(  # Dormand & Prince 1980
            "dopri5",
            5,
            (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
            (
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
                (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            ),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
            (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        ),
    )
}

ADAPTIVE = tuple(name for name, tableau in TABLEAUX.items() if tableau.error)
FIXED = tuple(name for name, tableau in TABLEAUX.items() if not tableau.error)
