"""U-Nets that suit the size of what they see."""

import logging
import math

import pytest
import torch

import scoresde as S
from scoresde.nets.presets import PRESETS
from scoresde.nets.sizing import unet_for


@pytest.mark.parametrize(
    "shape",
    [(3, 4, 5), (1, 8, 8), (1, 13, 28), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 128, 130), (2, 100), (1, 16, 8, 8)],
)
def test_every_size_has_a_network(shape):
    """Build the network, whose coarsest resolution can have attention."""
    options = unet_for(shape)
    net = S.UNet(shape, **options)
    x = torch.zeros(1, *shape)
    assert net(x, torch.tensor(0.5)).shape == x.shape
    halvings = len(options["multipliers"]) - 1
    assert math.prod(-(-length // 2**halvings) for length in shape[1:]) <= 1024


def test_they_are_those_of_the_presets():
    for name in ("fashion-unet-small",):
        net = PRESETS[name].net
        assert unet_for(net["shape"]) == {key: net[key] for key in ("channels", "multipliers")}
    assert unet_for((1, 8, 8)) == {"channels": 32, "multipliers": [1, 2]}


def attends(net):
    return [name for name, module in net.named_modules() if type(module).__name__ == "Attention"]


def test_attention_is_off_where_it_would_take_seconds(caplog):
    with caplog.at_level(logging.INFO, logger="scoresde.nets.unet"):
        assert not attends(S.UNet((1, 4100), channels=8))
        assert "2050 positions" in caplog.text
    assert attends(S.UNet((1, 2048), channels=8))
    assert attends(S.UNet((1, 4100), channels=8, attention=(-1,)))
    assert not attends(S.UNet((1, 8, 8), channels=8, attention=()))
