"""Settings: round trips, precedence, and errors that name the key.

They also suggest the nearest valid name.
"""

import errno
import os
import re
from dataclasses import FrozenInstanceError, fields
from typing import get_args

import numpy as np
import pytest
import torch
import yaml

from scoresde import DDPM, NCSN, VESDE, VPSDE, FlowSDE, SubVPSDE
from scoresde.app import build
from scoresde.app.config import RunConfig, SDEName, keys
from scoresde.app.config_files import load_config, save_config
from scoresde.app.presets import PRESETS, preset_for
from scoresde.app.processes import PROCESSES, make_sde
from scoresde.app.reference import config_reference
from scoresde.data import from_array
from scoresde.data.sources import SOURCES
from scoresde.errors import ConfigError, UnknownNameError
from scoresde.nets import build_net
from scoresde.nets.presets import PRESETS as NET_PRESETS
from scoresde.nets.presets import net_preset
from tests.marks import first_fast


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_without_a_preset_are_the_fields():
    assert load_config(preset="none") == RunConfig()


def test_saved_config_reads_back_equal_and_names_every_key(tmp_path):
    overrides = ["train.lr=1e-4", "net.options={channels: 48, attention: [1]}", "data.source='a: b #c'", "sde.name=ve"]
    config = load_config(overrides=overrides)
    path = save_config(config, tmp_path / "new" / "config.yaml")
    assert load_config(path) == config
    values = yaml.safe_load(path.read_text())
    assert {f"{s}.{k}" for s, block in values.items() for k in block} == {one.key for one in keys()}
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def test_a_saved_preset_run_is_not_changed_by_the_preset(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS["digits"].settings, "net", {"name": "unet", "options": {"channels": 64}})
    assert load_config().net.options == {"channels": 64}
    plain = load_config(preset="none", overrides=["net.name=unet"])
    assert load_config(save_config(plain, tmp_path / "c.yaml")) == plain


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = save_config(load_config(), tmp_path / "config.yaml")
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_config(load_config(overrides=["train.steps=7"]), path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_precedence_is_defaults_preset_file_overrides(tmp_path):
    path = write(tmp_path, "train: {steps: 10, lr: 3e-3}\nsde:\n")
    config = load_config(path, overrides=["train.steps=11", "train.steps=12"])
    assert (config.train.steps, config.train.lr) == (12, 3e-3)
    assert config.train.warmup == PRESETS["digits"].settings["train"]["warmup"] != RunConfig().train.warmup
    assert config.train.keep == RunConfig().train.keep


@pytest.mark.parametrize("source", ["two-moons", "two_moons", "gaussian-grid"])
def test_toys_take_their_preset(source):
    config = load_config(overrides=[f"data.source={source}"])
    assert preset_for(source) == "toy2d"
    assert config.train.batch_size == PRESETS["toy2d"].settings["train"]["batch_size"]
    assert load_config(overrides=[f"data.source={source}", "train.batch_size=3"]).train.batch_size == 3


def test_preset_can_be_named_or_refused():
    steps = PRESETS["toy2d"].settings["train"]["steps"]
    assert load_config(preset="toy2d").train.steps == steps
    assert load_config(overrides=["data.source=some/folder"]).train == RunConfig().train
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load_config(preset="digit")


def test_every_embedded_source_has_a_preset():
    assert all(preset_for(source) for source in SOURCES)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_settings(name):
    load_config(preset=name)


def test_options_replace_those_of_a_networks_preset(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS["digits"].settings, "net", {"name": "unet", "options": {"channels": 64, "blocks": 2}})
    assert load_config(overrides=["net.options.channels=8"]).net.options == {"channels": 8, "blocks": 2}
    assert load_config(write(tmp_path, "net: {options: {channels: 8}}")).net.options == {"channels": 8}
    assert load_config(overrides=["net.name=mlp"]).net.options == {}
    assert PRESETS["digits"].settings["net"]["options"] == {"channels": 64, "blocks": 2}


@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("train.lr=1e-4", 1e-4),
        ("train.clip=null", None),
        ("train.clip=2", 2.0),
        ("train.deterministic=true", True),
        ("train.lr_decay=none", "none"),
        ("data.held_out=0.25", 0.25),
        ("data.held_out=360", 360),
        ("data.source='2024'", "2024"),
    ],
)
def test_override_values_are_yaml(override, got):
    key = override.partition("=")[0]
    section, name = key.split(".")
    value = getattr(getattr(load_config(overrides=[override]), section), name)
    assert value == got
    assert type(value) is type(got)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.stpes", "train.steps"),
        ("train.learning_rate", "train."),
        ("trian.steps", "train.steps"),
        ("trian", "train"),
        ("steps", "train.steps"),
        ("train.rtol", "sample.rtol"),
        ("sampler", "sample"),
        ("sde.betamax", "sde.beta_max"),
        ("likelyhood.probes", "likelihood.probes"),
    ],
)
def test_unknown_key_names_itself_and_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}") as error:
        load_config(overrides=[f"{key}=1"])
    assert error.value.argument == key
    assert "unknown key" in error.value.got


def test_unknown_key_of_a_file_has_its_full_name(tmp_path):
    with pytest.raises(ConfigError, match=r"`trian\.steps` must be .*, got an unknown key.*'train\.steps'"):
        load_config(write(tmp_path, "trian: {steps: 3}"))
    with pytest.raises(ConfigError, match=r"`zzz\.qq` must be a key of a section: data, sde.*, got an unknown key"):
        load_config(write(tmp_path, "zzz: {qq: 3}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=many", "`train.steps` must be a positive integer.*, got 'many'"),
        ("train.steps=1.5", "`train.steps` must be a positive integer.*, got 1.5"),
        ("train.steps=0", "`train.steps` must be a positive integer.*, got 0"),
        ("train.steps=true", "`train.steps` must be a positive integer.*, got True"),
        ("train.steps=", "`train.steps` must be a positive integer.*, got None"),
        ("train.steps.a=1", "`train.steps` must be a positive integer.*, got a mapping"),
        ("train.lr=.nan", "`train.lr` must be a positive number.*, got nan"),
        ("train.lr=.inf", "`train.lr` must be a positive number.*, got inf"),
        ("train.clip=-1", "`train.clip` must be a positive number, or null.*, got -1"),
        ("train.deterministic=1", "`train.deterministic` must be true or false.*, got 1"),
        ("data.source=7", "`data.source` must be text.*, got 7"),
        ("data.held_out=1.0", "`data.held_out` must be an integer >= 1 (a count) or a fraction.*, got 1.0"),
        ("data.held_out=[1]", "`data.held_out` must be a positive number, or null.*, got [1]"),
        ("likelihood.t_min=1", "`likelihood.t_min` must be a number > 0 and < 1, or null.*, got 1"),
        ("net.options=3", "`net.options` must be a mapping.*, got 3"),
        (
            "sde.name=vpp",
            "`sde.name` must be one of 'vp', 'vp-cosine', 'subvp', 've', 've-linear', 'flow', 'ddpm', 'ddpm-cosine', 'ncsn', got 'vpp' (did you mean 'vp'?)",  # noqa: E501
        ),
        ("train.betas=[0.9]", "`train.betas` must be 2 numbers >= 0 and < 1, got [0.9]"),
        ("train.betas=[0.9, 1]", "`train.betas` must be 2 numbers >= 0 and < 1, got [0.9, 1]"),
        ("train.accumulate=100", "`train.accumulate` must be at most batch_size = 64, got 100"),
        ("train.label_dropout=0.1", "`train.label_dropout` must be 0 unless `conditional` is true, got 0.1"),
        ("train.ema_half_life={a b: 1}", "`train.ema_half_life` must be a mapping with names of letters.*, got 'a b'"),
        ("sample.interval=[1, 0]", "`sample.interval` must be two log-SNRs [low, high].*or null, got [1.0, 0.0]"),
        ("train=5", "`train` must be a section with the keys steps, minutes.*, got 5"),
        ("train=[5]", "`train` must be a section.*, got a list"),
        ("train.steps", "`override` must be section.key=value.*, got 'train.steps'"),
        ("=5", "`override` must be section.key=value.*, got '=5'"),
        ("train.lr=[1", "`train.lr` must be .*, got malformed YAML on line 1"),
    ],
)
def test_bad_values_name_key_value_and_expectation(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(overrides=[override])
    assert re.match(re.escape(message).replace(r"\.\*", ".*"), str(error.value)), error.value


def test_malformed_files(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml` must be .*, got malformed YAML on line 3"):
        load_config(write(tmp_path, "train:\n  steps: 3\n bad: [\n"))
    with pytest.raises(ConfigError, match=r"line 3.*'steps' given twice"):
        load_config(write(tmp_path, "train:\n  steps: 3\n  steps: 4\n"))
    with pytest.raises(ConfigError, match=r"a mapping with the sections data, sde.*, got a list"):
        load_config(write(tmp_path, "- 1\n"))
    with pytest.raises(ConfigError, match=os.strerror(errno.ENOENT)):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"data: {source: \xe9}")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")
    assert load_config(write(tmp_path, "")) == load_config()


def test_yaml_cannot_build_objects(tmp_path):
    with pytest.raises(ConfigError, match="malformed YAML on line 1"):
        load_config(write(tmp_path, "data: {source: !!python/object/apply:os.getcwd []}"))


def test_reference_has_every_key_with_default_and_description():
    table = config_reference()
    for key, _, _, text in keys():
        line = next(line for line in table.splitlines() if line.startswith(f"| `{key}` |"))
        assert text in line
        assert len(text) > 8
    assert "| `sde.beta_max` | `null` | a positive number, or null |" in table
    assert all(f"| {name} |" in table for name in PRESETS)
    assert [one.key for one in keys("sde")][:2] == ["sde.name", "sde.beta_min"]
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        list(keys("trains"))


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        load_config().train.steps = 3


@first_fast("name", NET_PRESETS)
def test_a_networks_preset_is_its_papers_run(name):
    """Check that a network's preset is a complete run.

    The settings are those of the preset, and the network has its size.
    """
    preset = net_preset(name)
    config = load_config(None, name)
    for section, values in preset.run.items():
        for key, value in values.items():
            found = getattr(getattr(config, section), key)
            assert found == value, (section, key)
    shape = preset.net["shape"]
    data = from_array(np.zeros((4, *shape), np.uint8) + np.arange(4, dtype=np.uint8).reshape(-1, 1, 1, 1))
    with torch.device("meta"):
        net = build.net(config, data)
        expected = build_net(preset.net)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in expected.parameters())
    sde = make_sde(config.sde, data)
    if config.sde.name == "ddpm":
        assert torch.equal(sde.betas, DDPM.linear(1000).betas)
    assert load_config(None, name, ["train.lr=1e-3"]).train.lr == 1e-3


def points(n):
    return from_array(np.random.default_rng(0).normal(size=(n, 2)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sde.name=ddpm", "sde.beta_max=20"], r"`sde\.beta_max` must be"),
        (["sde.name=vp", "sde.beta_max=0.01"], r"`sde\.beta_max` must be"),
        (["sde.name=ve", "sde.sigma_max=0.001"], r"`sde\.sigma_max` must be .*, got 0.001"),
    ],
)
def test_a_process_checks_its_own_settings(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_sde(load_config(None, "none", overrides).sde, points(200))


@pytest.mark.parametrize(
    ("name", "process"),
    [("vp", VPSDE()), ("subvp", SubVPSDE()), ("ddpm", DDPM.linear()), ("flow", FlowSDE())],
)
def test_a_process_has_its_own_defaults(name, process):
    assert make_sde(load_config(None, "none", [f"sde.name={name}"]).sde, points(200)).config == process.config


def test_every_process_has_a_name():
    assert set(PROCESSES) == set(get_args(SDEName))
    data = points(200)
    for name, process in PROCESSES.items():
        config = load_config(None, "none", [f"sde.name={name}"]).sde
        assert make_sde(config, data).config["name"].split("-")[0] == name.split("-")[0]
        assert set(process.options) <= {field.name for field in fields(config)}
    ncsn = make_sde(load_config(None, "none", ["sde.name=ncsn", "sde.levels=20", "sde.sigma_min=0.1"]).sde, data)
    assert isinstance(ncsn, NCSN)
    assert (ncsn.L, ncsn.sigmas[0].item()) == (20, pytest.approx(0.1))


def test_ve_takes_its_noise_from_the_data():
    data = points(200)
    assert make_sde(load_config(None, "none", ["sde.name=ve"]).sde, data) == VESDE.for_data(data)
    config = load_config(None, "none", ["sde.name=ve", "sde.sigma_min=0.1"])
    assert make_sde(config.sde, data) == VESDE.for_data(data, sigma_min=0.1)
