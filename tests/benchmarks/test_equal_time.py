"""Equal time: the trainers' shared clock and the peers' networks.

Also the benchmark as a whole.
"""

import csv
import json
import math
import threading
from multiprocessing import Pipe

import pytest
import torch
from torch import nn

from benchmarks import common, equal_time, trainers
from scoresde import DDPM, Data, ScoreModel
from scoresde.errors import ArgumentError, CheckpointError, UnknownNameError
from scoresde.models import Moments
from tests.benchmarks.test_real import fashion  # noqa: F401 (a fixture)

# networks that are hardly trained, and few calls
pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.ScoreSDEWarning")


class Clock:
    """A clock that advances only when the test says so."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_turn_counts_its_own_time_only():
    """Run steps of 3 s in slices of 5 s, with a budget of 20 s.

    The 100 s that pass during the others' turns do not count.
    """
    clock, given = Clock(), []

    def wait():
        clock.now += 100

    turn = equal_time.Turn(wait, lambda: given.append(turn.steps), 20.0, 5.0, clock)
    turn.begin()
    over = False
    while not over:
        clock.now += 3
        over = turn()
    assert given == [2, 4, 6]
    assert (turn.steps, turn.seconds) == (7, 21.0)
    assert clock.now == 421


def trainer(connection, slices, facts, order, name):
    connection.send(("ready",))
    for _ in range(slices):
        assert connection.recv() == "go"
        order.append(name)
        connection.send(("pause",))
    connection.recv()
    order.append(name)
    connection.send(("done", facts))


def test_trainers_take_turns_and_the_last_continues_alone():
    order, ends, threads = [], {}, []
    for name, slices in (("a", 1), ("b", 3)):
        ends[name], other = Pipe()
        threads.append(threading.Thread(target=trainer, args=(other, slices, {"of": name}, order, name)))
        threads[-1].start()
    assert equal_time.take_turns(ends) == {"a": {"of": "a"}, "b": {"of": "b"}}
    assert order == ["a", "b", "a", "b", "b", "b"]
    for thread in threads:
        thread.join()


def test_a_trainer_that_fails_or_dies_is_named():
    here, there = Pipe()
    there.send(("failed", "wrong input"))
    with pytest.raises(RuntimeError, match="them: wrong input"):
        equal_time.take_turns({"them": here})
    here, there = Pipe()
    there.close()
    with pytest.raises(RuntimeError, match="them: it ended without a word"):
        equal_time.take_turns({"them": here})


class Constant(trainers.Peer):
    """A peer without a package.

    Its network is one number, which its sampler returns.
    """

    package, remarks, quick, own_calls = "constant", "none", {}, 7

    @classmethod
    def load(cls):
        return None

    def default_settings(self):
        return {"level": 0.5}

    @property
    def batch(self):
        return 1

    def build(self):
        net = nn.Linear(1, 1)
        net.weight.data.fill_(self.settings["level"])
        return net

    def prepare(self, data, folder):
        raise NotImplementedError

    def score_model(self):
        return ScoreModel(self.net, DDPM([0.1] * 10), time_input="ddpm", scaling=self.scaling)

    def own_samples(self, n, calls):
        return self.net.weight.detach().expand(n, *self.shape)

    def check(self, raw):
        return {}


def test_a_peer_has_the_moments_and_scale_of_its_own_units():
    """Compare a peer's units with ours at the middle of a bin.

    The peer has 2 raw/255 - 1, ours is 2 (raw + 1/2)/256 - 1.
    """
    raw = torch.randint(256, (50, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data, peer = Data("noise", raw, num_values=256), Constant((1, 2, 3))
    x = peer.scaling.bin_centres(raw, torch.float64)
    torch.testing.assert_close(x, 2 * raw.double() / 255 - 1)
    assert torch.equal(peer.scaling.to_raw(x), raw.long())
    found, expected = peer.model(data).moments, Moments.of(x)
    torch.testing.assert_close(found.mean, expected.mean)
    spread = expected.covariance + torch.eye(6) * (2 / 255) ** 2 / 12  # the noise within a bin
    torch.testing.assert_close(found.covariance, spread, rtol=1e-6, atol=1e-9)
    assert peer.ends == (0.1, None)


def test_a_peer_is_kept_with_its_settings(tmp_path, monkeypatch):
    monkeypatch.setitem(trainers.PEERS, "constant", Constant)
    with pytest.raises(UnknownNameError, match=r"leve.*did you mean 'level'"):
        Constant((1, 2, 3), {"leve": 1})
    peer = Constant((1, 2, 3), {"level": 0.25})
    raw, _ = peer.draw(5, 3, batch=2)
    assert torch.equal(raw, torch.full((5, 1, 2, 3), 64, dtype=torch.uint8))  # 63.75, rounded
    peer.save(tmp_path / "peer", steps=3)
    again, facts = trainers.load_peer(tmp_path / "peer")
    assert (again.settings, facts["steps"], again.weights) == ({"level": 0.25}, 3, 2)
    assert torch.equal(again.net.weight, peer.net.weight)
    (tmp_path / "peer" / "peer.json").write_text('{"package": "another"}')
    with pytest.raises(CheckpointError, match="another"):
        trainers.load_peer(tmp_path / "peer")


def test_differences_of_bits_are_paired():
    """Compare sets that differ by 0.1 image by image.

    The images vary by far more.
    """
    bits = torch.linspace(2, 4, 50, dtype=torch.float64)
    rows = equal_time.bits_rows({("scoresde", "flow"): bits, ("them", "flow"): bits + 0.1})
    *means, difference = [row["value"] for row in rows]
    assert means == pytest.approx([3.0, 3.1])
    assert difference == pytest.approx(-0.1)
    assert rows[-1]["stderr"] < 1e-9 < rows[0]["stderr"]
    assert rows[-1]["model"] == "scoresde - them"


@pytest.mark.parametrize("package", trainers.PEERS)
def test_a_peers_network_is_the_same_as_our_model(package):
    """Compare denoising losses and samples, where the package is installed."""
    cls = trainers.PEERS[package]
    _, left_out = common.load_peers({package: cls.load})
    if left_out:
        pytest.skip(left_out[package])
    peer = cls((1, 8, 8), cls.quick)
    peer.net.eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in peer.net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    raw = torch.randint(256, (8, 1, 8, 8), generator=generator, dtype=torch.uint8)
    found = peer.check(raw)
    assert found.pop("denoising loss") < equal_time.TOLERANCE
    assert found
    for how, value in found.items():
        assert value < 1e-4, how


@pytest.mark.slow
def test_it_runs_without_a_peer(fashion, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Run ours alone, in its own process.

    The page says what is missing.
    """
    monkeypatch.setattr(trainers.PEERS["smalldiffusion"], "module", "no_such_module")
    monkeypatch.setattr(common, "version", lambda package: None)
    net = "net.options={channels: 8, multipliers: [1], blocks: 1, num_groups: 2, dropout: 0.0}"
    training = {"data": fashion, "out": tmp_path, "trainer": "smalldiffusion", "minutes": 0.005, "set": net}
    figures = {"images": 4, "flow-calls": 18, "tolerance": 0, "samples": 8, "calls": "2,3", "epochs": 1}
    options = [f"--{name}={value}" for name, value in (training | figures).items()]
    equal_time.main([*options, "--set=train.batch_size=4", f"--threads={torch.get_num_threads()}"])
    text = (tmp_path / "equal_time.md").read_text()
    assert "left out: smalldiffusion: not installed" in text
    assert "| scoresde | flow to t = " in text
    assert (tmp_path / "equal_time.png").is_file()
    facts = json.loads((tmp_path / "trained.json").read_text())["trainers"]
    assert set(facts) == {"scoresde"}
    assert facts["scoresde"]["seconds"] >= 0.3
    with (tmp_path / "equal_time.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["calls"] for row in rows if row["model"] == "scoresde" and row["part"] == "frechet"] == ["2", "3"]
    assert all(math.isfinite(float(row["value"])) for row in rows)


def test_bad_options_are_refused():
    with pytest.raises(UnknownNameError, match="--trainer"):
        equal_time.parse(["--trainer", "nobody"])
    with pytest.raises(UnknownNameError, match="--parts"):
        equal_time.parse(["--parts", "trian"])
    with pytest.raises(ArgumentError, match="whose setting"):
        equal_time.parse(["--trainer", ",".join(trainers.PEERS), "--peer-set", "lr=1"])
    with pytest.raises(ArgumentError, match="--minutes"):
        equal_time.parse(["--minutes", "0"])
