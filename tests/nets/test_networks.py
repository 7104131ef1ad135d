"""Every network: shapes, dtypes, conditions, derivatives, devices, errors."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError
from scoresde.models import ScoreModel
from scoresde.nets import DiT, ResidualMLP, UNet, build_net
from scoresde.sde import DDPM
from tests.marks import first_fast, some_fast

SMALL_UNET = {"name": "unet", "channels": 8, "num_groups": 4, "heads": 2}
SMALL_DIT = {"name": "dit", "width": 24, "blocks": 2, "heads": 2, "mlp_ratio": 2}
SMALL_MLP = {"name": "mlp", "width": 16, "blocks": 2}
CASES = [
    ({**SMALL_UNET, "shape": [1, 8, 8]}, "unet-image"),
    ({**SMALL_UNET, "shape": [2, 25], "multipliers": [1, 2, 2], "attention": [1, -1]}, "unet-series-odd"),
    ({**SMALL_UNET, "shape": [1, 7, 5], "blocks": 2, "scale_shift": False, "embedding": "fourier"}, "unet-image-odd"),
    ({**SMALL_UNET, "shape": [1, 4, 4, 3], "attention": [], "num_groups": 2}, "unet-volume"),
    ({**SMALL_UNET, "shape": [3, 9], "multipliers": [1], "fused_attention": True}, "unet-one-level"),
    ({**SMALL_UNET, "shape": [1, 8, 8], "layout": "ddpm", "init": "xavier", "head_channels": 8}, "unet-ddpm"),
    (
        {**SMALL_UNET, "shape": [2, 9], "layout": "ddpm++", "resample": "block", "blocks": 2, "skip_rescale": True},
        "unet-ddpm++",
    ),
    ({**SMALL_UNET, "shape": [1, 5, 7], "resample": "fir", "fourier_inputs": [0, 2]}, "unet-fir"),
    ({**SMALL_DIT, "shape": [1, 8, 8]}, "dit-image"),
    ({**SMALL_DIT, "shape": [2, 9], "patch": 3, "fused_attention": True, "embedding": "fourier"}, "dit-series"),
    ({**SMALL_DIT, "shape": [1, 4, 2, 4]}, "dit-volume"),
    ({**SMALL_MLP, "shape": [2]}, "mlp-point"),
    ({**SMALL_MLP, "shape": [2, 3, 4], "embedding": "fourier", "embedding_scale": 0.5}, "mlp-rank-3"),
]
every_net = some_fast("config", {i: c for c, i in CASES}, fast=("unet-image", "dit-image", "mlp-point"))


def awake(config, dtype=torch.float32, seed=0):
    """Return the network with small random numbers added, as if trained."""
    net = build_net(config, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=dtype)
    return net


def inputs(config, batch=5, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *config["shape"], generator=generator, dtype=dtype)
    return x, 100 * torch.rand(batch, generator=generator, dtype=dtype)


@every_net
@first_fast("dtype", [torch.float32, torch.float64])
def test_output_has_the_shape_and_dtype_of_the_input(config, dtype):
    x, time_input = inputs(config, dtype=dtype)
    out = awake(config, dtype)(x, time_input)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert out.std() > 1e-3


@every_net
def test_output_is_zero_at_the_start_of_training(config):
    assert build_net(config, seed=0)(*inputs(config)).count_nonzero() == 0


@every_net
def test_out_channels_replace_the_first_axis(config):
    out = build_net({**config, "out_channels": 5}, seed=0)(*inputs(config))
    assert out.shape == (5, 5, *config["shape"][1:])


@every_net
def test_float32_agrees_with_float64(config):
    net = awake(config)
    x, time_input = inputs(config)
    exact = copy.deepcopy(net).double()(x.double(), time_input.double())
    assert (net(x, time_input) - exact).abs().max() < 1e-3 * exact.abs().max()


@every_net
def test_every_parameter_receives_a_gradient(config):
    net = awake({**config, "classes": 3})
    x, time_input = inputs(config)
    net(x, time_input, y=torch.tensor([0, 1, 2, -1, 1])).square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []
    assert (net.conditioning.classes.table.weight.grad.abs().amax(1) > 0).all()


@every_net
def test_the_time_input_changes_the_output_and_may_be_a_scalar(config):
    net = awake(config)
    x, time_input = inputs(config)
    assert (net(x, time_input) - net(x, time_input + 1)).abs().amax(tuple(range(1, x.ndim))).min() > 1e-4
    torch.testing.assert_close(net(x, time_input[0]), net(x, time_input[:1].expand(5)), rtol=0, atol=0)


@every_net
def test_class_changes_the_output_and_none_is_minus_one(config):
    net = awake({**config, "classes": 3})
    x, time_input = inputs(config)
    none, minus = net(x, time_input), net(x, time_input, y=torch.full((5,), -1))
    torch.testing.assert_close(none, minus, rtol=1e-5, atol=1e-6)
    for k in range(3):
        assert (net(x, time_input, y=torch.full((5,), k)) - none).abs().amax(tuple(range(1, x.ndim))).min() > 1e-4


@every_net
def test_a_sample_does_not_depend_on_its_batch(config):
    net = awake({**config, "classes": 3})
    x, time_input = inputs(config)
    y = torch.tensor([0, -1, 2, 1, 0])
    together = net(x, time_input, y=y)
    for i in range(5):
        alone = net(x[i : i + 1], time_input[i : i + 1], y=y[i : i + 1])
        assert (alone[0] - together[i]).abs().max() < 1e-5


@every_net
def test_empty_batches_and_strided_inputs(config):
    net = awake(config)
    x, time_input = inputs(config)
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    torch.testing.assert_close(net(strided, time_input), net(x, time_input))
    assert net(x[:0], time_input[:0]).shape == (0, *config["shape"])


@every_net
def test_first_and_second_derivatives(config):
    """Compare the parameter gradient of the divergence with differences.

    The divergence is by vjp, the differences are finite.
    """
    config = {**config, "fused_attention": False} if "fused_attention" in config else config
    net = awake(config, torch.float64)
    x, time_input = inputs(config, batch=2, dtype=torch.float64)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    direction = {n: torch.cos(torch.arange(p.numel(), dtype=p.dtype)).view_as(p) for n, p in parameters.items()}

    def divergence(step):
        moved = {n: p + step * direction[n] for n, p in parameters.items()}
        _, pullback = torch.func.vjp(lambda x: torch.func.functional_call(net, moved, (x, time_input)), x)
        return (pullback(v)[0] * v).sum()

    exact = torch.func.grad(divergence)(torch.zeros((), dtype=torch.float64))
    h = 1e-5
    assert exact.item() == pytest.approx((divergence(h) - divergence(-h)).item() / (2 * h), rel=1e-5, abs=1e-7)


@every_net
def test_forward_mode_agrees_with_reverse_mode(config):
    config = {**config, "fused_attention": False} if "fused_attention" in config else config
    net = awake(config, torch.float64)
    x, time_input = inputs(config, batch=2, dtype=torch.float64)
    v = torch.ones_like(x)
    _, jv = torch.func.jvp(lambda x: net(x, time_input), (x,), (v,))
    _, pullback = torch.func.vjp(lambda x: net(x, time_input), x)
    assert (jv * v).sum().item() == pytest.approx((pullback(v)[0] * v).sum().item(), rel=1e-9)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_fused_attention_differentiates_twice(name):
    """Compare torch's unfused kernel with attention written out.

    The gradients are those of sliced score matching's penalty |J'v|^2.
    """
    config = {"unet": {**SMALL_UNET, "attention": [0, 1]}, "dit": SMALL_DIT}[name] | {"shape": [2, 4, 4]}
    x, time_input = inputs(config, batch=2, dtype=torch.float64)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = {}
    for fused in (False, True):
        net = awake({**config, "fused_attention": fused}, torch.float64)
        with sdpa_kernel(SDPBackend.MATH):
            out = net(x.requires_grad_(), time_input)
        (jv,) = torch.autograd.grad(out, x, v, create_graph=True)
        gradients[fused] = torch.autograd.grad(jv.square().sum(), list(net.parameters()), allow_unused=True)
    seen = [g is not None for g in gradients[False]]
    assert sum(seen) > 0.9 * len(seen)  # a bias after the last nonlinearity does not change the Jacobian
    for plain, fused in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-8, atol=1e-8 * gradients[False][0].abs().max())


COMPILED = ("unet-ddpm++", "unet-fir", "dit-image", "mlp-point")


@pytest.mark.slow
@pytest.mark.parametrize("config", [c for c, i in CASES if i in COMPILED], ids=COMPILED)
def test_compiles_as_one_graph(config):
    net = awake({**config, "classes": 3})
    x, time_input = inputs(config, batch=2)
    y = torch.tensor([0, -1])
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, time_input, y=y), net(x, time_input, y=y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [c for c, i in CASES if i.startswith("unet") and len(c["shape"]) == 3])
def test_channels_last_is_kept(config):
    """Check that every convolution keeps channels last.

    The function is the same.
    """
    config = {**config, "shape": [3, *config["shape"][1:]]}
    net = awake(config)
    x, time_input = inputs(config)
    expected = net(x, time_input)
    net = net.to(memory_format=torch.channels_last)
    kept = {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, x, out, name=name: kept.update({name: out.is_contiguous(memory_format=torch.channels_last)})
            )
    out = net(x.contiguous(memory_format=torch.channels_last), time_input)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert [name for name in kept if not kept[name]] == []
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@first_fast("config", [c for c, i in CASES if not i.startswith("mlp")])
def test_learned_variances_are_a_second_set_of_channels(config):
    channels = config["shape"][0]
    net = awake({**config, "out_channels": 2 * channels}, torch.float64)
    model = ScoreModel(net, DDPM.linear(100), time_input="ddpm", learned_variance=True)
    x, _ = inputs(config, dtype=torch.float64)
    estimate, raw = model(x, 0.03), net(x, torch.full((5,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(estimate.eps, raw[:, :channels])
    torch.testing.assert_close(estimate.v, (raw[:, channels:] + 1) / 2)


@every_net
def test_training_on_a_fake_accelerator(config):
    """Check that building, calling and differentiating never sync.

    They mix no devices either.
    """
    from tests.fake_device import DeviceCheck

    config = {**config, "classes": 3, "dropout": 0.1}
    with torch.device("meta"):
        net = build_net(config)
    assert {t.device.type for t in net.state_dict().values()} == {"meta"}
    with DeviceCheck():
        x, time_input = torch.empty(3, *config["shape"], device="meta"), torch.empty(3, device="meta")
        out = net(x, time_input, y=torch.zeros(3, dtype=torch.int64, device="meta"))
        out.sum().backward()
    assert out.shape == (3, *config["shape"])
    assert {p.grad.device.type for p in net.parameters()} == {"meta"}


@every_net
def test_config_rebuilds_the_same_architecture(config):
    net = awake({**config, "classes": 2, "dropout": 0.1}).eval()
    text = json.dumps(net.config)
    again = build_net(json.loads(text)).eval()
    assert again.config == net.config == json.loads(text)
    assert net.config.items() >= config.items()
    again.load_state_dict(net.state_dict())
    x, time_input = inputs(config)
    assert torch.equal(net(x, time_input), again(x, time_input))


@every_net
def test_networks_pickle(config, tmp_path):
    net = awake({**config, "classes": 2}).eval()
    x, time_input = inputs(config)
    torch.save(net, tmp_path / "net.pt")
    for again in (pickle.loads(pickle.dumps(net)), torch.load(tmp_path / "net.pt", weights_only=False)):
        assert again.config == net.config
        assert torch.equal(again(x, time_input), net(x, time_input))


@pytest.mark.parametrize("whole", [np.int64, lambda n: torch.Size([n])[0], lambda n: torch.tensor(n)])
def test_integers_of_other_libraries_are_accepted(whole):
    size = torch.zeros(1, 8, 8).shape
    for net in (
        UNet(size, channels=whole(8), multipliers=(whole(1), whole(2)), blocks=whole(1), attention=(whole(-1),)),
        DiT(size, width=whole(24), patch=whole(2), blocks=whole(1), heads=whole(2)),
        ResidualMLP(size, width=whole(16), blocks=whole(1)),
    ):
        assert build_net(json.loads(json.dumps(net.config))).config == net.config


def test_config_is_a_copy():
    net = UNet((1, 8, 8))
    net.config["multipliers"].append(9)
    assert net.config["multipliers"] == [1, 2]


@every_net
def test_dropout_acts_in_training_only(config):
    net = awake({**config, "dropout": 0.5})
    x, time_input = inputs(config)
    torch.manual_seed(0)
    assert not torch.equal(net(x, time_input), net(x, time_input))
    net.eval()
    assert torch.equal(net(x, time_input), net(x, time_input))


@every_net
def test_autocast_runs_in_bfloat16(config):
    net = awake(config)
    x, time_input = inputs(config)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, time_input)
    assert (out - net(x, time_input)).abs().max() < 0.1 * out.abs().max()


@every_net
def test_autocast_does_not_hide_fine_noise(config):
    """Check that a network of differences sees a tenth of an 8-bit bin.

    bfloat16 would round this noise away.
    """
    net = awake(config)
    with torch.no_grad():
        net.stem.weight -= net.stem.weight.mean(tuple(range(1, net.stem.weight.ndim)), keepdim=True)
        net.stem.bias.zero_()
    x, time_input = -torch.ones(5, *config["shape"]), torch.full((5,), 0.3)
    noisy = x + 0.2 / 255 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noisy.bfloat16(), x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(net(noisy, time_input), net(x, time_input))


@every_net
def test_tensors_that_do_not_fit_are_refused_by_name(config):
    net = build_net(config, seed=0)
    x, time_input = inputs(config)
    with pytest.raises(ShapeError, match=r"`x` must be of shape \(B, "):
        net(torch.cat((x, x), 1), time_input)
    with pytest.raises(ShapeError, match="`x` must be"):
        net(x[0], time_input)
    with pytest.raises(ShapeError, match="`time_input` must be"):
        net(x, time_input[:3])
    with pytest.raises(ShapeError, match="`time_input` must be"):
        net(x, time_input[:, None])
    with pytest.raises(DTypeError, match="`time_input` must be"):
        net(x, time_input.long())
    with pytest.raises(DTypeError, match="`x` must be"):
        net(x.double(), time_input)
    with pytest.raises(DTypeError, match="`x` must be"):
        net(x.to(torch.uint8), time_input)
    with pytest.raises(ArgumentError, match=r"`y` must be None.*no classes"):
        net(x, time_input, y=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="`y` must be"):
        build_net({**config, "classes": 2}, seed=0)(x, time_input, y=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: UNet((8,)), "shape"),
        (lambda: UNet((1, 2, 2, 2, 2)), "shape"),
        (lambda: UNet((1, 0, 8)), "shape"),
        (lambda: UNet(8), "shape"),
        (lambda: UNet((1, 8, 2), multipliers=(1, 2, 2)), "shape"),
        (lambda: UNet((1, 8), channels=0), "channels"),
        (lambda: UNet((1, 8), multipliers=()), "multipliers"),
        (lambda: UNet((1, 8), multipliers=(1, 1.5)), "multipliers"),
        (lambda: UNet((1, 8), blocks=0), "blocks"),
        (lambda: UNet((1, 8), attention=(2,)), "attention"),
        (lambda: UNet((1, 8), attention=(-3,)), "attention"),
        (lambda: UNet((1, 8), heads=5), "heads"),
        (lambda: UNet((1, 8), num_groups=5), "num_groups"),
        (lambda: UNet((1, 8), dropout=1.0), "dropout"),
        (lambda: UNet((1, 8), classes=0), "classes"),
        (lambda: UNet((1, 8), out_channels=0), "out_channels"),
        (lambda: UNet((1, 8), head_channels=5), "head_channels"),
        (lambda: UNet((1, 8), heads=3, attention=(), layout="ddpm"), "heads"),
        (lambda: UNet((1, 8), fourier_inputs=(-1,)), "fourier_inputs"),
        (lambda: UNet((1, 8), layout="dense"), "layout"),
        (lambda: UNet((1, 8), resample="pool"), "resample"),
        (lambda: UNet((1, 8), init="zeros"), "init"),
        (lambda: DiT((8,)), "shape"),
        (lambda: DiT((1, 9, 8)), "shape"),
        (lambda: DiT((1, 8), patch=0), "patch"),
        (lambda: DiT((1, 8, 8), width=30), "width"),
        (lambda: DiT((1, 8), heads=5), "heads"),
        (lambda: DiT((1, 8), blocks=0), "blocks"),
        (lambda: DiT((1, 8), mlp_ratio=0), "mlp_ratio"),
        (lambda: DiT((1, 8), dropout=1), "dropout"),
        (lambda: ResidualMLP(()), "shape"),
        (lambda: ResidualMLP((2,), width=1), "width"),
        (lambda: ResidualMLP((2,), blocks=0), "blocks"),
        (lambda: ResidualMLP((2,), dropout="none"), "dropout"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_by_name(make, argument):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == argument


def test_unknown_embedding_is_refused():
    with pytest.raises(UnknownNameError, match="sinusoidal"):
        UNet((1, 8), embedding="sinusoid")


def test_unet_accepts_other_lengths():
    net = awake({**SMALL_UNET, "shape": [1, 8, 8], "multipliers": [1, 2, 2]})
    for size in ((28, 28), (25, 9), (1, 1)):
        assert net(torch.ones(2, 1, *size), torch.ones(2)).shape == (2, 1, *size)


@pytest.mark.parametrize("length", [2, 3])
def test_smallest_length_of_two_and_three_levels(length):
    multipliers = (1,) * length
    UNet((1, 2 ** (length - 2) + 1), multipliers=multipliers)
    with pytest.raises(ArgumentError, match="shape"):
        UNet((1, 2 ** (length - 2)), multipliers=multipliers)


def test_unet_without_zero_init_is_not_zero():
    config = {**SMALL_UNET, "shape": [1, 8, 8], "zero_init": False}
    assert build_net(config, seed=0)(*inputs(config)).std() > 1e-2


def test_fused_attention_is_the_same_function():
    config = {**SMALL_UNET, "shape": [2, 6, 6], "attention": [0, 1]}
    plain, fused = awake(config, torch.float64), awake({**config, "fused_attention": True}, torch.float64)
    x, time_input = inputs(config, dtype=torch.float64)
    torch.testing.assert_close(plain(x, time_input), fused(x, time_input), rtol=1e-9, atol=1e-9)


def test_attention_reaches_across_the_whole_input():
    config = {**SMALL_UNET, "shape": [1, 256], "multipliers": [1]}
    x, time_input = inputs(config, batch=1, dtype=torch.float64)
    x.requires_grad_()
    reach = {}
    for attention in ([], [0]):
        net = awake({**config, "attention": attention}, torch.float64)
        for module in net.modules():  # GroupNorm averages over all positions; without it only attention reaches so far
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda h: h
        (gradient,) = torch.autograd.grad(net(x, time_input)[0, 0, 0], x)
        reach[len(attention)] = gradient[0, 0].nonzero().max().item()
    assert reach[0] < 30
    assert reach[1] == 255


@pytest.mark.parametrize("attention", [[], [1]])
def test_unet_moves_with_its_input(attention):
    """Move a bump by one cell of the coarsest level, away from the borders.

    The output moves with it.
    """
    config = {**SMALL_UNET, "shape": [1, 512], "multipliers": [1, 1, 1], "attention": attention}
    net = awake(config, torch.float64)
    time_input = torch.tensor([3.0], dtype=torch.float64)
    a, b = torch.zeros(2, 1, 1, 512, dtype=torch.float64)
    bump = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a[..., 252:260], b[..., 256:264] = bump, bump
    out_a, out_b = net(a, time_input)[..., 236:276], net(b, time_input)[..., 240:280]
    assert (out_a - out_b).abs().max() < 1e-9
    assert (out_a - net(b, time_input)[..., 236:276]).abs().max() > 1e-2
