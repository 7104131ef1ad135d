"""The presets and their numbers of parameters.

Compared with counts from the papers' descriptions.
"""

import math

import pytest
import torch

from scoresde.errors import UnknownNameError
from scoresde.models import ScoreModel
from scoresde.models.time_inputs import TIME_INPUTS
from scoresde.nets import PRESETS, build_net, net_preset
from scoresde.sde import DDPM, build_sde
from tests.marks import first_fast

COUNTS = {
    "digits-unet": 427_681,
    "digits-dit": 402_948,
    "fashion-unet": 4_820_737,
    "fashion-unet-small": 691_105,
    "fashion-dit": 4_827_268,
    "cifar10-ddpm": 35_746_307,
    "cifar10-ddpm++": 61_804_419,
    "cifar10-ddpm++-deep": 106_632_579,
    "cifar10-dit": 32_471_436,
}


def on_meta(name, **options):
    with torch.device("meta"):
        return build_net({**net_preset(name).net, **options})


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.slow
def test_every_preset_is_counted():
    assert {name: count(on_meta(name)) for name in PRESETS} == COUNTS


@first_fast("name", PRESETS)
def test_presets_run_at_their_own_shape(name):
    shape = PRESETS[name].net["shape"]
    with torch.no_grad():
        out = on_meta(name)(torch.empty(2, *shape, device="meta"), torch.empty(2, device="meta"))
    assert out.shape == (2, *shape)


def _conv(inputs, outputs, k=3):
    return k * k * inputs * outputs + outputs


def _cifar10_parameters(blocks, *, resampling_blocks=False, attend_once=False):
    """Count the parameters of the papers' U-Net at 32 x 32, layer by layer.

    128 channels, widths 1, 2, 2, 2, attention at 16 x 16.
    """
    widths = [128, 256, 256, 256]

    def block(inputs, width, *, shortcut):
        norms, time_input = 2 * inputs + 2 * width, _conv(512, width, 1)
        return norms + time_input + _conv(inputs, width) + _conv(width, width) + shortcut * _conv(inputs, width, 1)

    def resample(width):
        return block(width, width, shortcut=True) if resampling_blocks else _conv(width, width)

    attention = 2 * 256 + 4 * _conv(256, 256, 1)
    total = _conv(3, 128) + _conv(128, 512, 1) + _conv(512, 512, 1)  # stem; two layers for the time input
    width, skips = 128, [128]
    for k, w in enumerate(widths):
        for _ in range(blocks):
            total += block(width, w, shortcut=width != w) + (attention if k == 1 else 0)
            width = w
            skips.append(w)
        if k < 3:
            total += resample(w)
            skips.append(w)
    total += 2 * block(256, 256, shortcut=False) + attention
    for k in (3, 2, 1, 0):
        for _ in range(blocks + 1):
            total += block(width + skips.pop(), widths[k], shortcut=True)
            width = widths[k]
        if k == 1:
            total += attention * (1 if attend_once else blocks + 1)
        if k > 0:
            total += resample(width)
    assert not skips
    return total + 2 * 128 + _conv(128, 3)


def test_cifar10_unets_have_the_papers_parameters():
    """Compare with the papers' counts: 35.7, 61.8 and 106.6 million.

    Ho et al. 2020, appendix B, give the first; Song et al. 2021, appendix H, the other two.
    """
    assert _cifar10_parameters(2) == COUNTS["cifar10-ddpm"]
    assert _cifar10_parameters(4, resampling_blocks=True, attend_once=True) == COUNTS["cifar10-ddpm++"]
    assert _cifar10_parameters(8, resampling_blocks=True, attend_once=True) == COUNTS["cifar10-ddpm++-deep"]


def test_cifar10_dit_has_the_papers_parameters():
    """Compare DiT-S/2 with the paper's 33 million (Peebles, Xie 2023).

    It has 32 x 32 x 4 latents, 1000 classes and learned variances.
    """
    shape, width = [4, 32, 32], 384
    per_block = _conv(width, 6 * width, 1) + _conv(width, 3 * width, 1) + _conv(width, width, 1)
    per_block += _conv(width, 4 * width, 1) + _conv(4 * width, width, 1)
    total = 12 * per_block + _conv(4, width, 2) + _conv(256, width, 1) + _conv(width, width, 1) + 1001 * width
    total += _conv(width, 2 * width, 1) + _conv(width, 2 * 2 * 8, 1)
    assert count(on_meta("cifar10-dit", shape=shape, classes=1000, out_channels=8)) == total
    assert round((total + 256 * width) / 1e6) == 33  # the paper stores the positions


def test_cifar10_ddpm_is_trained_as_in_the_paper():
    preset = net_preset("cifar10-ddpm")
    assert preset.net["dropout"] == 0.1
    assert preset.net["multipliers"] == [1, 2, 2, 2]
    train, sde = preset.run["train"], preset.run["sde"]
    assert (train["lr"], train["batch_size"], train["warmup"], train["clip"]) == (2e-4, 128, 5000, 1.0)
    assert 0.5 ** (1 / train["ema_half_life"]) == pytest.approx(0.9999, abs=1e-12)
    process = DDPM.linear(sde["levels"], sde["beta_min"], sde["beta_max"])
    assert (process.N, process.betas[0].item(), process.betas[-1].item()) == (1000, 1e-4, 0.02)
    model = ScoreModel(on_meta("cifar10-ddpm"), process, **preset.run["model"])
    assert model.time_input in TIME_INPUTS


def test_cifar10_ddpmpp_is_trained_as_in_the_paper():
    preset = net_preset("cifar10-ddpm++")
    process = build_sde(preset.run["sde"])
    t = torch.tensor(0.4, dtype=torch.float64)
    assert process.log_alpha(t).item() == pytest.approx(-0.25 * 0.16 * 19.9 - 0.5 * 0.4 * 0.1)
    assert preset.run["train"]["lr"] == 2e-4
    assert net_preset("cifar10-ddpm++-deep").net == {**preset.net, "blocks": 8}


def test_a_preset_is_a_copy():
    net_preset("digits-unet").net["shape"].append(9)
    net_preset("cifar10-ddpm").run["train"]["lr"] = math.inf
    assert PRESETS["digits-unet"].net["shape"] == [1, 8, 8]
    assert PRESETS["cifar10-dit"].run["train"]["lr"] == 1e-4
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10-ddpm'"):
        net_preset("cifar10-ddmp")
