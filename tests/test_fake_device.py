"""Device mismatches and host syncs, found without an accelerator."""

import pytest

from tests import fake_device


@pytest.mark.parametrize("part", ["control", "training_step", "samplers", "switches", "likelihood", "inverse"])
def test_runs_on_a_fake_device(part):
    with fake_device.DeviceCheck():
        getattr(fake_device, part)()
