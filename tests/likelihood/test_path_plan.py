"""Levels of the method "multistep".

Extrapolation from them does not amplify a network's roughness.
"""

import itertools

from scoresde import VPSDE
from scoresde.data import DataScale
from scoresde.likelihood.path_plan import Ends, choose_levels, make_plan
from tests.marks import first_fast


@first_fast("calls", [50, 100, 115, 128, 150, 200, 400, 1000])
def test_weights_do_not_amplify_a_rough_network(calls):
    """Check that the weights are small at any number of calls.

    The weights are those of the block and of the path's slopes. Through levels 0.1 apart, those of the block are 57
    times their sum. Through 0.1 beside 0.025, those of the slopes are 10^4 times. A U-Net's bits/dim on 8-bit images
    was then wrong by .5 at 200 calls and by 26 at 400.
    """
    scale = DataScale(0.5**0.5, 0.5**0.5)
    ends = Ends(1e-5, 1.0, data_at_t_min=False, noise_to_infinity=True)
    lams, rounds = (grid := choose_levels(VPSDE(), scale, calls, ends, 2 / 255 / 12**0.5)).lams, grid.rounds
    found = make_plan(lams, bottom=0.0, top=-20.0, decay=3)
    assert all(a > b for a, b in itertools.pairwise(lams))
    assert len(lams) == calls - 4 * (rounds - 1)
    for rho, weights in zip(found.rhos, found.block_implicit, strict=False):
        assert sum(map(abs, weights)) < 10 * rho**2 / 2
    for k, (_, weights) in enumerate(found.slopes[:30]):
        assert sum(map(abs, weights)) * (lams[k] - lams[k + 1]) < 400
