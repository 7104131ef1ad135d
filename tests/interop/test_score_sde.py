"""Checkpoints of score_sde_pytorch give the scores of its code.

``score_sde_pytorch.json`` has its networks' settings, the names and shapes of their tensors, and the scores of its
``get_score_fn`` for the seeded weights below (commit cb1f359 of its main branch, on the CPU; two typing errors of its
nearest-neighbour upsampling, which current versions of torch refuse, were mended for two of the networks). For one of
them it has samples, too.
"""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from scoresde.errors import ArgumentError, CheckpointError, UnknownNameError
from scoresde.interop.score_sde import PRESETS, _network, from_score_sde
from scoresde.sampling import PredictorCorrector, ReverseDiffusion, sample

FILE = Path(__file__).parent / "score_sde_pytorch.json"


@cache
def cases():
    return json.loads(FILE.read_text())


def drawn(case):
    """Return the seeded weights, x and t of a case, as the file was made."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in zip(case["names"], case["shapes"], strict=True):
        if name == "sigmas":
            weights[name] = torch.zeros(shape)
            continue
        value = torch.randn(shape, generator=generator)
        weights[name] = value * (16 if name.endswith(".W") and value.ndim == 1 else 0.2)
        if "GroupNorm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights, 3 * torch.randn(2, 2, 8, 8, generator=generator), torch.tensor(case["times"])


def write(path, weights, **changes):
    """Write a checkpoint of theirs, whose averages are the weights."""
    trained = [value for name, value in weights.items() if name != "sigmas" and name != "all_modules.0.W"]
    last = {f"module.{name}": value + (name not in ("sigmas", "all_modules.0.W")) for name, value in weights.items()}
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": trained}
    torch.save({"optimizer": {"state": {}}, "model": last, "ema": ema, "step": 5} | changes, path)
    return path


@pytest.mark.parametrize("name", cases())
def test_scores_are_theirs(tmp_path, name):
    case = cases()[name]
    weights, x, t = drawn(case)
    path = write(tmp_path / "checkpoint_1.pth", weights)
    model = from_score_sde(path, case["config"], case["sde"], continuous=case["continuous"])
    with torch.no_grad():
        ours = model(x, t).score
    theirs = torch.tensor(case["score"]).reshape(x.shape)
    assert (ours - theirs).norm() < 5e-6 * theirs.norm()


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_samples_are_theirs(tmp_path):
    """Compare with its ``get_pc_sampler``, by reverse diffusion on six levels."""
    case = cases()["ve residual input"]
    model = from_score_sde(write(tmp_path / "checkpoint_1.pth", drawn(case)[0]), case["config"], "ve")
    sampler = PredictorCorrector(ReverseDiffusion(), grid=[1.0, 0.8, 0.6, 0.4, 0.2, 0.0], last="tweedie")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ours = sample(model, (2, 2, 8, 8), sampler, start=50 * torch.randn(2, 2, 8, 8))
    theirs = torch.tensor(case["pc"]).reshape(ours.shape)
    assert (ours - theirs).norm() < 5e-6 * theirs.norm()


def test_weights_are_the_averages_or_the_last(tmp_path):
    case = cases()["vp"]
    weights, _, _ = drawn(case)
    path = write(tmp_path / "checkpoint_1.pth", weights)
    average = next(from_score_sde(path, case["config"], "vp").net.parameters())
    last = next(from_score_sde(path, case["config"], "vp", weights="model").net.parameters())
    torch.testing.assert_close(last, average + 1)


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_a_checkpoint_samples_and_is_saved_as_ours(tmp_path):
    case = cases()["ve input and output skips"]
    path = write(tmp_path / "checkpoint_1.pth", drawn(case)[0])
    model = from_score_sde(path, case["config"], "ve", data_std=0.25)
    model.save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours")
    images = [
        one.to_data(sample(one, (2, 2, 8, 8), steps=4, generator=torch.Generator().manual_seed(1)))
        for one in (model, again)
    ]
    assert torch.equal(*images)
    assert images[0].dtype == torch.int64
    assert images[0].max() <= 255


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name):
    counts = {"cifar10-ncsnpp": 62.8, "cifar10-ncsnpp-deep": 107.6, "cifar10-ddpmpp": 61.8}
    counts |= {"cifar10-ddpmpp-deep": 106.6, "cifar10-ddpm": 35.2}
    with torch.device("meta"):
        net = _network(PRESETS[name])
        assert net(torch.empty(1, *net.shape), torch.ones(1)).shape == (1, *net.shape)
    count = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert round(count, 1) == counts.get(name, 65.6)


def test_foreign_files_are_refused(tmp_path):
    case = cases()["vp"]
    config, (weights, _, _) = case["config"], drawn(case)
    good = write(tmp_path / "good.pth", weights)
    with pytest.raises(CheckpointError, match="no file"):
        from_score_sde(tmp_path / "missing.pth", config, "vp")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        from_score_sde(tmp_path / "cut.pth", config, "vp")
    torch.save({"model": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        from_score_sde(tmp_path / "code.pth", config, "vp")
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="'model' and 'ema'"):
        from_score_sde(tmp_path / "weights.pth", config, "vp")
    other = copy.deepcopy(config)
    other["model"]["nf"] = 16
    with pytest.raises(CheckpointError, match=r"all_modules.*of shape"):
        from_score_sde(good, other, "vp")
    other["model"]["num_res_blocks"] = 2
    with pytest.raises(CheckpointError, match="parameters"):
        from_score_sde(good, other, "vp")
    short = write(tmp_path / "short.pth", weights, ema={"shadow_params": [torch.zeros(1)]})
    with pytest.raises(CheckpointError, match="1 averages"):
        from_score_sde(short, config, "vp")


def test_settings_that_are_missing_or_unknown_are_named(tmp_path):
    case = cases()["vp"]
    good = write(tmp_path / "good.pth", drawn(case)[0])
    with pytest.raises(UnknownNameError, match="cifar10-ncsnpp"):
        from_score_sde(good, "cifar10-ncsnp")
    with pytest.raises(ArgumentError, match=r"without model\.nf"):
        from_score_sde(
            good,
            {"model": {"name": "ncsnpp", "ch_mult": [1], "attn_resolutions": []}, "data": case["config"]["data"]},
            "vp",
        )
    with pytest.raises(ArgumentError, match="sub-VP"):
        from_score_sde(good, case["config"], "subvp", continuous=False)
    with pytest.raises(ArgumentError, match="'ncsnv2'"):
        from_score_sde(good, {"model": {"name": "ncsnv2"}, "data": {}}, "ve")
