"""Networks by name: configurations, options, users' classes."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.nets import ResidualMLP, build_net, net_names, net_options, register_net, registry


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def make_class(base=nn.Module):
    class Mine(base):
        def __init__(self, shape, bias=True, sizes=(1, 2)):
            super().__init__()
            self.layer = nn.Linear(shape[0], shape[0], bias=bias)

        def forward(self, x, time_input):
            return self.layer(x)

    return Mine


def test_built_in_names():
    assert {"unet", "dit", "mlp"} <= set(net_names())
    assert net_options("mlp")["width"].default == 256


@pytest.mark.parametrize("name", ["unet", "dit", "mlp"])
def test_the_page_and_the_docstring_name_every_option(name):
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    text = type(build_net({"name": name, "shape": [1, 8]})).__doc__
    options = net_options(name)
    assert [o for o in options if f"`{o}`" not in page] == []
    assert [o for o in options if not re.search(rf"^ +(\w+, )*{o}(, \w+)*:", text, re.MULTILINE)] == []


def test_unknown_name_and_option_name_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'unet'"):
        build_net({"name": "u-net", "shape": [1, 8, 8]})
    with pytest.raises(UnknownNameError, match="did you mean 'channels'"):
        build_net({"name": "unet", "shape": [1, 8, 8], "chanels": 8})


@pytest.mark.parametrize("config", [{}, {"shape": [2]}, "unet", None])
def test_a_config_needs_a_name(config):
    with pytest.raises(ArgumentError, match="'name'"):
        build_net(config)


def test_a_missing_option_is_named():
    with pytest.raises(ArgumentError, match="no 'shape'"):
        build_net({"name": "unet"})


def test_seed_fixes_weights_and_leaves_the_global_state():
    config = {"name": "mlp", "shape": [2], "width": 8}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (build_net(config, seed=s).stem.weight for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_user_class():
    net = register_net("mine")(make_class())((3,), sizes=[4, (5, 6)])
    assert net.config == {"name": "mine", "shape": [3], "bias": True, "sizes": [4, [5, 6]]}
    assert build_net(net.config).config == net.config
    assert build_net({**net.config, "bias": False}).layer.bias is None


def test_a_subclass_is_recorded_under_its_own_name():
    @register_net("wide-mlp")
    class Wide(ResidualMLP):
        def __init__(self, shape):
            super().__init__(shape, width=8, blocks=1)

    assert Wide((2,)).config == {"name": "wide-mlp", "shape": [2]}
    assert ResidualMLP((2,), width=8).config["name"] == "mlp"


def test_an_own_config_is_kept():
    cls = make_class()
    cls.config = {"name": "mine", "shape": [1]}
    assert register_net("mine")(cls)((3,)).config == {"name": "mine", "shape": [1]}


def test_what_cannot_be_registered():
    class Loose(nn.Module):
        def __init__(self, **options):
            super().__init__()

    with pytest.raises(ArgumentError, match="by ResidualMLP"):
        register_net("mlp")(make_class())
    with pytest.raises(ArgumentError, match="named arguments"):
        register_net("loose")(Loose)
    with pytest.raises(ArgumentError, match="Module"):
        register_net("number")(float)
    with pytest.raises(ArgumentError, match="name"):
        register_net("")
    assert not {"loose", "number"} & set(net_names())


def test_an_argument_that_json_cannot_hold_is_refused():
    with pytest.raises(ArgumentError, match="sizes"):
        register_net("mine")(make_class())((3,), sizes=object())


def test_a_class_can_be_registered_again():
    register_net("mine")(make_class())
    again = register_net("mine")(make_class())
    assert type(build_net({"name": "mine", "shape": [1]})) is again
