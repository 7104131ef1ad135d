"""A benchmark's record, the list of benchmarks, and failing ones."""

import csv
import sys
from argparse import Namespace

import numpy
import pytest
import scipy
import torch
import torchdiffeq
from matplotlib.figure import Figure

import scoresde
from benchmarks import __main__ as entry
from benchmarks import common
from scoresde.errors import ArgumentError, UnknownNameError


def record(out, *, quick, **options):
    arguments = ["--peers", "a b", "--quick"]
    return common.Record(
        "quality", Namespace(quick=quick, out=out), "A title", arguments=arguments, seeds="0 to 3", **options
    )


def test_a_page_says_how_it_was_made(tmp_path):
    made = record(tmp_path, quick=True, peers=["diffusers"], left_out={"azula": common.NOT_INSTALLED})
    made.notes["device"] = "CPU"
    page = made.write([{"a": 1}], "some text").read_text()
    assert page.startswith("# A title\n\n- command: `python -m benchmarks.quality --peers 'a b' --quick`\n- run: quick")
    head = dict(line[2:].split(": ", 1) for line in page.split("\n\n")[1].splitlines())
    for package in (torch, numpy, scipy, torchdiffeq):
        released = package.__version__.partition("+")[0]  # some builds of torch leave their suffix out of the metadata
        assert f"{package.__name__} {released}" in head["versions"]
    assert f"scoresde {scoresde.__version__} ({common.commit()})" in head["versions"]
    assert f"diffusers {common.version('diffusers')}" in head["versions"]
    assert head["left out"].startswith("azula: not installed (pip install 'scoresde[bench]'")
    assert head["seeds"] == "0 to 3"
    assert head["device"] == "CPU"
    assert head["threads"] == f"{torch.get_num_threads()} of torch"
    assert "cores" in head["machine"]
    assert head["date"].endswith("UTC")
    assert " at the start, " in head["load average"]
    assert page.endswith("some text\n")


def test_quick_full_and_variant_runs_have_their_own_files(tmp_path):
    figure = Figure()
    figure.subplots().plot([0, 1])
    for quick in (True, False):
        record(tmp_path, quick=quick).write([{"a": 1}], "", figure)
    record(tmp_path, quick=False, variant="ve").write([{"a": 1}], "")
    ends = ("csv", "md", "png")
    expected = {f"quality{middle}.{end}" for middle in ("", "-quick") for end in ends}
    assert {path.name for path in tmp_path.iterdir()} == expected | {"quality_ve.csv", "quality_ve.md"}
    assert "![A title](quality-quick.png)" in (tmp_path / "quality-quick.md").read_text()
    assert "- run: full" in (tmp_path / "quality.md").read_text()


def test_rows_of_several_kinds_share_a_file(tmp_path):
    common.write_csv(tmp_path / "a.csv", [{"part": "x", "a": 1}, {"part": "y", "b": 2.5}])
    with (tmp_path / "a.csv").open() as file:
        assert list(csv.reader(file)) == [["part", "a", "b"], ["x", "1", ""], ["y", "", "2.5"]]
    table = common.table([{"a": 1.23456, "b": None}, {"c": "x|y"}])
    assert table.splitlines()[2:] == ["| 1.23 |  |  |", "|  |  | x/y |"]


def test_peers_that_do_not_load_are_left_out_with_the_reason(monkeypatch):
    loaded, left_out = common.load_peers(
        {"diffusers": lambda: 7, "no-such-peer": lambda: __import__("no_such_peer"), "torch": lambda: {}["x"]}
    )
    assert loaded == {"diffusers": 7}
    assert left_out == {"no-such-peer": common.NOT_INSTALLED, "torch": "does not import: KeyError: 'x'"}


def test_options_are_checked():
    assert common.wholes("--calls", "5,10") == [5, 10]
    with pytest.raises(ArgumentError, match=r"`--calls` must be .*, got '5,x'"):
        common.wholes("--calls", "5,x")
    assert common.names("--parts", "b,a", ("a", "b", "c")) == ["b", "a"]
    with pytest.raises(UnknownNameError, match="--parts"):
        common.names("--parts", "b,d", ("a", "b", "c"))


@pytest.mark.slow
def test_the_list_is_complete_and_imports_no_benchmark(capsys):
    found = entry.find()
    assert {"quality", "overhead", "likelihood", "training", "classes"} <= set(found)
    assert not {"common", "peers"} & set(found)
    assert sum(benchmark.quick_seconds for benchmark in found.values()) < 600
    assert entry.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, benchmark in found.items():
        module = sys.modules.get(f"benchmarks.{name}")
        assert any(line.split()[:3] == [name, str(benchmark.quick_seconds), "s"] for line in lines)
        assert module is None or module.__doc__.startswith(benchmark.line)


def test_a_name_runs_one_and_an_unknown_one_is_an_error(capsys, monkeypatch):
    given = []
    monkeypatch.setattr("benchmarks.quality.main", given.append)
    assert entry.main(["quality", "--quick", "--seeds", "2"]) == 0
    assert given == [["--quick", "--seeds", "2"]]
    assert entry.main(["qualty"]) == 2
    assert "no benchmark 'qualty'" in capsys.readouterr().err


def test_all_continues_after_a_failure_and_exits_nonzero(tmp_path, monkeypatch, capfd):
    package = tmp_path / "trial"
    package.mkdir()
    (package / "good.py").write_text("import sys\nprint('good has', *sys.argv[1:])\n")
    (package / "bad.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(entry, "FOLDER", package)
    assert entry.run_all(["bad", "good"], ["--quick"], package="trial") == 1
    shown = capfd.readouterr().out
    assert "good has --quick" in shown
    assert "bad          FAILED, exit code 3" in shown
    assert "good         done" in shown
    assert entry.run_all(["good"], [], package="trial") == 0
