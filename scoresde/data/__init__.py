"""Data: toys, digits, arrays, idx files and image folders, each with its scale and number of levels."""

from scoresde.data.arrays import from_array, load_array
from scoresde.data.base import Data
from scoresde.data.batches import Batches, StreamBatches, stream_batches
from scoresde.data.corrupt import CORRUPTIONS, corrupt
from scoresde.data.dequantization import Dequantization, TruncatedNormal, Uniform
from scoresde.data.digits import load_digits
from scoresde.data.idx import load_idx, load_idx_folder, read_idx
from scoresde.data.images import load_images
from scoresde.data.load import SOURCES, load_data, load_whole
from scoresde.data.loading import from_dataset
from scoresde.data.mapped import Mapped, map_array
from scoresde.data.scaling import Scaling
from scoresde.data.toys import TOYS, checkerboard, gaussian_grid, load_toy, rings, swiss_roll, two_moons

__all__ = [
    "CORRUPTIONS",
    "SOURCES",
    "TOYS",
    "Batches",
    "Data",
    "Dequantization",
    "Mapped",
    "Scaling",
    "StreamBatches",
    "TruncatedNormal",
    "Uniform",
    "checkerboard",
    "corrupt",
    "from_array",
    "from_dataset",
    "gaussian_grid",
    "load_array",
    "load_data",
    "load_digits",
    "load_idx",
    "load_idx_folder",
    "load_images",
    "load_toy",
    "load_whole",
    "map_array",
    "read_idx",
    "rings",
    "stream_batches",
    "swiss_roll",
    "two_moons",
]
