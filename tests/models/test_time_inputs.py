"""Time inputs of networks, and models under other processes."""

import math

import pytest
import torch

from scoresde import DDPM, NCSN, VESDE, VPSDE, FlowSDE, ScoreModel, SubVPSDE
from scoresde.errors import ArgumentError
from scoresde.models.time_inputs import TIME_INPUTS
from scoresde.nets.embeddings import Sinusoidal
from tests.families import FAMILIES
from tests.marks import first_fast

DDPM_200, NCSN_100 = DDPM.linear(200), NCSN.geometric(0.01, 50.0, 100)


def received(sde, time_input, t, batch=3):
    """Return the time input of a network at time t.

    It is the same for a scalar t and for (B,).
    """
    inputs = []
    model = ScoreModel(lambda x, time_input: inputs.append(time_input) or x, sde, time_input=time_input)
    x = torch.zeros(batch, 2, dtype=torch.float64)
    model(x, t)
    model(x, torch.full((batch,), t, dtype=torch.float64))
    for value in inputs:
        assert value.shape == (batch,)
        assert value.dtype == torch.float64
    torch.testing.assert_close(inputs[0], inputs[1], rtol=1e-9, atol=1e-9)
    return inputs[0][0].item()


@pytest.mark.parametrize("i", [1, 2, 73, 199, 200])
def test_P13_time_inputs_of_ddpm(i):
    """Compare with the papers' step counts.

    Ho et al. count steps from 0; Nichol & Dhariwal rescale the count to 0..1000.
    """
    assert received(DDPM_200, "ddpm", DDPM_200.time(i)) == pytest.approx(i - 1, abs=1e-9)
    assert received(DDPM_200, "improved_ddpm", DDPM_200.time(i)) == pytest.approx((i - 1) * 1000 / 200, abs=1e-9)


@pytest.mark.parametrize("i", [0, 1, 50, 99])
def test_N1_time_input_of_ncsn(i):
    """Compare with Song & Ermon, who number levels from the largest sigma.

    They start from 0.
    """
    levels = NCSN_100.sigmas.flip(0)
    t = NCSN_100.time_of(-2 * levels[i].log()).item()
    assert received(NCSN_100, "ncsn", t) == pytest.approx(i, abs=1e-6)
    assert received(NCSN_100, "sigma", t) == pytest.approx(levels[i].item(), rel=1e-9)


@pytest.mark.parametrize("t", [0.001, 0.37, 1.0])
def test_time_inputs_of_continuous_processes(t):
    vp, ve = VPSDE(), VESDE()
    assert received(vp, "time", t) == pytest.approx(t)
    assert received(vp, "scaled_time", t) == pytest.approx(1000 * t)
    assert received(vp, "score_sde_vp", t) == pytest.approx(999 * t)
    assert received(ve, "score_sde_ve", t) == pytest.approx(0.01 * 5000**t)
    assert received(ve, "edm", t) == pytest.approx(math.log(0.01 * 5000**t) / 4)
    ratio = (vp.sigma(t) / vp.alpha(t)).item()
    assert received(vp, "edm", t) == pytest.approx(math.log(ratio) / 4)
    assert received(vp, "log_snr", t) == pytest.approx(-2 * math.log(ratio))


def test_a_time_input_may_be_a_function():
    assert received(VPSDE(), lambda level, sde: level.t * 7, 0.5) == pytest.approx(3.5)


def test_every_time_input_is_tested_here():
    names = "time scaled_time log_snr sigma ddpm improved_ddpm ncsn score_sde_vp score_sde_ve edm"
    assert set(TIME_INPUTS) == set(names.split())


@pytest.mark.parametrize("time_input", ["ddpm", "improved_ddpm", "ncsn"])
def test_counted_time_inputs_need_counted_levels(time_input):
    with pytest.raises(ArgumentError, match="counted levels"):
        received(VPSDE(), time_input, 0.5)


def test_P13_sinusoidal_features_of_the_step():
    """Compare the features of the step that a DDPM's network receives.

    PE(i) = [sin(i w_k), cos(i w_k)], w_k = 10000^(-2k/d).
    """
    features = []
    embedding = Sinusoidal(8)

    def net(x, time_input):
        features.append(embedding(time_input))
        return x

    ScoreModel(net, DDPM_200, time_input="ddpm")(torch.zeros(2, 2, dtype=torch.float64), DDPM_200.time(124))
    omega = [10000 ** (-2 * k / 8) for k in range(4)]
    expected = [math.sin(123 * w) for w in omega] + [math.cos(123 * w) for w in omega]
    torch.testing.assert_close(features[0][1], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


# ---- under another process ------------------------------------------------------------------------------------------

OTHERS = {
    "vp-cosine": VPSDE.cosine(),
    "subvp": SubVPSDE(),
    "ve": VESDE(0.01, 50.0),
    "ve-linear": VESDE.linear(80.0),
    "flow": FlowSDE(),
    "ddpm": DDPM.linear(1000),
    "ncsn": NCSN.geometric(0.01, 50.0, 232),
}


@first_fast("name", OTHERS)
@first_fast("trained", ["vp", "flow", "ve-linear"])
def test_P12_a_mixture_under_another_process_is_exact(name, trained, mixture_2d, generator):
    """Compare x0, eps and score to 1e-10 where both reach the log-SNR.

    For one time and for a time per sample.
    """
    inner, sde = FAMILIES[trained], OTHERS[name]
    moved, own = mixture_2d.model(inner).with_sde(sde), mixture_2d.model(sde)
    low = max(inner.log_snr(1.0).item(), sde.log_snr(1.0).item(), -14.0) + 1e-3
    high = min(inner.log_snr(0.0).item(), sde.log_snr(0.0).item(), 14.0) - 1e-3
    t = sde.time_of(torch.linspace(high, low, 40, dtype=torch.float64))
    x = sde.perturb(mixture_2d.sample(40, generator), t, generator)[0]
    pairs = [(moved(x, t), own(x, t))]
    pairs += [(moved(x[i : i + 1], t[i].item()), own(x[i : i + 1], t[i].item())) for i in range(0, 40, 7)]
    for ours, exact in pairs:
        torch.testing.assert_close(ours.x0, exact.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.eps, exact.eps, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.score, exact.score, rtol=1e-10, atol=1e-10 / sde.sigma(t).min().item())


def test_a_log_snr_out_of_range_is_refused(mixture_2d):
    """Check that the model raises instead of using another noise level."""
    model = mixture_2d.model(VPSDE()).with_sde(FlowSDE())
    x = torch.zeros(2, 2)
    assert model(x, 0.5).x0.isfinite().all()
    with pytest.raises(ArgumentError, match="log-SNR"):
        model(x, 0.9999)
    assert model.moments is mixture_2d.moments
