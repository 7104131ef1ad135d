"""Networks: U-Net and residual MLP, the embeddings they use, and a registry that builds them by name.

A network is called as ``net(x, label, y=None)`` and knows nothing of SDEs: ``label`` is any scalar made from time.
"""

from scoresde.nets.embeddings import Conditioning, Fourier, LabelEmbedding, Sinusoidal
from scoresde.nets.mlp import ResidualMLP
from scoresde.nets.registry import build_net, net_names, net_options, register_net
from scoresde.nets.unet import UNet

__all__ = [
    "Conditioning",
    "Fourier",
    "LabelEmbedding",
    "ResidualMLP",
    "Sinusoidal",
    "UNet",
    "build_net",
    "net_names",
    "net_options",
    "register_net",
]
