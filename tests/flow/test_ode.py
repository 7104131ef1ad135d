"""ODE solvers: measured orders, closed forms, independent samples."""

import math
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from scipy.integrate import solve_ivp

from scoresde.errors import ArgumentError, NonFiniteError, ToleranceError, UnknownNameError
from scoresde.flow.ode import ODE_METHODS, integrate
from scoresde.flow.problem import Control
from scoresde.flow.runge_kutta import stages
from scoresde.flow.tableaux import ADAPTIVE, FIXED, TABLEAUX, Tableau
from tests.marks import first_fast
from tests.statistics_tools import measured_order

RATES = torch.tensor([[0.3], [1.0], [2.5]], dtype=torch.float64)


def pendulum(s, y, rows):
    """Return the slope of a rotation that varies with time.

    :func:`exact` solves it.
    """
    angle_rate = RATES[rows] * torch.cos(s)[:, None]
    return torch.cat([-angle_rate * y[:, 1:], angle_rate * y[:, :1]], 1)


def exact(y, start, end):
    angle = RATES[:, 0] * (math.sin(end) - math.sin(start))
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([c * y[:, 0] - s * y[:, 1], s * y[:, 0] + c * y[:, 1]], 1)


Y0 = torch.tensor([[1.0, 0.0], [0.6, -0.8], [2.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", TABLEAUX)
def test_declared_order_is_measured(name):
    tableau = TABLEAUX[name]
    rows = torch.arange(3)
    errors, sizes = [], []
    for steps in (16, 32, 64):
        y, h = Y0, torch.full((3,), 2.0 / steps, dtype=torch.float64)
        for i in range(steps):
            s = i * h
            k = stages(pendulum, s, y, h, tableau, pendulum(s, y, rows), rows)
            y = y + h[:, None] * sum(b * k_i for b, k_i in zip(tableau.b, k, strict=True))
        errors.append((y - exact(Y0, 0.0, 2.0)).abs().max().item())
        sizes.append(2.0 / steps)
    assert measured_order(errors, sizes) == pytest.approx(tableau.order, abs=0.2)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_embedded_method_is_of_one_order_less(name):
    """Compare b - b* with a method of order p - 1.

    The error estimate of one step falls as h^p.
    """
    tableau = TABLEAUX[name]
    rows = torch.arange(3)
    estimates, sizes = [], (0.1, 0.05, 0.025)
    for size in sizes:
        s, h = torch.full((3,), 0.4, dtype=torch.float64), torch.full((3,), size, dtype=torch.float64)
        k = stages(pendulum, s, Y0, h, tableau, pendulum(s, Y0, rows), rows)
        estimates.append((size * sum(e * k_i for e, k_i in zip(tableau.error, k, strict=True))).abs().max().item())
    assert measured_order(estimates, sizes) == pytest.approx(tableau.order, abs=0.2)


@first_fast("method", ODE_METHODS)
@first_fast(("start", "end"), [(0.0, 2.0), (2.0, 0.5)])
def test_every_method_solves_the_closed_form(method, start, end):
    """Solve with 500 steps, or a tolerance of 1e-8 (1e-5 for order 2).

    The error is what the order allows.
    """
    allowed = {"euler": 3e-2, "midpoint": 1e-4, "heun": 1e-4, "adaptive_heun": 1e-4, "explicit_adams": 3e-5}
    tolerance = 1e-5 if method == "adaptive_heun" else 1e-8
    y = integrate(pendulum, Y0, start, end, method=method, rtol=tolerance, atol=tolerance, steps=500).y
    torch.testing.assert_close(y, exact(Y0, start, end), rtol=0, atol=allowed.get(method, 5e-6))


@first_fast("method", ADAPTIVE)
@first_fast("tolerance", [1e-4, 1e-6, 1e-8])
def test_adaptive_error_follows_the_tolerance(method, tolerance):
    y, calls = integrate(pendulum, Y0, 0.0, 2.0, method=method, rtol=tolerance, atol=tolerance)
    assert (y - exact(Y0, 0.0, 2.0)).abs().max() < 20 * tolerance
    peer = {"bosh3": "RK23", "dopri5": "RK45"}[method]  # the same pair; an equally good controller uses no more calls

    def hardest(s, state):
        return pendulum(torch.tensor([s]), torch.tensor(state)[None], torch.tensor([2]))[0].numpy()

    solution = solve_ivp(hardest, (0.0, 2.0), Y0[2].numpy(), method=peer, rtol=tolerance, atol=tolerance)
    assert calls < 1.2 * solution.nfev + 10


@pytest.mark.slow
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_a_sample_does_not_depend_on_its_batch(method):
    """Solve an easy sample beside stiff ones.

    The stiff ones take more steps; the easy one's result is the same to the last bit.
    """

    def stiff(s, y, rows):
        return -torch.tensor([1.0, 30.0, 200.0], dtype=torch.float64)[rows][:, None] * (y - torch.cos(s)[:, None])

    together = integrate(stiff, Y0, 0.0, 1.0, method=method, rtol=1e-5, atol=1e-5, steps=400).y
    for i in range(3):

        def alone(s, y, rows, i=i):
            return stiff(s, y, torch.full_like(rows, i))

        single = integrate(alone, Y0[i : i + 1], 0.0, 1.0, method=method, rtol=1e-5, atol=1e-5, steps=400).y
        assert torch.equal(single[0], together[i])


def test_bad_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'dopri5'"):
        integrate(pendulum, Y0, 0.0, 1.0, method="dopri55")
    with pytest.raises(ArgumentError, match="rtol"):
        integrate(pendulum, Y0, 0.0, 1.0, rtol=0.0)
    with pytest.raises(ArgumentError, match="steps"):
        integrate(pendulum, Y0, 0.0, 1.0, method="rk4")


def test_an_unreachable_tolerance_names_where():
    def blows_up(s, y, rows):  # y' = y^2 from 1 is infinite at s = 1
        return y * y

    with pytest.raises(ToleranceError, match=r"s = 0\.99|s = 1"):
        integrate(blows_up, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0)


def test_nan_names_the_samples():
    def field(s, y, rows):
        return torch.where((rows == 1)[:, None] & (s[:, None] > 0.5), torch.nan, y)

    with pytest.raises(NonFiniteError, match=r"samples \[1\]"):
        integrate(field, torch.ones(3, 2, dtype=torch.float64), 0.0, 1.0)


@pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX)
def test_a_tableau_is_a_settings_object(tableau):
    assert eval(repr(tableau), {"Tableau": Tableau}) == tableau
    assert pickle.loads(pickle.dumps(tableau)) == tableau
    with pytest.raises(FrozenInstanceError):
        tableau.order = 3


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_are_positive(name):
    with pytest.raises(ArgumentError, match=f"`{name}` must be a positive number"):
        Control(**({"rtol": 1e-3, "atol": 1e-3} | {name: -1.0}))
