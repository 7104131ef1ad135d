"""The U-Net against a peer with the same weights.

Also its options, one by one.
"""

import math

import pytest
import torch

from scoresde.nets import UNet, build_net
from scoresde.nets.unet_blocks import Attention, ResBlock, Style, doubled, halved

COMPACT = {"name": "unet", "shape": [2, 8, 8], "channels": 8, "multipliers": [1, 2], "classes": 3, "num_groups": 4}


def test_old_networks_still_load():
    """Check a configuration without the later options.

    Its parameters have the old names and shapes.
    """
    net = build_net(COMPACT)
    stages = {"down.0.0": (8, 8), "down.1.0": (8, 16), "middle": (16, 16), "up.0.0": (32, 16), "up.1.0": (24, 8)}
    shapes = {"stem": (8, 2, 3, 3), "halve.1": (8, 8, 3, 3), "head.0": (8,), "head.2": (2, 8, 3, 3)}
    shapes |= {"middle.attend.norm": (16,), "middle.attend.qkv": (48, 16, 1, 1), "middle.attend.out": (16, 16, 1, 1)}
    shapes |= {"conditioning.mlp.0": (32, 16), "conditioning.mlp.2": (32, 32), "modulation": (2 * (8 + 16 * 3 + 8), 32)}
    for stage, (inputs, width) in stages.items():
        shapes |= {f"{stage}.block.norm1": (inputs,), f"{stage}.block.conv1": (width, inputs, 3, 3)}
        shapes |= {f"{stage}.block.norm2": (width,), f"{stage}.block.conv2": (width, width, 3, 3)}
        if inputs != width:
            shapes |= {f"{stage}.block.skip": (width, inputs, 1, 1)}
    expected = {f"{name}.weight": shape for name, shape in shapes.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    expected |= {"conditioning.classes.table.weight": (4, 32)}
    assert {name: tuple(p.shape) for name, p in net.state_dict().items()} == expected


def _from_diffusers(peer, ours):
    """Load the peer's weights into our network.

    The layers have other names, and we compute some projections as one.
    """
    theirs, weights, projections, qkv = peer.state_dict(), ours.state_dict(), {}, {}
    levels = len(ours.down)
    names = {"conv_in": "stem", "conv_norm_out": "head.0", "conv_out": "head.2"}
    names |= {"time_embedding.linear_1": "conditioning.mlp.0", "time_embedding.linear_2": "conditioning.mlp.2"}
    names |= {"mid_block.resnets.0": "middle.block", "mid_block.resnets.1": "last"}
    names |= {"mid_block.attentions.0": "middle.attend"}
    for k in range(levels):
        for way in ("down", "up"):
            for i in range(3):
                names |= {f"{way}_blocks.{k}.resnets.{i}": f"{way}.{k}.{i}.block"}
                names |= {f"{way}_blocks.{k}.attentions.{i}": f"{way}.{k}.{i}.attend"}
        for theirs_, ours_ in (("down_blocks.{}.downsamplers.0", "halve"), ("up_blocks.{}.upsamplers.0", "enlarge")):
            names |= {theirs_.format(k) + end: f"{ours_}.{k + 1}" for end in (".conv", "")}
    parts = {"conv_shortcut": "skip", "group_norm": "norm", "to_out.0": "out"}
    order = [f"down.{k}.{i}.block" if i >= 0 else f"halve.{k}" for k in range(levels) for i in range(k and -1, 2)]
    order += ["middle.block", "last"]
    order += [f"up.{k}.{i}.block" if i >= 0 else f"enlarge.{k}" for k in range(levels) for i in range(k and -1, 3)]
    for key, value in theirs.items():
        module, parameter = key.rsplit(".", 1)
        prefix = max((n for n in names if module == n or module.startswith(n + ".")), key=len)
        part = module[len(prefix) + 1 :]
        if part == "time_emb_proj":
            projections[names[prefix], parameter] = value
        elif part in ("to_q", "to_k", "to_v"):
            qkv.setdefault((names[prefix], parameter), []).append(value)
        else:
            name = ".".join(filter(None, (names[prefix], parts.get(part, part), parameter)))
            weights[name] = value.view(weights.pop(name).shape)
    for (name, parameter), values in qkv.items():
        weights[f"{name}.qkv.{parameter}"] = torch.cat(values).view(weights[f"{name}.qkv.{parameter}"].shape)
    for parameter in ("weight", "bias"):
        weights[f"modulation.{parameter}"] = torch.cat(
            [projections[n, parameter] for n in order if (n, parameter) in projections]
        )
    for name in weights:  # the peer has no learned skip where a block resamples
        if name.split(".")[0] in ("halve", "enlarge") and ".skip." in name:
            weights[name] = (
                torch.eye(len(weights[name]))[:, :, None, None] if name.endswith("weight") else 0 * weights[name]
            )
    ours.load_state_dict(weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resample", "scale_shift", "head_channels"),
    [("conv", False, None), ("conv", True, 8), ("block", True, None)],
    ids=["ddpm", "scale-shift", "adm"],
)
def test_ddpm_layout_is_the_peers_network(resample, scale_shift, head_channels):
    from diffusers import UNet2DModel

    down = {"conv": "DownBlock2D", "block": "ResnetDownsampleBlock2D"}[resample]
    up = {"conv": "UpBlock2D", "block": "ResnetUpsampleBlock2D"}[resample]
    torch.manual_seed(0)
    peer = UNet2DModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=(down, "AttnDownBlock2D", down),
        up_block_types=(up, "AttnUpBlock2D", up),
        downsample_type={"conv": "conv", "block": "resnet"}[resample],
        upsample_type={"conv": "conv", "block": "resnet"}[resample],
        downsample_padding=1,
        attention_head_dim=head_channels,
        norm_num_groups=4,
        flip_sin_to_cos=False,
        freq_shift=0,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
    ).double()
    ours = UNet(
        (2, 16, 16),
        channels=8,
        multipliers=(1, 2, 2),
        blocks=2,
        attention=(1,),
        heads=1,
        head_channels=head_channels,
        num_groups=4,
        scale_shift=scale_shift,
        layout="ddpm",
        resample=resample,
    ).double()
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    _from_diffusers(peer, ours)
    if peer.mid_block.attentions[0].group_norm is None:  # as the peer computes scale and shift
        ours.middle.attend.norm = torch.nn.Identity()
    x, time_input = torch.randn(2, 2, 16, 16, dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    for module in (*peer.modules(), *ours.modules()):
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5
    expected = peer(x, time_input).sample  # the peer computes the features of the time input in float32
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, time_input), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


def test_attentions_of_each_layout():
    """List the attention modules for two levels of two blocks."""
    where = {}
    for layout in ("compact", "ddpm", "ddpm++"):
        net = UNet((1, 8), channels=8, blocks=2, attention=(0, 1), layout=layout)
        where[layout] = {n.removesuffix(".attend") for n, m in net.named_modules() if isinstance(m, Attention)}
    down = {"down.0.0", "down.0.1", "down.1.0", "down.1.1"}
    assert where["compact"] == {"down.0.0", "down.0.1", "middle", "up.1.0", "up.1.1"}
    assert where["ddpm"] == down | {"middle"} | {f"up.{k}.{i}" for k in (0, 1) for i in (0, 1, 2)}
    assert where["ddpm++"] == down | {"middle", "up.0.2", "up.1.2"}


def _filtered(x, taps, start):
    """Return sum_k taps[k] x[i + start + k], with the border entries repeated."""
    n = len(x)
    return [sum(t * x[min(max(i + start + k, 0), n - 1)] for k, t in enumerate(taps)) for i in range(n)]


@pytest.mark.parametrize("n", [8, 2, 1, 4])
def test_fir_resampling_is_the_filter_1331(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    half = _filtered(x.tolist(), [1 / 8, 3 / 8, 3 / 8, 1 / 8], -1)[::2]
    assert halved(x[None, None], fir=True).flatten().tolist() == pytest.approx(half, abs=1e-12)
    zeros = [v for value in x.tolist() for v in (value, 0.0)]  # zeros between the values; the border's value continues
    padded = [x[0].item(), 0.0, *zeros, x[-1].item(), 0.0]
    twice = [sum(t * padded[i + k] for k, t in enumerate([1 / 4, 3 / 4, 3 / 4, 1 / 4])) for i in range(2 * n)]
    out = doubled(x[None, None], torch.Size([2 * n]), fir=True).flatten().tolist()
    assert out == pytest.approx(twice, abs=1e-12)
    assert doubled(x[None, None], torch.Size([2 * n - 1]), fir=True).flatten().tolist() == pytest.approx(out[:-1])


@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize("size", [(8,), (5,), (1,), (4, 7), (3, 2, 5)])
def test_resampling_keeps_constants_and_rounds_up(fir, size):
    h = torch.full((2, 3, *size), 0.7, dtype=torch.float64)
    half = halved(h, fir=fir)
    assert half.shape[2:] == tuple(math.ceil(n / 2) for n in size)
    again = doubled(half, h.shape[2:], fir=fir)
    torch.testing.assert_close(half, torch.full_like(half, 0.7))
    torch.testing.assert_close(again, h)


def test_skip_rescale_keeps_the_variance():
    """Add a skip and a residual, equal in law and independent.

    The rescaled sum has the variance of each.
    """
    kinds = {}
    for rescale in (False, True):
        torch.manual_seed(0)
        block = ResBlock(64, 64, Style(rank=1, groups=8, scale_shift=False, rescale=rescale))
        h = torch.randn(16, 64, 64)
        kinds[rescale] = block(h, torch.zeros(16, 64)), h
    (plain, h), (scaled, _) = kinds.values()
    torch.testing.assert_close(scaled, plain / math.sqrt(2))
    net = UNet((1, 16), channels=16, blocks=2, attention=(0,), skip_rescale=True)
    gains = [m.gain for m in net.modules() if isinstance(m, ResBlock | Attention)]
    assert gains == [math.sqrt(0.5)] * len(gains)


def test_fourier_inputs_have_the_declared_period():
    """Drop the raw channel: the network sees x modulo 2^(1 - n).

    n is the smallest exponent.
    """
    net = UNet((1, 16), channels=8, num_groups=4, fourier_inputs=(3, 4), zero_init=False).double()
    x = torch.rand(2, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time_input = torch.ones(2, dtype=torch.float64)
    assert (net(x, time_input) - net(x + 2**-2, time_input)).abs().max() > 1e-3
    with torch.no_grad():
        net.stem.weight[:, :1] = 0
    torch.testing.assert_close(net(x, time_input), net(x + 2**-2, time_input))
    assert (net(x, time_input) - net(x + 2**-3, time_input)).abs().max() > 1e-3


def test_xavier_weights_have_the_variance_of_their_own_layer():
    """Compare each layer's weights with their uniform law.

    They lie within sqrt(6 / (fan_in + fan_out)) of their layer, also where layers are joined.
    """
    torch.manual_seed(0)
    net = UNet((2, 8, 8), channels=32, attention=(0,), layout="ddpm", init="xavier", zero_init=False)
    conv, qkv = net.down[1][0].block.conv1, net.down[0][0].attend.qkv
    parts = [(conv.weight, 9 * (32 + 64)), (net.conditioning.mlp[0].weight, 32 + 128)]
    parts += [(part, 32 + 32) for part in qkv.weight.chunk(3)]
    parts += [(part, 128 + len(part)) for part in net.modulation.weight.split(net._sizes)]
    for weight, fans in parts:
        limit = math.sqrt(6 / fans)
        assert 0.98 * limit < weight.abs().max() <= limit  # at least 1024 draws: false alarm 0.98^1024 = 1e-9
        # the variance of n uniform draws has relative error sqrt(4 / (5 n)); 5 sigma: false alarm 6e-7
        assert abs(weight.var() / (limit**2 / 3) - 1) < 5 * math.sqrt(0.8 / weight.numel())
    assert all(m.bias.count_nonzero() == 0 for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
