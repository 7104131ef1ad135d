"""Models of every library are saved, loaded, trained and resumed."""

import pytest
import torch
from torch import nn

from scoresde.models import ScoreModel
from scoresde.nets import adapt
from scoresde.sde import VPSDE
from scoresde.training import DenoisingScoreMatching, Trainer, TrainerConfig
from tests.interop.small import Azula, GaussianDiffusion, ScoreEstimator, adm_checkpoint, score_sde_checkpoint


class Net(nn.Module):
    """A network ``(x, t)``."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(2, 2)

    def forward(self, x, t, *more):
        return self.layer(x)


class Denoiser(Azula):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, t, **cond):
        return type("Posterior", (), {"mean": self.net(x, t)})


class Diffusion(nn.Module):
    objective, auto_normalize, alphas_cumprod = "pred_noise", False, GaussianDiffusion.alphas_cumprod

    def __init__(self):
        super().__init__()
        self.model = Net()


class Estimator(ScoreEstimator, nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.net = Net()

    def score(self, x, condition, t):
        return condition[:, :1] - self.net(x, t)


def diffusers_model(folder):
    diffusers = pytest.importorskip("diffusers")
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, **kinds)
    return ScoreModel.from_diffusers(unet, diffusers.DDPMScheduler(), scaling=None)


def score_sde_model(folder):
    return ScoreModel.from_score_sde(*score_sde_checkpoint(folder), "vp", scaling=None)


def adm_model(folder):
    return ScoreModel.from_adm(*adm_checkpoint(folder), scaling=None)


def of(door):
    """Return a maker of a model from a network."""
    return lambda folder: door()


#: a maker of each library's model, the shape of its items, and the names of its conditions
LIBRARIES = {
    "diffusers": (diffusers_model, (3, 8, 8)),
    "score_sde": (score_sde_model, (2, 8, 8)),
    "adm": (adm_model, (1, 8, 8)),
    "edm": (of(lambda: ScoreModel.from_edm(Net(), scaling=None)), (2,)),
    "k-diffusion": (of(lambda: ScoreModel.from_k_diffusion(Net(), 80.0)), (2,)),
    "azula": (of(lambda: ScoreModel.from_azula(Denoiser())), (2,)),
    "denoising-diffusion-pytorch": (of(lambda: ScoreModel.from_denoising_diffusion(Diffusion())), (2,)),
    "flow_matching": (of(lambda: ScoreModel.from_flow_matching(Net())), (2,)),
    "torchcfm": (of(lambda: ScoreModel.from_torchcfm(Net(), 0.1, order="xt")), (2,)),
    "sbi": (of(lambda: ScoreModel.from_sbi(Estimator())), (2,)),
    "any": (of(lambda: ScoreModel(adapt(Net(), time="score_sde_vp"), VPSDE())), (2,)),
}


def trained(model, data, folder, steps, config):
    trainer = Trainer(model, DenoisingScoreMatching(), TrainerConfig(steps=steps, **config), folder=folder)
    if steps == 10 and folder.is_dir() and any(folder.iterdir()):
        trainer.resume()
    trainer.fit(data)
    return model.net.state_dict()


@pytest.mark.parametrize("name", LIBRARIES)
def test_saved_loaded_trained_and_resumed(tmp_path, name):
    make, shape = LIBRARIES[name]
    model, fresh = make(tmp_path), make(tmp_path)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))
    condition = torch.ones(16, 1)
    cond = {"condition": condition[:2]} if name == "sbi" else None
    # saved and loaded; what is not registered takes a new network of the same kind
    model.save_pretrained(tmp_path / "saved")
    net = None if name in ("diffusers", "score_sde", "adm") else fresh.net
    again = ScoreModel.from_pretrained(tmp_path / "saved", net=net)
    assert torch.equal(model(x[:2], 0.5, cond).x0, again(x[:2], 0.5, cond).x0)
    # trained for 10 steps at once, and for 5 and 5
    items = [{"x": one, "condition": c} for one, c in zip(x, condition, strict=True)] if name == "sbi" else list(x)
    config = {"batch_size": 4, "device": "cpu", "conditions": {"condition": 0.0} if name == "sbi" else None}
    whole = trained(make(tmp_path), items, tmp_path / "whole", 10, config)
    parts = make(tmp_path)
    trained(parts, items, tmp_path / "parts", 5, config)
    resumed = trained(make(tmp_path), items, tmp_path / "parts", 10, config)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert any(not torch.equal(value, make(tmp_path).net.state_dict()[key]) for key, value in whole.items())
