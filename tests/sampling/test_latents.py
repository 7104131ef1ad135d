"""The latent space (E11): inversion, interpolation and temperature."""

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from tests.generators import generator

SDES = {"vp": S.VPSDE(), "subvp": S.SubVPSDE(), "ve": S.VESDE(), "cosine": S.VPSDE.cosine(), "flow": S.FlowSDE()}


def mixture(shape=(2,)):
    g = generator(1)
    return S.GaussianMixture(torch.randn(3, *shape, generator=g), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES)
def test_E11_encode_then_decode_gives_the_data_back(sde):
    """Encode and decode with the exact score.

    In float64 with a tolerance of 1e-10, the error is below 1e-8.
    """
    gm = mixture((2, 2))
    x, model = gm.sample(4, generator()), gm.model(SDES[sde])
    flow = S.ProbabilityFlow(rtol=1e-10, atol=1e-10)
    z = S.encode(model, x, flow)
    assert not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(S.decode(model, z, flow), x, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_E11_encode_then_decode_with_a_trained_network():
    """Encode and decode with a small MLP in float32.

    It is trained for 200 steps on a mixture; the error is below 1e-4.
    """
    x = mixture().sample(1000, generator()).float()
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=32, blocks=2), S.VPSDE(), "noise", time_input="log_snr")
    objective, g = S.DenoisingScoreMatching(), generator()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(200):
        loss = objective(model, x[torch.randint(1000, (128,), generator=g)], generator=g).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) < 0.7 * sum(losses[:50])
    flow = S.ProbabilityFlow(rtol=1e-6, atol=1e-6)
    again = S.decode(model, S.encode(model, x[:16], flow), flow)
    torch.testing.assert_close(again, x[:16], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2), (5, 7), (3, 1, 4, 4), (2, 3, 2, 2, 2)])
def test_E11_spherical_interpolation_stays_on_the_sphere(shape):
    """Check norms and angles against DDIM's formula.

    For equal norms all norms and all angles are equal. For others the norm is linear in w.
    """
    z0, z1 = torch.randn(2, *shape, generator=generator(), dtype=torch.float64)
    flat0, flat1 = z0.flatten(1), z1.flatten(1)
    unit = z1 * (flat0.norm(dim=1) / flat1.norm(dim=1)).reshape(-1, *(1,) * (len(shape) - 1))
    path = S.interpolate(z0, unit, 4)
    assert path.shape == (5, *shape)
    norms = path.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms, norms[:1].expand(5, -1), rtol=1e-12, atol=0)
    cosines = torch.nn.functional.cosine_similarity(path.flatten(2)[:-1], path.flatten(2)[1:], dim=2).clamp(-1, 1)
    angles = cosines.acos()
    torch.testing.assert_close(angles, angles[:1].expand(4, -1), rtol=1e-6, atol=1e-7)
    theta = torch.nn.functional.cosine_similarity(flat0, flat1).clamp(-1, 1).acos()[:, None]
    slerp = (torch.sin(0.75 * theta) * flat0 + torch.sin(0.25 * theta) * unit.flatten(1)) / torch.sin(theta)
    torch.testing.assert_close(path[1].flatten(1), slerp, rtol=1e-6, atol=1e-7)
    norms = S.interpolate(z0, z1, [0.25]).flatten(2).norm(dim=2)[0]
    torch.testing.assert_close(norms, 0.75 * flat0.norm(dim=1) + 0.25 * flat1.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spherical", [True, False])
def test_interpolation_has_exact_ends(spherical, dtype):
    z0, z1 = torch.randn(2, 3, 2, 2, generator=generator(), dtype=dtype)
    path = S.interpolate(z0, z1, 6, spherical=spherical)
    assert path.dtype == dtype
    assert torch.equal(path[0], z0)
    assert torch.equal(path[-1], z1)
    torch.testing.assert_close(
        S.interpolate(z0[1:2], z1[1:2], 6, spherical=spherical)[:, 0], path[:, 1], rtol=0, atol=0
    )
    torch.testing.assert_close(S.interpolate(z0, z0, 3, spherical=spherical), z0.expand(4, -1, -1, -1))
    straight = S.interpolate(z0, z1, torch.tensor([0.5]), spherical=False)[0]
    torch.testing.assert_close(straight, (z0 + z1) / 2)


@pytest.mark.slow
def test_E11_a_decoded_path_joins_the_data():
    """Decode a path from one mode to another.

    It has the data at its ends and no jump.
    """
    gm = S.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.25)
    model = gm.model(S.VPSDE())
    flow = S.ProbabilityFlow(rtol=1e-8, atol=1e-8)
    z = S.encode(model, gm.means, flow)
    path = S.decode(model, S.interpolate(z[:1], z[1:], 40).flatten(0, 1), flow)
    torch.testing.assert_close(path[[0, -1]], gm.means, rtol=0, atol=1e-6)
    assert path.diff(dim=0).norm(dim=1).max() < 0.5


@pytest.mark.slow
def test_E11_temperature_of_a_gaussian():
    """Check decode(temper(encode(x), tau)) = m + tau (x - m), in VP and in VE.

    The flow of a Gaussian is linear.
    """
    gm = S.GaussianMixture([[1.0, -2.0]], [[[0.5, 0.2], [0.2, 0.3]]])
    x = gm.sample(5, generator())
    flow = S.ProbabilityFlow(rtol=1e-7, atol=1e-7)
    for sde in (S.VPSDE(), S.VESDE()):
        model = gm.model(sde)
        z = S.encode(model, x, flow)
        for tau in (0.0, 0.5, 1.3):
            tempered = S.decode(model, S.temper(model, z, tau), flow)
            torch.testing.assert_close(tempered, gm.means + tau * (x - gm.means), rtol=0, atol=1e-5)
    each = S.temper(model, z, torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(each[3], S.temper(model, z, 2.0)[3], rtol=0, atol=0)


def test_temperatures_one_and_zero():
    gm = mixture()
    model = gm.model(S.VPSDE())
    z = torch.randn(4, 2, generator=generator())
    assert torch.equal(S.temper(model, z, 1.0), z)
    assert torch.equal(S.temper(model, z, torch.tensor([1.0, 1.0, 0.5, 1.0]))[[0, 1, 3]], z[[0, 1, 3]])
    cold = S.temper(model, z.double(), 0.0)
    mean = S.VPSDE().alpha(1.0) * gm.moments.mean
    torch.testing.assert_close(cold, mean.expand(4, -1), rtol=0, atol=1e-12)
    single = S.GaussianMixture([[0.5, 0.5]], 0.2).model(S.VPSDE())
    point = S.decode(single, S.temper(single, z.double(), 0.0))
    torch.testing.assert_close(point, torch.full((4, 2), 0.5, dtype=torch.float64), rtol=0, atol=1e-3)
    bare = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE())  # without moments the mean is 0
    torch.testing.assert_close(S.temper(bare, z, 0.5), 0.5 * z, rtol=0, atol=0)


def test_bad_latents_are_refused_and_named():
    z = torch.randn(3, 2, generator=generator())
    model = mixture().model(S.VPSDE())
    with pytest.raises(ArgumentError, match=r"opposite to z0 \(samples 1\)"):
        S.interpolate(z, torch.where(torch.arange(3)[:, None] == 1, -2 * z, z))
    with pytest.raises(ArgumentError, match=r"`z0` must be .*, got zero latents \(samples 2\)"):
        S.interpolate(torch.where(torch.arange(3)[:, None] == 2, 0.0, z), z)
    assert S.interpolate(z, -z, 2, spherical=False)[1].abs().max() == 0
    with pytest.raises(ArgumentError, match="weights"):
        S.interpolate(z, z, [0.0, 1.5])
    with pytest.raises(ArgumentError, match="weights"):
        S.interpolate(z, z, 0)
    with pytest.raises(ShapeError, match="weights"):
        S.interpolate(z, z, torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="z1"):
        S.interpolate(z, z[:2])
    with pytest.raises(ShapeError, match="z0"):
        S.interpolate(torch.zeros(3), torch.zeros(3))
    with pytest.raises(DTypeError, match="z1"):
        S.interpolate(z, z.long())
    with pytest.raises(DeviceError, match="z1"):
        S.interpolate(z, z.to("meta"))
    with pytest.raises(ArgumentError, match="temperature"):
        S.temper(model, z, -1.0)
    with pytest.raises(ShapeError, match="temperature"):
        S.temper(model, z, torch.ones(2))
    with pytest.raises(ShapeError, match="z"):
        S.temper(model, torch.zeros(3, 5), 0.5)
