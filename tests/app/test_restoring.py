"""Inpainting, colouring and other restorations from the command line.

Also the figures that they report.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from scoresde import load_data
from scoresde.app import showing
from scoresde.app.observing import TASKS, Problem, restoration
from scoresde.app.restored import expected_coverage, load_records, measure
from scoresde.app.restoring import METHODS, SAMPLERS
from scoresde.app.runs import RunFolder
from scoresde.data import from_array
from scoresde.errors import RunFolderError
from scoresde.guidance import Inpainting
from tests.app.runs_for_tests import TINY_POINTS, error, invoke, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::scoresde.errors.SamplingWarning")]

QUICK = ["--samples", 2, "--limit", 3, "--steps", 3]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return a trained run, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    train(out, steps=2)
    return out


@pytest.fixture
def run(digits, tmp_path):
    """Return a copy of the run, to be changed."""
    return shutil.copytree(digits, tmp_path / "run")


def read(folder):
    with np.load(folder / "arrays.npz") as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays if name != "config"}
    return found, json.loads((folder / "figures.json").read_text())


def test_figures_of_exact_posterior_draws():
    """Compare the figures of exact posterior draws with their expectations.

    Half of the entries, all N(0, 1), are observed with noise s, so the posterior is known. The mean of each figure over
    200 items lies within 5 standard errors (false alarm 6e-7 each).
    """
    N, S, d, s = 200, 6, 256, 0.3
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(d) < d // 2
    truth, noise = torch.randn(N, d, generator=generator), torch.randn(N, d, generator=generator)
    y = torch.where(mask, truth + s * noise, 0.0)
    gain = 1 / (1 + s**2)
    z = torch.randn(N, S, d, generator=generator)
    x = torch.where(mask, gain * y[:, None] + s * math.sqrt(gain) * z, z)
    problem = Problem("", "", Inpainting(mask), lambda y: y, d // 2, ~mask, {})
    found = measure(problem, truth, y, x, 4.0)

    of_mean, of_sample = math.sqrt(1 + 1 / S), math.sqrt(2)
    expected = {"coverage": expected_coverage(S), "residual": s, "rmse of the mean": of_mean}
    expected |= {"rmse of a sample": of_sample, "psnr of a sample": 20 * math.log10(4 / of_sample)}
    for name, value in expected.items():
        assert abs(found[name]["mean"] - value) < 5 * found[name]["stderr"], (name, value, found[name])
    assert expected_coverage(10**6) == pytest.approx(math.erf(2 / math.sqrt(2)), abs=1e-5)


def test_inpainting_writes_arrays_and_figures_that_agree(run):
    output = invoke("inpaint", run, "--mask", "half", "--particles", 2, *QUICK).output
    folder = run / "restored" / "inpaint-half"
    assert {path.name for path in folder.iterdir()} == {"arrays.npz", "sheet.png", "figures.json"}
    arrays, record = read(folder)
    shapes = {name: tuple(value.shape) for name, value in arrays.items()}
    each = dict.fromkeys(("truth", "observation", "mean", "std", "raw"), (3, 1, 8, 8))
    assert shapes == each | dict.fromkeys(("samples", "samples_raw"), (3, 2, 1, 8, 8)) | {"unknown": (1, 8, 8)}
    assert arrays["samples_raw"].dtype == torch.uint8
    known = ~arrays["unknown"]
    assert known[0, :4].all()
    assert not known[0, 4:].any()
    seen = arrays["observation"] - arrays["truth"]
    assert seen[:, known].std().item() == pytest.approx(0.05, rel=0.3)  # 96 numbers: a standard error of 7 %
    assert (arrays["observation"][:, ~known] != 0).any()  # pure noise, which no figure counts
    residual = (arrays["samples"] - arrays["observation"][:, None])[:, :, known].square().mean((1, 2)).sqrt()
    assert record["figures"]["residual"]["mean"] == pytest.approx(residual.mean().item(), rel=1e-5)
    inside = (arrays["mean"] - arrays["truth"]).abs() <= 2 * arrays["std"]
    assert record["figures"]["coverage"]["mean"] == pytest.approx(inside[:, ~known].double().mean().item(), abs=1e-6)
    assert f"{residual.mean():.3f} +- {residual.std() / 3**0.5:.3f}" in output
    assert "pigdm, 2 particles" in output
    assert (record["calls"], record["n"], record["samples"], record["noise"]) == (5, 3, 2, 0.05)


def test_samples_depend_on_the_seed_and_their_item_alone(run, tmp_path):
    def drawn(*more):
        invoke("inpaint", run, "--mask", "random:0.4", *more, "--out", tmp_path / "out")
        return read(tmp_path / "out")[0]["samples"]

    first = drawn(*QUICK, "--particles", 2)
    assert torch.equal(first, drawn(*QUICK, "--particles", 2))
    fewer = drawn(*QUICK, "--particles", 2, "--limit", 2, "--set", "sample.batch=2")
    torch.testing.assert_close(fewer, first[:2], rtol=0, atol=1e-4)
    assert (drawn(*QUICK, "--particles", 2, "--seed", 1) - first).abs().max() > 0.1
    assert not (run / "restored").exists()


@pytest.mark.parametrize(("sde", "methods"), [("ve", ("pigdm", "replacement")), ("subvp", ("dps", "moment-matching"))])
def test_methods_under_other_processes(tmp_path, sde, methods):
    train(tmp_path / "run", "--sde", sde, steps=2)
    for method in methods:
        task = ["--task", "superresolution", "--method", method, "--out", tmp_path / method]
        invoke("restore", tmp_path / "run", *task, *QUICK, *(["--noise", 0] if method == "replacement" else []))
        arrays, record = read(tmp_path / method)
        assert arrays["observation"].shape == (3, 1, 4, 4)
        assert arrays["samples"].isfinite().all()
        assert method in record["method"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_restores_images(task, digits, tmp_path):
    invoke("restore", digits, "--task", task, *QUICK, "--out", tmp_path / task)
    assert read(tmp_path / task)[0]["samples"].shape == (3, 2, 1, 8, 8)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_observes_as_many_numbers_as_it_reports(task, generator):
    data = from_array(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))
    problem = restoration(data, task)
    x = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    y = problem.operator(x)
    assert problem.look(y).shape == x.shape
    assert problem.unknown.all()
    assert problem.seen == (y[0] != 0).sum()
    if task == "superresolution":
        torch.testing.assert_close(problem.look(y)[..., 0, 0], x[..., :2, :2].mean((2, 3)))


def test_points_and_series(tmp_path):
    train(tmp_path / "moons", "--data", "two-moons", steps=2, options=TINY_POINTS)
    output = invoke("inpaint", tmp_path / "moons", "--mask", "half", *QUICK).output
    assert "PSNR" not in output
    arrays, record = read(tmp_path / "moons" / "restored" / "inpaint-half")
    assert arrays["unknown"].tolist() == [False, True]
    assert "Crosses" in record["caption"]

    np.save(tmp_path / "data.npy", 3 + np.random.default_rng(0).normal(size=(60, 2, 12)))
    np.save(tmp_path / "other.npy", 3 + 5 * np.random.default_rng(1).normal(size=(4, 2, 12)))
    np.save(tmp_path / "mask.npy", np.arange(12) % 3 > 0)
    run = tmp_path / "series"
    train(run, "--data", tmp_path / "data.npy", steps=2)
    invoke("inpaint", run, "--mask", tmp_path / "mask.npy", *QUICK)
    invoke("restore", run, "--task", "bicubic", "--factor", 3, "--data", tmp_path / "other.npy", *QUICK)
    assert {path.name for path in (run / "restored").iterdir()} == {"inpaint-mask", "bicubic-3-other"}
    arrays, _ = read(run / "restored" / "bicubic-3-other")
    assert arrays["observation"].shape == (3, 2, 4)
    torch.testing.assert_close(arrays["raw"], torch.from_numpy(np.load(tmp_path / "other.npy")[:3]).to(arrays["raw"]))
    ratio = arrays["raw"].std() / arrays["truth"].std()
    # the scale is that of the model's data, with standard deviation 1, not that of these items
    assert ratio == pytest.approx(1, rel=0.1)


def test_colours(tmp_path, run):
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "colours.npy", images)
    colours = tmp_path / "colours"
    train(colours, "--data", tmp_path / "colours.npy", "--set", "train.conditional=false", steps=2)
    invoke("colorize", colours, *QUICK)
    arrays, _ = read(colours / "restored" / "colorize")
    noise = arrays["observation"] - arrays["truth"].mean(1, keepdim=True)
    assert noise.shape == (3, 1, 8, 8)
    assert noise.std().item() == pytest.approx(0.05, rel=0.3)
    message = error("colorize", run)
    assert "(1, 8, 8)" in message
    assert "(3, H, W)" in message


def test_a_conditional_model_takes_a_class_or_none(tmp_path):
    run, more = tmp_path / "run", ["--mask", "half", "--particles", 1, *QUICK]
    train(run, "--set", "train.conditional=true", "--set", "train.label_dropout=0.3", steps=4)

    def drawn(*options):
        invoke("inpaint", run, *more, *options, "--out", tmp_path / "out")
        return read(tmp_path / "out")[0]["samples"]

    np.save(tmp_path / "unlabelled.npy", load_data("digits")[1].raw[:3].numpy())
    assert torch.equal(drawn(), drawn("--data", tmp_path / "unlabelled.npy"))
    assert not torch.equal(drawn(), drawn("--label", 3))
    assert "0 to 9" in error("inpaint", run, *more, "--label", 10)


def test_the_report_shows_what_was_restored(run, monkeypatch):
    monkeypatch.setattr(showing, "STRIP_STEPS", 5)
    invoke("inpaint", run, "--mask", "center", *QUICK, "--particles", 1)
    invoke("report", run, "--set", "sample.n=2")
    page = (run / "report.html").read_text(encoding="utf-8")
    _, record = read(run / "restored" / "inpaint-center")
    figures = record["figures"]["psnr of the mean"]
    assert f"{figures['mean']:.3f} ± {figures['stderr']:.3f}" in page
    assert "Inpainting, 75 % known (center)" in page
    assert "https:" not in page
    (run / "restored" / "inpaint-center" / "figures.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"figures\.json"):
        load_records(RunFolder.open(run))


def test_options_that_do_not_fit_are_named(run, tmp_path):
    inpaint = ["inpaint", run, "--mask", "half"]
    restore = ["restore", run, "--task"]
    for command, *words in (
        ([*inpaint, "--method", "pgdm"], "method", "did you mean 'pigdm'"),
        ([*inpaint, "--sampler", "odd"], "sampler", "particles"),
        ([*inpaint, "--noise", 0], "noise", "replacement"),
        ([*inpaint, "--noise", "nan"], "noise", ">= 0"),
        ([*inpaint, "--method", "dps", "--particles", 4], "particles", "dps"),
        ([*inpaint, "--method", "dps", "--sampler", "particles"], "sampler", "dps"),
        ([*inpaint, "--sampler", "dpm", "--particles", 4], "particles", "dpm"),
        ([*inpaint, "--scale", 2], "scale", "only dps"),
        ([*inpaint, "--samples", 1], "samples", ">= 2"),
        ([*inpaint, "--label", 3], "sample.label", "without labels"),
        ([*inpaint[:-1], "halve"], "mask", "half, center"),
        ([*inpaint, "--data", tmp_path / "none.npy"], "source", "none.npy"),
        ([*restore, "sharpen"], "task", "superresolution"),
        ([*restore, "superresolution", "--factor", 3], "factor", "divides (8, 8)"),
        ([*restore, "superresolution", "--width", 1], "width", "factor"),
        ([*restore, "deblur", "--width", 0], "width", "positive"),
        ([*restore, "projection", "--factor", 65], "factor", "64"),
        ([*restore, "tomography", "--lines", 0], "lines", "positive integer"),
    ):
        message = error(*command)
        assert all(word in message for word in words), message
    assert not (run / "restored").exists()
    np.save(tmp_path / "large.npy", np.zeros((3, 16, 16), np.uint8))
    assert "(1, 16, 16)" in error(*inpaint, "--data", tmp_path / "large.npy")
    np.save(tmp_path / "bright.npy", np.full((3, 8, 8), 200, np.uint8))
    assert "0..16" in error(*inpaint, "--data", tmp_path / "bright.npy")


def test_methods_are_named_like_their_functions():
    assert {name.replace("-", "_") for name in METHODS} == {method.guide.__name__ for method in METHODS.values()}
    assert all(set(method.samplers) <= set(SAMPLERS) for method in METHODS.values())
