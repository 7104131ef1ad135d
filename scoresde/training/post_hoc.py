r"""Averages of weights, their length chosen after the training (EDM2).

A power-function average weighs the weights of step tau in proportion to tau^gamma. Two of them are kept during
training, and snapshots of them go to ``averages/step-N.safetensors`` beside the checkpoints. Afterwards a weighted sum
of the snapshots approximates any other average, by least squares between the averages' weight profiles.

References: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", sec. 3.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, CheckpointError, CheckpointWarning, warn
from scoresde.files import digest, load_tensors, read_json, save_tensors, write_atomically
from scoresde.models import ScoreModel
from scoresde.models.pretrained import altered, bare_name
from scoresde.training.checkpoints import latest_checkpoint

SIGMA_RELS = (0.05, 0.10)
LARGEST = 12**-0.5  # sigma_rel of the plain mean, gamma = 0
FOLDER = "averages"
ERROR = 0.05  # relative error of a profile above which a reconstructed average is warned of

_NAME = re.compile(r"step-(\d{9,})\.safetensors")


def power_exponent(sigma_rel: float) -> float:
    """Return gamma of the power-function average of a relative width.

    It solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), where sigma_rel is the standard deviation of the
    averaged steps as a fraction of the training (EDM2, eq. 126).

    Raises:
        ArgumentError: ``sigma_rel`` outside (0, 0.2886].
    """
    if not positive("sigma_rel", sigma_rel) <= LARGEST:
        raise ArgumentError("sigma_rel", sigma_rel, f"a number in (0, {LARGEST:.4g}], the last being the plain mean")
    t = sigma_rel**-2
    return float(max(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real))


@checked
class PowerEMA:
    """Power-function averages of a module's floating tensors.

    The n-th update takes w <- beta w + (1 - beta) w_n with beta = (1 - 1/n)^(gamma + 1).

    Args:
        module: module that is trained.
        sigma_rels: relative widths of the averages.
    """

    def __init__(self, module: nn.Module, sigma_rels: Sequence[float] = SIGMA_RELS):
        self.module, self.updates = module, 0
        self.sigma_rels = tuple(float(one) for one in sigma_rels)
        self._exponents = [power_exponent(one) for one in self.sigma_rels]
        self._live = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self.averages = [{name: value.clone() for name, value in self._live.items()} for _ in self.sigma_rels]

    @torch.no_grad()
    def update(self) -> None:
        """Add the module's current weights to the averages."""
        self.updates += 1
        live = list(self._live.values())
        for average, exponent in zip(self.averages, self._exponents, strict=True):
            torch._foreach_lerp_(list(average.values()), live, 1 - (1 - 1 / self.updates) ** (exponent + 1))

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages, under the names ``I.NAME`` of average I."""
        names = {name: bare_name(name, self.module) for name in self._live}
        return {f"{i}.{names[key]}": value for i, one in enumerate(self.averages) for key, value in one.items()}

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Load :meth:`tensors`, saved after ``updates`` updates.

        Raises:
            KeyError: a missing tensor.
        """
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.updates = updates

    def save(self, root: Path) -> None:
        """Write a snapshot into ``root/averages``, its checksum last."""
        folder = root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.updates:09d}.safetensors"
        save_tensors(self.tensors(), path)
        about = {"sigma_rels": self.sigma_rels, "sha256": digest(path)}
        write_atomically(path.with_suffix(".json"), json.dumps(about) + "\n")


def snapshots(root: str | Path) -> dict[int, Path]:
    """Return the whole snapshots beside the checkpoints in ``root``, by step."""
    found = {int(match[1]): path for path in Path(root, FOLDER).glob("*") if (match := _NAME.fullmatch(path.name))}
    return {step: path for step, path in sorted(found.items()) if path.with_suffix(".json").exists()}


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a snapshot whose checksum is right."""
    if read_json(path.with_suffix(".json"), "root").get("sha256") != digest(path):
        raise altered(path)
    return load_tensors(path)


def rewind(root: Path, step: int) -> None:
    """Remove the snapshots after ``step``, from which a training goes on."""
    for later, path in snapshots(root).items():
        if later > step:
            path.with_suffix(".json").unlink()
            path.unlink()


class _Profile(NamedTuple):
    """Weights of the steps in a power-function average of ``step`` steps."""

    step: int
    exponent: float


def _power_products(a: Sequence[_Profile], b: Sequence[_Profile]) -> NDArray[np.float64]:
    """Return the inner products of power profiles, integrals over the steps.

    With g = gamma + 1 and t the number of steps that is g g' min(t, t')^(g + g' - 1) / ((g + g' - 1) t^g t'^g').
    """
    (t, g), (s, h) = ((np.array([[p.step, p.exponent + 1] for p in one])).T for one in (a, b))
    t, g = t[:, None], g[:, None]
    least = np.log(np.minimum(t, s))
    return np.asarray(g * h / (g + h - 1) * np.exp((g + h - 1) * least - g * np.log(t) - h * np.log(s)))


def _exponential_products(a: Sequence[_Profile], half_life: float, step: int) -> tuple[NDArray[np.float64], float]:
    """Return the products with an exponential average, and its norm squared.

    Its profile is 2^(-(step - tau)/half_life), up to a constant. The products have Kummer's function 1F1.
    """
    from scipy.special import hyp1f1

    rate = math.log(2) / half_life
    whole_weight = -math.expm1(-rate * step)
    t, gamma = np.array([[p.step, p.exponent] for p in a]).T
    products = rate * np.exp(-rate * (step - t)) * hyp1f1(1.0, gamma + 2, -rate * t) / whole_weight
    return products, rate / 2 * -math.expm1(-2 * rate * step) / whole_weight**2


@checked
def post_hoc_average(
    root: str | Path,
    *,
    half_life: float | None = None,
    sigma_rel: float | None = None,
    step: int | None = None,
    net: nn.Module | Callable[..., nn.Module] | None = None,
) -> ScoreModel:
    """Return a trained model with an average of any length of its weights.

    Args:
        root: folder of the checkpoints of a training with ``snapshot_every``.
        half_life: half-life of an exponential average, in steps.
        sigma_rel: relative width of a power-function average, in (0, 0.2886]; EDM2's best are .05 to .15. Exactly one
            of both is given.
        step: step at which the average ends, one that has a snapshot. None: the last one.
        net: as for :meth:`ScoreModel.from_pretrained`, for a network that is not registered.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        ArgumentError: neither or both of the two lengths, or a step without a snapshot.
        CheckpointError: no checkpoint or no snapshots.

    Warns:
        CheckpointWarning: the snapshots are too far apart for this average. Its profile over the steps is then off by
        more than 5 % in the root mean square; the message says by how much.

    References: Karras et al. 2024, sec. 3.2 and app. C.
    """
    root = Path(root)
    if (half_life is None) == (sigma_rel is None):
        got = "neither" if half_life is None else f"{half_life} and {sigma_rel}"
        raise ArgumentError("half_life, sigma_rel", got, "one of both, the length of the average")
    model = ScoreModel.from_pretrained(latest_checkpoint(root), net=net)
    found = snapshots(root)
    if not found:
        raise CheckpointError("root", f"{root}, without snapshots", "a training with TrainerConfig(snapshot_every=...)")
    step = max(found) if step is None else whole("step", step)
    if step not in found:
        raise ArgumentError("step", step, f"one with a snapshot: {', '.join(map(str, found))}")

    # 1. the weights of the snapshots, by least squares
    paths = [path for later, path in found.items() if later <= step]
    sigma_rels = [read_json(path.with_suffix(".json"), "root")["sigma_rels"] for path in paths]
    steps = [later for later in found if later <= step]
    profiles = [_Profile(n, power_exponent(s)) for n, several in zip(steps, sigma_rels, strict=True) for s in several]
    if half_life is None:
        assert sigma_rel is not None  # checked above
        target = [_Profile(step, power_exponent(sigma_rel))]
        products, norm = _power_products(profiles, target)[:, 0], float(_power_products(target, target)[0, 0])
    else:
        products, norm = _exponential_products(profiles, positive("half_life", half_life), step)
    weights, error = _least_squares(_power_products(profiles, profiles), products, norm)
    if error > ERROR:
        length = f"half-life {half_life:g}" if half_life is not None else f"sigma_rel {sigma_rel:g}"
        text = f"an average of {length} at step {step} is {100 * error:.0f} % off in its weights of the steps"
        warn(f"{text}: the snapshots are too far apart for it.", CheckpointWarning, stacklevel=2)

    # 2. their sum, in the network of the newest checkpoint
    parts = weights.reshape(len(paths), -1)
    state = model.net.state_dict()
    total: dict[str, Tensor] = {}
    for path, row in zip(paths, parts, strict=True):
        tensors = _read(path)
        for i, weight in enumerate(row.tolist()):
            for name in state:
                if f"{i}.{name}" in tensors:
                    total[name] = weight * tensors[f"{i}.{name}"].double() + total.get(name, 0.0)
    model.net.load_state_dict(state | {name: value.to(state[name].dtype) for name, value in total.items()})
    return model.eval()


def _least_squares(
    gram: NDArray[np.float64], products: NDArray[np.float64], norm: float
) -> tuple[NDArray[np.float64], float]:
    """Return the nearest weighted sum's weights, and its relative error.

    The weights add up to one, as those of every average do.
    """
    scale = np.sqrt(np.diag(gram))
    n = len(scale)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram / scale / scale[:, None]
    system[:n, n] = system[n, :n] = 1 / scale * scale.min()
    right = np.append(products / scale, scale.min())
    weights = np.linalg.lstsq(system, right, rcond=1e-13)[0][:n] / scale
    square = norm - 2 * weights @ products + weights @ gram @ weights
    return weights, math.sqrt(max(0.0, square / norm))
