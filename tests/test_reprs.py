"""What objects say of themselves: at a prompt, and in a notebook."""

import pytest
import torch

import scoresde as S

MIXTURE = S.GaussianMixture([[0.0], [1.0]], 0.1)


def test_an_estimate_says_what_it_is_and_where():
    estimate = MIXTURE.model(S.VPSDE())(torch.zeros(3, 1), 0.5)
    text = repr(estimate)
    assert "x0, eps, score" in text
    assert "(3, 1) float32" in text
    assert "alpha=0.28118" in text
    assert "tensor" not in text
    many = repr(MIXTURE.model(S.VPSDE())(torch.zeros(3, 1), torch.tensor([0.1, 0.2, 0.3])))
    assert "alpha of shape (3, 1)" in many


def test_a_state_says_where_the_trajectory_is():
    states = list(S.trajectory(MIXTURE.model(S.VPSDE()), (5, 1), S.DDIM(), steps=4))
    assert "step 2 of 4" in repr(states[2])
    assert "(5, 1)" in repr(states[2])
    assert "tensor" not in repr(states[-1])


@pytest.mark.parametrize(
    "sde", [S.VPSDE(), S.VESDE(), S.SubVPSDE(), S.FlowSDE(), S.DDPM.linear(100), S.NCSN.geometric(0.1, 9.0, 5)]
)
def test_a_process_shows_its_equation_and_scales(sde):
    text = sde._repr_markdown_()
    assert repr(sde) in text
    assert "dW" in text
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    alphas = next(row for row in rows if "alpha" in row[1])
    assert float(alphas[4]) == pytest.approx(float(sde.alpha(0.5)), rel=1e-3)


def test_the_equations_are_those_of_the_drift_and_the_diffusion():
    """Check each class's equation, read by hand, against its rates."""
    t, one = 0.3, torch.ones(1, dtype=torch.float64)
    vp, subvp, flow = S.VPSDE(), S.SubVPSDE(), S.FlowSDE()
    beta = vp.beta(t)
    assert vp.drift(one, t).item() == pytest.approx(-float(beta) / 2)
    assert float(vp.diffusion(t)) ** 2 == pytest.approx(float(beta))
    assert subvp.drift(one, t).item() == pytest.approx(-float(beta) / 2)
    assert float(subvp.diffusion(t)) ** 2 == pytest.approx(float(beta * (1 - vp.alpha(t) ** 4)))
    assert flow.drift(one, t).item() == pytest.approx(-1 / (1 - t))
    assert float(flow.diffusion(t)) ** 2 == pytest.approx(2 * t / (1 - t))


def test_a_score_model_names_its_process_before_its_layers():
    model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), predicts="velocity")
    head = repr(model).split("(net)")[0]
    assert "VPSDE(beta_min=0.1, beta_max=20)" in head
    assert "predicts='velocity'" in head
    assert f"{sum(p.numel() for p in model.parameters()):,} weights" in head
