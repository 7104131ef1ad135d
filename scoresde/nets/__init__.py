"""Networks: U-Net, diffusion transformer and residual MLP, their embeddings, presets, and a registry of them by name.

A network is called as ``net(x, label, y=None)`` and knows nothing of SDEs: ``label`` is any scalar made from time.
"""

from scoresde.nets.dit import DiT
from scoresde.nets.embeddings import Conditioning, Fourier, LabelEmbedding, Sinusoidal
from scoresde.nets.mlp import ResidualMLP
from scoresde.nets.presets import PRESETS, NetPreset, net_preset
from scoresde.nets.registry import build_net, net_names, net_options, register_net
from scoresde.nets.unet import UNet

__all__ = [
    "PRESETS",
    "Conditioning",
    "DiT",
    "Fourier",
    "LabelEmbedding",
    "NetPreset",
    "ResidualMLP",
    "Sinusoidal",
    "UNet",
    "build_net",
    "net_names",
    "net_options",
    "net_preset",
    "register_net",
]
