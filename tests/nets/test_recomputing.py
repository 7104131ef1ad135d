"""Networks on periodic axes, and those that compute activations again."""

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError

X = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
T = torch.tensor(0.4)


def unet(shape=(3, 8, 16), **options):
    torch.manual_seed(0)
    return S.UNet(shape, channels=8, zero_init=False, num_groups=4, **options).eval()


@pytest.mark.parametrize("layout", ["compact", "ddpm"])
@pytest.mark.parametrize("resample", ["conv", "block"])
def test_a_roll_along_a_periodic_axis_rolls_the_result(layout, resample):
    """Roll along the longitude, which wraps around; the latitude does not."""
    net = unet(periodic=(False, True), layout=layout, resample=resample)
    rolled = net(X.roll(2, 3), T)
    torch.testing.assert_close(rolled, net(X, T).roll(2, 3), rtol=1e-4, atol=1e-5)
    assert (net(X.roll(2, 2), T) - net(X, T).roll(2, 2)).abs().max() > 0.01
    plain = unet(layout=layout, resample=resample)
    plain.load_state_dict(net.state_dict())
    assert (plain(X.roll(2, 3), T) - plain(X, T).roll(2, 3)).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(2, 16), (1, 4, 8, 6)])
def test_series_and_volumes_wrap_around(shape):
    net = unet(shape, periodic=True)
    x = torch.randn(2, *shape)
    for axis in range(2, x.ndim):
        torch.testing.assert_close(net(x.roll(2, axis), T), net(x, T).roll(2, axis), rtol=1e-4, atol=1e-5)


def test_periodic_axes_are_saved_with_the_network(tmp_path):
    model = S.ScoreModel(unet(periodic=(False, True)), S.VPSDE())
    model.save_pretrained(tmp_path / "m")
    again = S.ScoreModel.from_pretrained(tmp_path / "m")
    assert torch.equal(again(X, 0.4).eps, model(X, 0.4).eps)
    for bad, said in (((True,), "one for each axis"), (1, "one for each axis"), ((0, 1), "one for each axis")):
        with pytest.raises((ArgumentError, TypeError), match=said if not isinstance(bad, int) else None):
            unet(periodic=bad)
    with pytest.raises(ArgumentError, match="fir"):
        unet(periodic=True, resample="fir")


def gradients(net):
    """Return the gradients, and the numbers kept for the backward pass."""
    net.train()
    torch.manual_seed(1)  # for the dropout
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(X, T).square().sum()
    loss.backward()
    return [p.grad for p in net.parameters()], kept


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_what_is_computed_again_is_the_same(kind):
    """Compare gradients bit for bit, dropout included, and what is kept."""

    def made(**options):
        torch.manual_seed(0)
        if kind == "unet":
            return S.UNet((3, 8, 16), channels=8, num_groups=4, dropout=0.2, zero_init=False, **options)
        return S.DiT((3, 8, 16), width=16, blocks=3, dropout=0.2, **options)

    (plain, kept), (again, less) = gradients(made()), gradients(made(recompute=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert less < 0.6 * kept
