"""Device mismatches and host syncs, found without an accelerator."""

from tests import fake_device
from tests.marks import first_fast


@first_fast("part", ["control", "training_step", "samplers", "switches", "likelihood", "inverse"])
def test_runs_on_a_fake_device(part):
    with fake_device.DeviceCheck():
        getattr(fake_device, part)()
