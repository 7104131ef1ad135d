"""Device mismatches and host syncs, found without an accelerator."""

import pytest

from tests import fake_device

SLOW = ("samplers", "switches", "likelihood", "inverse")


@pytest.mark.parametrize("part", ["control", "training_step", *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
def test_runs_on_a_fake_device(part):
    with fake_device.DeviceCheck():
        getattr(fake_device, part)()
