"""Two processes on the CPU against one: weights, items, files, failures."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.errors import ArgumentError
from scoresde.training import SlicedScoreMatching
from scoresde.training.checkpoints import best_checkpoint, checkpoints, load_average, load_checkpoint
from scoresde.training.distributed import Ranks, launched, process_group, share_of
from tests.training.ranks_for_tests import commands, digits, loss_aware, said, sampled, trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start(*command, world=2):
    """Start two processes that know each other, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes, timeout=120):
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def close(a, b, tolerance=1e-5):
    return all((a[key] - b[key]).abs().max() < tolerance for key in a)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return what two processes found, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "tests.training.ranks_for_tests", "same", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Return the same results from this process."""
    alone = trainer(tmp_path_factory.mktemp("alone"))
    return alone, alone.fit(digits(), held_out=digits())


def test_two_processes_find_the_weights_of_one(two, one):
    """Compare the weights of two processes with those of one.

    Batches of 9 in shares of 5 and 4; dequantisation, times, noise and dropped labels included.
    """
    for found in two[1]:
        assert close(found["state"], one[0].model.net.state_dict())
        assert close(found["pieces"], one[0].model.net.state_dict())


def test_sliced_score_matching_agrees_with_one_process(two, tmp_path):
    alone = trainer(tmp_path, objective=SlicedScoreMatching(2))
    alone.fit(digits())
    for found in two[1]:
        assert close(found["sliced"], alone.model.net.state_dict())


def test_minutes_are_those_of_the_slowest_process(two):
    """Count 6 steps of 1 s in 6 s, and the step in progress.

    The last step begins before the processes compare their clocks.
    """
    first, second = two[1]
    assert first["steps"] == second["steps"] == 7
    assert all(torch.equal(first["timed"][key], second["timed"][key]) for key in first["timed"])


def test_records_are_of_the_whole_batch_on_every_rank(two, one):
    for found in two[1]:
        assert found["losses"] == pytest.approx([record.loss for record in one[1]], rel=1e-5)
        assert found["held_out"][-1] == pytest.approx(one[1][-1].held_out, rel=1e-5)
        assert found["norms"] == pytest.approx([record.grad_norm for record in one[1]], rel=1e-4)
        assert [at for at, _ in found["levels"]] == [at for at, _ in one[1][-1].by_level]
        assert [v for _, v in found["levels"]] == pytest.approx([v for _, v in one[1][-1].by_level], rel=1e-4)


def test_a_run_goes_on_with_one_then_two_then_three_processes(tmp_path):
    """Compare 4 steps each with 12 steps of one process.

    The times are drawn by the loss that the run has seen.
    """
    alone = trainer(tmp_path / "alone", objective=loss_aware(), steps=12)
    alone.fit(digits())
    for world in (1, 2, 3):
        ended = finish(start("tests.training.ranks_for_tests", "onward", tmp_path / "run", world=world))
        assert [code for code, *_ in ended] == [0] * world, ended
    last = checkpoints(tmp_path / "run")[-1]
    assert last.name == "step-000000012"
    tensors, _ = load_checkpoint(last)
    assert close({f"net.{name}": value for name, value in alone.model.net.state_dict().items()}, tensors)


def test_what_networks_draw_themselves_differs_between_ranks(two):
    assert not torch.equal(two[1][0]["drawn"], two[1][1]["drawn"])
    tensors, _ = load_checkpoint(checkpoints(two[0] / "dropout")[-1])
    assert not torch.equal(tensors["rng.torch0"], tensors["rng.torch1"])


def test_shared_sampling_and_likelihood_count_every_item_once(two):
    for found in two[1]:
        for shared, alone in zip(found["sampled"], sampled(), strict=True):
            assert shared.shape == alone.shape
            assert torch.allclose(shared, alone, rtol=0, atol=1e-6)
        assert torch.equal(found["one"], torch.ones(1, 2))
    for world in (1, 2, 3, 7):
        for n in (1, 2, 5, 20):
            ranks = Ranks()
            ranks.world = world
            items = []
            for ranks.rank in range(world):
                items += share_of(n, ranks)
            assert items == list(range(n))


def test_a_checkpoint_of_two_is_one_of_one(two, one):
    """Resume in one process what two began.

    The averages by name equal those of one process.
    """
    root = two[0] / "run"
    assert [path.name for path in checkpoints(root)] == ["step-000000004", "step-000000008"]
    assert best_checkpoint(root) is not None
    for name in ("fast", "slow"):
        average = load_average(checkpoints(root)[-1], name).net.state_dict()
        assert close(average, one[0].averaged_model(name).net.state_dict())
    again = trainer(root)
    again.resume(checkpoints(root)[0])
    again.fit(digits())
    assert close(again.model.net.state_dict(), one[0].model.net.state_dict())


def test_one_stop_request_ends_all_and_rank_0_calls_hooks(two):
    steps = [found["stopped"] for found in two[1]]
    assert steps[0] == steps[1] < 10
    assert int(checkpoints(two[0] / "stopped")[-1].name[5:]) == steps[0]
    assert {path.name for path in two[0].glob("hook*")} == {"hook0.txt"}


def test_a_dead_rank_ends_the_run_with_a_clear_message(tmp_path):
    processes = start("tests.training.ranks_for_tests", "die", tmp_path)
    (code, _, errors), dead = finish(processes, timeout=60)
    assert dead[0] == 1
    assert code == 3, errors
    assert "rank 0 lost another process of this run" in errors
    assert "step-000000005" in [path.name for path in checkpoints(tmp_path / "run")]


def results(text):
    """Return the lines of results, without paths, durations and progress."""
    lines = [line for line in text.splitlines() if not re.match(r"(sampling|scoring) ", line)]
    return [re.sub(r"in [\d.]+ s|/.*", "", line) for line in lines]


def test_commands_on_several_processes_print_and_write_once(two, tmp_path):
    """Run train, sample and likelihood on two processes.

    They print and write, once, what one process does.
    """
    out = two[0] / "commands"
    (trained, drawn, scored), *others = (found["said"] for found in two[1])
    assert others == [["", "", ""]]
    assert "2 processes" in trained
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [2, 4]
    alone = shutil.copytree(out, tmp_path / "run")
    _, draw, score = commands(tmp_path)
    for shared, (command, *rest) in ((drawn, draw), (scored, score)):
        assert results(shared) == results(said(command, alone, *rest[1:]))
    a, b = (np.load(folder / "samples-dpm.npz")["x"] for folder in (out, alone))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    a, b = (np.loadtxt(folder / "likelihood.csv", delimiter=",", skiprows=1) for folder in (out, alone))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_a_batch_needs_an_item_for_every_process_and_piece(tmp_path):
    assert not launched()
    with process_group() as ranks:
        assert (ranks.rank, ranks.world) == (0, 1)
    with pytest.raises(ArgumentError, match="accumulate"):
        trainer(tmp_path, batch_size=2, accumulate=3)
