"""What only a CUDA device can tell.

Without one these tests are skipped by name.
"""

import pytest
import torch

import scoresde as S
from benchmarks import gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")


def test_every_case_agrees_with_the_cpu_and_with_itself():
    failed = [row for row in gpu.check(CUDA, 20) if not row["ok"]]
    assert not failed, failed


def test_no_sampler_stalls_between_steps_and_memory_is_bounded():
    failed = [row for row in gpu.watch(CUDA, 20) if not row["ok"]]
    assert not failed, failed


def test_a_run_on_the_device_is_resumed_bit_for_bit(tmp_path):
    data, _ = S.load_data("digits")

    def trainer(folder):
        torch.manual_seed(0)
        model = S.ScoreModel.for_data(S.ResidualMLP((1, 8, 8), width=32, blocks=1), S.VPSDE(), data)
        config = S.TrainerConfig(steps=20, batch_size=32, checkpoint_every=10, device="cuda")
        return S.Trainer(model, config=config, folder=folder)

    whole = trainer(None)
    whole.fit(data)
    stopped = trainer(tmp_path).every(13, lambda one: one.stop())
    stopped.fit(data)
    again = trainer(tmp_path)
    assert again.resume() == 13
    again.fit(data)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, again.parameters, strict=True))
