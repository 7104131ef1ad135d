"""The command line on small runs: files, output, and resuming."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import scoresde
from scoresde import DPMSolver, ScoreModel, load_data, sample
from scoresde.app import baselines, showing
from scoresde.app.config import keys
from scoresde.app.processes import PROCESSES
from scoresde.app.runs import RunFolder
from scoresde.data import from_array
from scoresde.files import load_tensors
from scoresde.guidance import classifier_free_guidance, classifier_guidance
from scoresde.random import spawn_generators
from scoresde.training import NoiseAwareClassifier
from tests.app.runs_for_tests import QUICK_SCORES, TINY, TINY_POINTS, error, invoke, train


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return a trained run, to be read only."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    train(out)
    return out


@pytest.fixture
def run(digits, tmp_path):
    """Return a copy of the run to write into."""
    return shutil.copytree(digits, tmp_path / "run")


def test_help_and_version_need_no_torch():
    for arguments in (["--help"], ["--version"], ["train", "--help"], ["trian"]):
        code = (
            "import sys; from scoresde.app.cli import main\n"
            f"try: main({arguments!r})\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules, 'torch was imported'"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "scoresde", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"scoresde, version {scoresde.__version__}\n"


COMMANDS = ["demo", "train", "sample", "likelihood", "evaluate", "report"]
COMMANDS += ["inpaint", "colorize", "restore", "classifier", "settings"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    text = invoke(command, "--help").output
    assert f"scoresde {command} " in text.partition("Example")[2]
    assert command in invoke("--help").output


def test_settings_are_listed_by_section():
    every, section = invoke("settings").output, invoke("settings", "train").output
    assert section.count("| `train.") == every.count("| `train.") == len(list(keys("train")))
    assert "`sde.name`" in every
    assert "`sde.name`" not in section
    assert "did you mean 'train'" in error("settings", "trains")


def test_a_run_folder_holds_what_it_promises(digits):
    assert {p.name for p in digits.iterdir()} == {"config.yaml", "meta.json", "log.jsonl", "log.csv", "checkpoints"}
    assert [p.name for p in sorted((digits / "checkpoints").iterdir())] == ["step-000000002", "step-000000004"]
    records = [json.loads(line) for line in (digits / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    assert all({"loss", "steps_per_second", "seconds_left", "lr"} <= record.keys() for record in records)
    run = RunFolder.open(digits)
    assert (run.config.train.steps, run.config.train.batch_size, run.step) == (4, 8, 4)
    assert run.meta["scoresde"] == scoresde.__version__
    assert run.meta["stages"]["train"]["step"] == 4
    model = ScoreModel.from_pretrained(digits / "checkpoints" / "step-000000004")
    assert model.scaling == load_data("digits")[0].scaling


@pytest.mark.slow
def test_options_override_a_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {steps: 9, lr: 0.5}\nsde: {name: subvp}\n")
    train(tmp_path / "run", "-c", tmp_path / "c.yaml", "--set", "train.lr=1e-3", "--seed", "7", steps=2)
    config = RunFolder.open(tmp_path / "run").config
    assert (config.train.steps, config.train.lr, config.train.seed, config.sde.name) == (2, 1e-3, 7, "subvp")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["pc", "ode", "dpm", "ddim"])
def test_samples_are_a_function_of_the_seed(run, tmp_path, sampler):
    command = ["sample", run, "-n", 3, "--sampler", sampler, "--steps", 2]
    output = invoke(*command, "--seed", 1).output
    first = np.load(run / f"samples-{sampler}.npz")
    assert "network calls" in output
    assert str(run / f"samples-{sampler}.npz") in output
    assert first["x"].shape == first["raw"].shape == (3, 1, 8, 8)
    assert first["raw"].dtype == np.uint8
    assert first["raw"].max() <= 16
    assert (run / "pictures" / f"samples-{sampler}.png").is_file()
    invoke(*command, "--seed", 1, "--out", tmp_path / "again.npz")
    invoke(*command, "--seed", 2, "--out", tmp_path / "other.npz")
    np.testing.assert_array_equal(first["x"], np.load(tmp_path / "again.npz")["x"])
    assert np.abs(first["x"] - np.load(tmp_path / "other.npz")["x"]).max() > 0.1
    assert (tmp_path / "other.png").is_file()
    invoke(*command, "--seed", 1, "-n", 2, "--set", "sample.batch=1", "--out", tmp_path / "fewer.npz")
    np.testing.assert_allclose(np.load(tmp_path / "fewer.npz")["x"], first["x"][:2], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_likelihood_lists_every_item(run):
    output = invoke("likelihood", run, "-n", 5, *QUICK_SCORES).output
    rows = list(csv.DictReader((run / "likelihood.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(5))
    bits = np.array([float(row["bits_per_dim"]) for row in rows])
    nats = np.array([float(row["nats"]) for row in rows])
    np.testing.assert_allclose(bits, -nats / (64 * math.log(2)), atol=1e-4)
    expected = f"{bits.mean():.3f} +- {bits.std(ddof=1) / math.sqrt(5):.3f} bits/dim  (N = 5"
    assert expected in output
    for word in ("rk4", "network calls", "t_min", f"{math.log2(17 / 2):+.4f} bits/dim due to the scaling"):
        assert word in output


@pytest.mark.slow
def test_a_model_of_bin_centres_is_scored_with_its_own_noise(tmp_path):
    train(tmp_path / "run", "--set", "train.dequantization=truncated-normal", steps=2)
    model = RunFolder.open(tmp_path / "run").model()
    t_min = model.sde.time_of(scoresde.data.TruncatedNormal().log_snr(model.scaling)).item()
    assert f"t_min = {t_min:.3g}" in invoke("likelihood", tmp_path / "run", "-n", 2, *QUICK_SCORES).output


@pytest.mark.slow
def test_other_data_are_scored_whole_and_in_order(run, tmp_path):
    raw = load_data("digits")[1].raw[:4, 0].numpy()
    np.save(tmp_path / "mine.npy", raw)
    np.save(tmp_path / "turned.npy", raw[::-1])
    for name in ("mine", "turned"):
        invoke("likelihood", run, "--data", tmp_path / f"{name}.npy", "--set", "likelihood.steps=40")
    mine, turned = (
        [float(row["bits_per_dim"]) for row in csv.DictReader((run / f"likelihood-{name}.csv").open())]
        for name in ("mine", "turned")
    )
    assert len(mine) == 4
    # dequantisation noise differs by position, images by more, so the order can be recovered
    assert np.corrcoef(mine, turned[::-1])[0, 1] > 0.9


@pytest.mark.slow
def test_a_second_set_is_compared_and_a_second_model_paired(run, tmp_path):
    other = tmp_path / "other"
    train(other, "--seed", 5)
    command = ["likelihood", run, "-n", 6, *QUICK_SCORES, "--against", "shuffled-pixels", "--paired", other]
    output = invoke(*command).output
    assert "AUROC of log p, digits against digits, shuffled-pixels: " in output.replace(" (held-out)", "")
    held_out, spoiled, both = (
        list(csv.DictReader((run / f"likelihood{end}.csv").open()))
        for end in ("", "-against-shuffled-pixels", "-paired-other")
    )
    nats = [[float(row["nats"]) for row in rows] for rows in (held_out, spoiled)]
    area = np.mean([(a > b) + 0.5 * (a == b) for a in nats[0] for b in nats[1]])
    assert f"shuffled-pixels: {area:.4f} +- " in output
    difference = np.array([float(row["difference"]) for row in both])
    assert f"{difference.mean():.4f} +- {difference.std(ddof=1) / 6**0.5:.4f} bits/dim, item by item" in output
    invoke("likelihood", other, "-n", 6, *QUICK_SCORES)
    alone = list(csv.DictReader((other / "likelihood.csv").open()))
    assert [row["bits_per_dim"] for row in alone] == [row["other"] for row in both]  # the same noise and probes
    assert [row["bits_per_dim"] for row in held_out] == [row["run"] for row in both]
    for name in ("likelihood", "likelihood-against-shuffled-pixels"):
        assert (run / "pictures" / f"{name}-histogram.png").is_file()


@pytest.mark.slow
def test_evaluation_compares_and_is_kept(run, monkeypatch):
    monkeypatch.setattr(baselines, "COMPONENTS", 5)
    monkeypatch.setattr(showing, "STRIP_STEPS", 10)
    output = invoke("evaluate", run, "-n", 6, "--corrupted", 3, *QUICK_SCORES).output
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["held_out"]["n"] == 6
    assert {kind: figures["n"] for kind, figures in evaluation["corrupted"].items()} == {
        "shuffled-pixels": 3,
        "inverted": 3,
    }
    assert list(evaluation["baselines"]) == ["Gaussian", "mixture of 5 Gaussians"]
    for figures in (evaluation["held_out"], *evaluation["corrupted"].values()):
        values = torch.tensor(figures["values"])
        assert values.mean().item() == pytest.approx(figures["mean"], abs=1e-3)
        assert (values.std() / len(values) ** 0.5).item() == pytest.approx(figures["stderr"], abs=1e-3)
        assert f"{figures['mean']:.3f} +- {figures['stderr']:.3f}" in output
    gap = evaluation["baselines"]["Gaussian"]["gap"]["mean"]
    difference = evaluation["held_out"]["mean"] - evaluation["baselines"]["Gaussian"]["mean"]
    assert gap == pytest.approx(difference, abs=1e-6)
    text = invoke("report", run).output
    assert str(run / "report.html") in text
    page = (run / "report.html").read_text()
    assert f"{evaluation['held_out']['mean']:.3f} ± {evaluation['held_out']['stderr']:.3f}" in page


@pytest.mark.slow
def test_baselines_find_the_density_of_gaussian_data(monkeypatch):
    """Compare the baselines with the entropy of N(0, s) data.

    Two independent entries have entropy log(2 pi e s^2). The mean of 4000 held-out log p has a standard error of
    1/sqrt(4000) = 0.016 nats. Five of them (false alarm 6e-7) bound the Gaussian's error, and the mixture's with the
    price of fitting ten components.
    """
    monkeypatch.setattr(baselines, "COMPONENTS", 10)
    data = from_array(3 * np.random.default_rng(0).normal(size=(8000, 2)))
    gaussian, mixture = baselines.fit_baselines(*data.split(4000))
    truth = -(1 + math.log(2 * math.pi * 9))
    assert gaussian.log_prob.mean().item() == pytest.approx(truth, abs=0.08)
    assert truth - 0.2 < mixture.log_prob.mean().item() < truth + 0.08


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["subvp", "ve", "vp-cosine", "flow", "ddpm"])
def test_another_process_is_one_option(tmp_path, sde):
    train(tmp_path / "run", "--sde", sde, steps=2)
    invoke("sample", tmp_path / "run", "-n", 2, "--steps", 3)
    invoke("likelihood", tmp_path / "run", "-n", 2, *QUICK_SCORES)
    assert np.isfinite(np.load(tmp_path / "run" / "samples-dpm.npz")["x"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_the_time_input_can_be_the_time(tmp_path, predicts):
    train(tmp_path / "run", "--set", "model.time_input=time", "--set", f"model.predicts={predicts}", steps=2)
    assert RunFolder.open(tmp_path / "run").model().net.config["embedding_scale"] == 1000.0


@pytest.mark.slow
def test_a_conditional_model_draws_the_given_class(tmp_path):
    run = tmp_path / "run"
    train(run, "--set", "train.conditional=true", steps=2)
    assert RunFolder.open(run).model().net.config["classes"] == 10
    invoke("sample", run, "-n", 3, "--label", 7, "--steps", 2)
    assert np.load(run / "samples-dpm.npz")["labels"].tolist() == [7, 7, 7]
    invoke("sample", run, "-n", 12, "--steps", 2)
    assert np.load(run / "samples-dpm.npz")["labels"].tolist() == [*range(10), 0, 1]
    invoke("likelihood", run, "-n", 2, *QUICK_SCORES)


@pytest.mark.slow
def test_guidance_from_the_command_line(tmp_path):
    """Compare samples of a guided model with those of the library.

    A model without "no class" cannot be guided.
    """
    run = tmp_path / "run"
    train(run, "--set", "train.conditional=true", "--set", "train.label_dropout=0.2", steps=2)
    settings = ["-n", 3, "--label", 3, "--sampler", "dpm", "--steps", 4]
    invoke("sample", run, *settings, "--guidance", 2)
    found = torch.from_numpy(np.load(run / "samples-dpm.npz")["x"])
    model = classifier_free_guidance(RunFolder.open(run).model(), 2.0)
    generators = spawn_generators(torch.Generator().manual_seed(0), 3)
    cond = {"y": torch.full((3,), 3)}
    expected = sample(model, (3, 1, 8, 8), DPMSolver(), 4, cond=cond, generator=generators)
    assert torch.equal(found, expected)
    assert "a number >= 0" in error("sample", run, "--guidance", -1)
    assert "sample.guidance" in error("sample", run, "--guidance", 2, "--set", "train.label_dropout=0")

    invoke("sample", run, *settings, "--guidance", 2, "--interval", -3, 4, "--rescale", 0.5)
    found = torch.from_numpy(np.load(run / "samples-dpm.npz")["x"])
    model = classifier_free_guidance(RunFolder.open(run).model(), 2.0, (-3.0, 4.0), 0.5)
    generators = spawn_generators(torch.Generator().manual_seed(0), 3)
    assert torch.equal(found, sample(model, (3, 1, 8, 8), DPMSolver(), 4, cond=cond, generator=generators))
    assert "low < high" in error("sample", run, "--guidance", 2, "--interval", 4, -3)
    assert "sample.rescale" in error("sample", run, "--guidance", 2, "--rescale", 1.5)
    assert "<= 1" in error("sample", run, "--guidance", 2, "--rescale", 1.5)
    assert "null without sample.guidance" in error("sample", run, "--rescale", 0.5)
    assert "0 to 9" in error("sample", run, "--label", 10)


@pytest.mark.slow
def test_a_classifier_is_trained_and_guides(run, tmp_path):
    """Guide a model without classes by a classifier.

    The samples equal those of the library with the same classifier.
    """
    output = invoke("classifier", run, "--steps", 3, "--batch-size", 8).output
    assert "accuracy on 360 held-out items" in output
    folder = run / "classifier"
    classifier = NoiseAwareClassifier.from_pretrained(folder)
    settings = ["-n", 3, "--steps", 4, "--classifier", folder]
    invoke("sample", run, *settings, "--label", 3, "--scale", 2)
    found = np.load(run / "samples-dpm.npz")
    assert found["labels"].tolist() == [3, 3, 3]
    model = classifier_guidance(RunFolder.open(run).model(), classifier, 2.0)
    generators, cond = spawn_generators(torch.Generator().manual_seed(0), 3), {"y": torch.full((3,), 3)}
    expected = sample(model, (3, 1, 8, 8), DPMSolver(), 4, cond=cond, generator=generators)
    assert torch.equal(torch.from_numpy(found["x"]), expected)
    assert "0 to 9" in error("sample", run, *settings, "--label", 10)
    assert "sample.classifier" in error("sample", run, "--scale", 2)
    assert "config.json" in error("sample", run, "--classifier", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["sde"]["beta_max"] = 12.0
    (folder / "config.json").write_text(json.dumps(config))
    assert "one under VPSDE(beta_min=0.1, beta_max=20)" in error("sample", run, *settings)
    moons = tmp_path / "moons"
    train(moons, "--data", "two-moons", steps=2, options=TINY_POINTS)
    assert "of 64 entries" in error("sample", moons, *settings)
    assert "without labels" in error("classifier", moons)


@pytest.mark.slow
def test_the_report_of_a_conditional_run_has_a_row_per_class(tmp_path, monkeypatch):
    drawn = []

    def remember(rows):
        drawn.append({name: np.asarray(images) for name, images in rows.items()})
        return rows_of_images(rows)

    rows_of_images = showing.plots.rows_of_images
    monkeypatch.setattr(showing.plots, "rows_of_images", remember)
    monkeypatch.setattr(showing, "STRIP_STEPS", 5)
    monkeypatch.setattr(showing, "A_CLASS", 2)
    run = tmp_path / "run"
    train(run, "--set", "train.conditional=true", "--set", "train.label_dropout=0.2", "--set", "sample.n=2")
    invoke("report", run)
    assert "guidance of scale 2" in (run / "report.html").read_text()
    assert (run / "pictures" / "classes.png").is_file()
    assert list(drawn[0]) == [str(k) for k in range(10)]
    model = classifier_free_guidance(RunFolder.open(run).model(), 2.0)
    generators, cond = (
        spawn_generators(torch.Generator().manual_seed(0), 20),
        {"y": torch.arange(10).repeat_interleave(2)},
    )
    expected = sample(model, (20, 1, 8, 8), DPMSolver(), 3, cond=cond, generator=generators)
    np.testing.assert_allclose(np.concatenate(list(drawn[0].values())), load_data("digits")[0].to_image(expected))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "net"), [((5,), "ResidualMLP"), ((2, 12), "UNet")])
def test_vectors_and_series_run_the_same_commands(tmp_path, shape, net):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(60, *shape)))
    options = [] if net == "UNet" else ["--set", "net.options={width: 8, blocks: 1}"]
    train(tmp_path / "run", "--data", tmp_path / "data.npy", *(options or TINY), options=["--batch-size", "8"])
    assert type(RunFolder.open(tmp_path / "run").model().net).__name__ == net
    invoke("sample", tmp_path / "run", "-n", 4, "--steps", 3)
    output = invoke("likelihood", tmp_path / "run", "-n", 4, "--set", "likelihood.method=rk4", *QUICK_SCORES).output
    assert "nats" in output
    invoke("report", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_every_process_runs_every_command(tmp_path, name):
    """Train by name alone; then sample, score and report."""
    run = tmp_path / "run"
    train(run, "--data", "two_moons", "--sde", name, steps=3, options=TINY_POINTS)
    invoke("sample", run, "-n", 4, "--steps", 3)
    assert "nats" in invoke("likelihood", run, "-n", 4, *QUICK_SCORES).output
    invoke("report", run, *QUICK_SCORES)
    assert PROCESSES[name].title in (run / "report.html").read_text()


def test_points_are_scored_in_nats_with_the_exact_trace(tmp_path):
    train(tmp_path / "run", "--data", "two_moons", steps=3, options=TINY_POINTS)
    assert "nats" in invoke("likelihood", tmp_path / "run", *QUICK_SCORES).output
    rows = list(csv.DictReader((tmp_path / "run" / "likelihood.csv").open()))
    assert len(rows) == 20
    assert {float(row["stderr_nats"]) for row in rows} == {0.0}


# ---- stopping and resuming ------------------------------------------------------------------------------------------


def weights(run, step: int):
    return load_tensors(run / "checkpoints" / f"step-{step:09d}" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_resumes_bit_for_bit(digits, tmp_path, monkeypatch, signum, code):
    out = tmp_path / "a run"
    log = RunFolder.log

    def stop_at_2(self, record):
        log(self, record)
        signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", stop_at_2)
        stopped = invoke("train", "--out", out, "--steps", 4, *TINY, code=code)
    assert f"scoresde train --out '{out}' --resume" in stopped.output
    assert RunFolder.open(out).step == 2
    (out / "log.jsonl").open("a").write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # what a crash leaves
    resumed = invoke("train", "--out", out, "--resume")
    assert "from step 2" in resumed.output
    for name, value in weights(digits, 4).items():
        assert torch.equal(value, weights(out, 4)[name]), name
    assert [record["step"] for record in RunFolder.open(out).records()] == [2, 4]
    assert "already" in invoke("train", "--out", out, "--resume").output


@pytest.mark.slow
def test_ctrl_c_from_outside(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "scoresde", "train", "--out", str(out), "--steps", "100000", *TINY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert f"scoresde train --out {out} --resume" in output
    assert "Traceback" not in errors
    step = RunFolder.open(out).step
    invoke("train", "--out", out, "--resume", "--steps", step + 2)
    assert RunFolder.open(out).step == step + 2
    assert RunFolder.open(out).config.train.steps == step + 2


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_restarts(digits, tmp_path):
    out = tmp_path / "run"
    train(out)
    shutil.rmtree(out / "checkpoints")
    invoke("train", "--out", out, "--resume")
    for name, value in weights(digits, 4).items():
        assert torch.equal(value, weights(out, 4)[name]), name
