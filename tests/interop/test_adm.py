"""Checkpoints of guided-diffusion give what its own code gives.

``guided_diffusion.json`` has the arguments of two of its networks, and the names and shapes of their tensors. For the
seeded weights below it has their outputs and the samples of its ``ddim_sample_loop`` (commit 22e0df8 of its main
branch).
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from scoresde.errors import ArgumentError, CheckpointError
from scoresde.guidance import classifier_guidance, clipped
from scoresde.interop.adm import _network_settings, adm_classifier, from_adm
from scoresde.models import ScoreModel
from scoresde.sampling import DDIM, sample
from scoresde.sde import DDPM, VPSDE

FILE = Path(__file__).parent / "guided_diffusion.json"


@cache
def cases():
    return json.loads(FILE.read_text())


def made(tmp_path, name):
    """Return the model of a case, x, and the condition."""
    case = cases()[name]
    generator = torch.Generator().manual_seed(0)
    pairs = zip(case["names"], case["shapes"], strict=True)
    torch.save({name: torch.randn(shape, generator=generator) * 0.1 for name, shape in pairs}, tmp_path / "adm.pt")
    x = torch.randn(3, 1, 8, 8, generator=generator)
    cond = None if case["classes"] is None else {"y": torch.tensor(case["classes"])}
    return from_adm(tmp_path / "adm.pt", case["config"], case["schedule"]), x, cond


@pytest.mark.parametrize("name", cases())
def test_outputs_are_theirs(tmp_path, name):
    model, x, cond = made(tmp_path, name)
    t = (torch.tensor(cases()[name]["levels"]) + 1) / 1000
    with torch.no_grad():
        ours = model.predict(x, model.sde.level(t, x), cond)
    theirs = torch.tensor(cases()[name]["output"]).reshape(ours.shape)
    assert (ours - theirs).norm() < 5e-6 * theirs.norm()


@pytest.mark.parametrize("name", cases())
def test_ddim_samples_are_theirs(tmp_path, name):
    model, x, cond = made(tmp_path, name)
    grid = [(k + 1) / 1000 for k in reversed(cases()[name]["steps"])] + [0.0]
    ours = sample(clipped(model), x.shape, DDIM(grid=grid), start=x, cond=cond)
    theirs = torch.tensor(cases()[name]["ddim"]).reshape(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_network_with_classes_needs_a_class(tmp_path):
    model, x, _ = made(tmp_path, "blocks that resample, classes")
    with pytest.raises(ArgumentError, match="no class"):
        model(x, 0.5)
    with pytest.raises(ArgumentError, match=r"0\.\.3"):
        model(x, 0.5, {"y": torch.tensor([0, -1, 2])})


def test_it_is_saved_as_ours(tmp_path):
    model, x, cond = made(tmp_path, "blocks that resample, classes")
    model.save_pretrained(tmp_path / "ours")
    again = ScoreModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(model(x, 0.4, cond).v, again(x, 0.4, cond).v)


def test_arguments_of_their_scripts_name_the_same_network():
    flags = {"image_size": 64, "num_channels": 192, "num_res_blocks": 3, "num_head_channels": 64, "learn_sigma": True}
    flags |= {"class_cond": True, "attention_resolutions": "32,16,8", "resblock_updown": True, "diffusion_steps": 1000}
    settings = _network_settings(flags | {"noise_schedule": "cosine"})
    assert settings["channel_mult"] == (1, 2, 3, 4)
    assert settings["attention_resolutions"] == [2, 4, 8]
    assert (settings["out_channels"], settings["num_classes"], settings["use_scale_shift_norm"]) == (6, 1000, True)


def test_their_classifier_sees_their_levels():
    ddpm, seen = DDPM.cosine(10), []

    def classifier(x, k):
        seen.append(k)
        return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], dim=1)

    net = torch.nn.Conv2d(1, 1, 1)
    model = ScoreModel(lambda x, t: net(x), ddpm, time_input="ddpm")
    x, y = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    classifier_guidance(model, adm_classifier(classifier, ddpm))(x, 0.3, {"y": y})
    classifier_guidance(model, adm_classifier(classifier, ddpm, rescaled=True))(x, 0.3, {"y": y})
    torch.testing.assert_close(torch.stack(seen), torch.tensor([[2.0, 2.0], [200.0, 200.0]]))
    with pytest.raises(Exception, match="counts"):
        adm_classifier(classifier, VPSDE())


def test_foreign_files_are_refused(tmp_path):
    case = cases()["legacy heads, no classes"]
    made(tmp_path, "legacy heads, no classes")
    for change, message in (
        ({"num_res_blocks": 2}, "without input_blocks"),
        ({"model_channels": 64}, "of shape"),
        ({"attention_resolutions": []}, "without output_blocks"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_adm(tmp_path / "adm.pt", case["config"] | change)
    with pytest.raises(ArgumentError, match="begin with 1"):
        from_adm(tmp_path / "adm.pt", case["config"] | {"channel_mult": [2, 2]})
    with pytest.raises(ArgumentError, match="num_channels"):
        from_adm(tmp_path / "adm.pt", {"width": 3})
    with pytest.raises(ArgumentError, match="'linear' or 'cosine'"):
        from_adm(tmp_path / "adm.pt", case["config"], "sqrt")
