"""Small models of other libraries, which need none of them."""

import json
from pathlib import Path

import torch


def score_sde_checkpoint(folder, name="vp"):
    """Write a checkpoint of score_sde_pytorch; return its path and settings."""
    case = json.loads((Path(__file__).parent / "score_sde_pytorch.json").read_text())[name]
    weights = dict(zip(case["names"], map(torch.zeros, case["shapes"]), strict=True))
    trained = [value for key, value in weights.items() if key not in ("sigmas", "all_modules.0.W")]
    torch.save({"model": weights, "ema": {"shadow_params": trained}}, folder / "score_sde.pth")
    return folder / "score_sde.pth", case["config"]


def adm_checkpoint(folder, name="legacy heads, no classes"):
    """Write a checkpoint of guided-diffusion; return its path and arguments."""
    case = json.loads((Path(__file__).parent / "guided_diffusion.json").read_text())[name]
    pairs = zip(case["names"], case["shapes"], strict=True)
    torch.save({name: torch.zeros(shape) for name, shape in pairs}, folder / "adm.pt")
    return folder / "adm.pt", case["config"]


class Azula(torch.nn.Module):
    """A denoiser with a schedule, as azula has them."""

    def schedule(self, t):
        return 1 - t / 2, t

    def forward(self, x, t, **cond):
        return type("Posterior", (), {"mean": x / 2})


class GaussianDiffusion(torch.nn.Module):
    """The parts of denoising-diffusion-pytorch that are read."""

    objective, auto_normalize = "pred_noise", False
    alphas_cumprod = torch.linspace(0.99, 0.01, 10)

    def model(self, x, t):
        return x


class ScoreEstimator:
    """A score estimator of N(0, 1), as sbi has them."""

    t_min, t_max = 1e-3, 1.0

    def mean_t_fn(self, t):
        return 1 - t / 2

    def std_fn(self, t):
        return t

    def score(self, x, condition, t):
        return -x
