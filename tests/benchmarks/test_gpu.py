"""The qualification of a device: the CPU passes, and faults fail."""

import json

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_cpu_is_qualified(tmp_path):
    threads = str(torch.get_num_threads())
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--threads", threads]
    assert gpu.main([*arguments, "--parts", "correctness,syncs"]) == 0
    record = json.loads((tmp_path / "gpu_cpu-quick.json").read_text())
    kinds = {row["kind"] for row in record["rows"]}
    assert kinds == {"sampler", "likelihood", "objective", "network", "operator"}
    assert all(row["ok"] for row in record["rows"])
    assert all(row["difference"] == 0 for row in record["rows"] if row["part"] == "correctness")
    page = (tmp_path / "gpu_cpu-quick.md").read_text()
    assert "## Correctness" in page
    assert "## Syncs" in page


@pytest.mark.slow
def test_speed_and_networks_are_measured(tmp_path):
    threads = str(torch.get_num_threads())
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--threads", threads]
    assert gpu.main([*arguments, "--parts", "speed,networks"]) == 0
    rows = json.loads((tmp_path / "gpu_cpu-quick.json").read_text())["rows"]
    (trainer,) = [row for row in rows if row["kind"] == "trainer"]
    assert 0.2 < trainer["ratio"] < 5
    (preset,) = [row for row in rows if row["kind"] == "preset"]
    assert 0 < preset["share_of_roof"] < 1.5
    assert any("scoresde" in row["name"] and row["microseconds"] > 0 for row in rows if row["kind"] == "overhead")


def test_what_differs_or_does_not_repeat_fails(tmp_path, monkeypatch):
    def off(device, dtype):
        return torch.ones(3, dtype=dtype) + (1e-3 if dtype == torch.float32 else 0.0) * torch.rand(3, dtype=dtype)

    def unruly(device, dtype):
        return torch.randn(3, dtype=dtype)

    def broken(device, dtype):
        raise RuntimeError("a kernel is missing")

    for name in ("scored", "sampled"):
        monkeypatch.setattr(gpu, name, lambda steps: {})
    for name in ("lost", "called"):
        monkeypatch.setattr(gpu, name, dict)
    monkeypatch.setattr(
        gpu,
        "observed",
        lambda: {("operator", "off"): off, ("operator", "unruly"): unruly, ("operator", "broken"): broken},
    )
    rows = {(row["name"], row["dtype"]): row for row in gpu.check(CPU, 10)}
    assert rows["off", "float64"]["ok"]
    assert not rows["off", "float32"]["ok"]  # its runs differ
    assert not rows["unruly", "float64"]["repeats"]
    assert rows["unruly", "float64"]["difference"] == 0  # with the noise of the host
    assert rows["broken", "float32"]["error"] == "RuntimeError: a kernel is missing"
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--parts", "correctness"]
    assert gpu.main(arguments) == 1


def test_the_noise_of_the_host_is_the_same_in_every_dtype():
    def draws(dtype):
        like = torch.empty(3, 2, dtype=dtype)
        with gpu.HostNoise():
            g = torch.Generator().manual_seed(7)
            made = [torch.randn(3, 2, generator=g, dtype=dtype), torch.randn_like(like), torch.rand(3, 2, dtype=dtype)]
            return made, torch.randint(9, (4,), generator=g)

    (one, ints), (two, again) = draws(torch.float32), draws(torch.float64)
    for a, b in zip(one, two, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)
    assert torch.equal(ints, again)
