"""The diffusion transformer against a peer, and part by part.

The peer has the same weights.
"""

import math

import pytest
import torch

from scoresde.errors import ShapeError
from scoresde.nets import DiT


def awake(*shape, **options):
    torch.manual_seed(0)
    net = DiT(shape, width=24, blocks=2, heads=2, **options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def _from_ours(net, peer, grid):
    """Load our weights and positions into the peer.

    The peer embeds time and class in each block.
    """
    weights = {"pos_embed.proj.weight": net.stem.weight.view(-1, 2, 2, 2), "pos_embed.proj.bias": net.stem.bias}
    modulations = {p: getattr(net.modulation, p).split(net._sizes) for p in ("weight", "bias")}
    for k, block in enumerate(net.blocks):
        ours = block.state_dict()
        name = f"transformer_blocks.{k}."
        for p in ("weight", "bias"):
            for part, value in zip(("to_q", "to_k", "to_v"), ours[f"qkv.{p}"].chunk(3), strict=True):
                weights[f"{name}attn1.{part}.{p}"] = value
            weights[f"{name}attn1.to_out.0.{p}"] = ours[f"out.{p}"]
            weights[f"{name}ff.net.0.proj.{p}"], weights[f"{name}ff.net.2.{p}"] = ours[f"mlp.0.{p}"], ours[f"mlp.3.{p}"]
            weights[f"{name}norm1.linear.{p}"] = modulations[p][k]
            for i in (0, 2):
                target = f"{name}norm1.emb.timestep_embedder.linear_{1 + i // 2}.{p}"
                weights[target] = getattr(net.conditioning.mlp[i], p)
        weights[f"{name}norm1.emb.class_embedder.embedding_table.weight"] = net.conditioning.classes.table.weight
    for p in ("weight", "bias"):
        weights[f"proj_out_1.{p}"] = modulations[p][-1]
        head = getattr(net.head, p).unflatten(0, (4, 2, 2))  # (out, patch, patch); the peer has its channels last
        weights[f"proj_out_2.{p}"] = head.movedim(0, 2).flatten(0, 2)
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("pos_embed" in name for name in missing)
    peer.pos_embed.pos_embed.copy_(net._positions(grid, net.stem.weight)[None])
    for block in peer.transformer_blocks:
        block.norm1.emb.time_proj.flip_sin_to_cos = False
        block.norm1.emb.time_proj.downscale_freq_shift = 0


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_dit_is_the_peers_network(fused):
    from diffusers import DiTTransformer2DModel

    net = awake(2, 8, 8, classes=3, out_channels=4, fused_attention=fused)
    peer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_eps=1e-6,
    )
    peer = peer.double().eval()
    with torch.no_grad():
        _from_ours(net, peer, (4, 4))
        x, time_input = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0.5, 3.0, 2.0], dtype=torch.float64)
        y = torch.tensor([0, 2, 1])
        expected = peer(x, timestep=time_input, class_labels=y).sample  # its time features are in float32
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, time_input, y=y), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 1, 3)])
def test_positions_equal_their_closed_form(grid):
    net = DiT((1, *(2 * n for n in grid)), width=24, blocks=1)
    table = net._positions(grid, torch.zeros((), dtype=torch.float64)).view(*grid, 24)
    d = 24 // len(grid)
    for position in torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid)).tolist():
        expected = []
        for index in position:
            phases = [index * 10000 ** (-k / (d / 2)) for k in range(d // 2)]
            expected += [math.sin(p) for p in phases] + [math.cos(p) for p in phases]
        assert table[tuple(position)].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 8), (2, 4, 6), (1, 2, 4, 6)])
def test_tokens_are_patches(shape):
    net = DiT(shape, width=24, blocks=1)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    grid = [n // 2 for n in shape[1:]]
    tokens = net._tokens(x)
    assert tokens.shape == (2, math.prod(grid), shape[0] * 2 ** len(grid))
    last = x[(slice(None), slice(None), *(slice(-2, None) for _ in grid))]  # the patch in the far corner
    assert torch.equal(tokens[:, -1], last.flatten(1))
    second = x[(slice(None), slice(None), *(slice(0, 2) for _ in grid[1:]), slice(2, 4))]  # the last axis runs first
    assert torch.equal(tokens[:, 1], second.flatten(1))
    assert torch.equal(net._untokens(tokens, grid), x)


def test_blocks_are_the_identity_at_the_start():
    torch.manual_seed(0)
    net = DiT((1, 8), width=24, blocks=1)
    h = torch.randn(2, 4, 24)
    modulation = net.modulation(torch.randn(2, 24)).split(net._sizes, dim=1)[0]
    assert torch.equal(net.blocks[0](h, modulation), h)


def test_other_lengths_are_accepted_if_patches_fit():
    net = awake(1, 8, 8)
    time_input = torch.ones(2, dtype=torch.float64)
    assert net(torch.randn(2, 1, 12, 6, dtype=torch.float64), time_input).shape == (2, 1, 12, 6)
    with pytest.raises(ShapeError, match="multiples of patch = 2"):
        net(torch.randn(2, 1, 7, 8, dtype=torch.float64), time_input)
