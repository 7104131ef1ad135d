"""Networks with another way to be called, and another output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, DTypeError, UnknownNameError

ORDERS = ("xt", "tx")
#: dtypes that a network may want for the time, by their saved names
TIME_DTYPES = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32, "float64": torch.float64}


def not_a_tensor(result: object) -> DTypeError:
    """Return the error of a network that returns something else."""
    parts: Any = result.items() if isinstance(result, Mapping) else ()
    if isinstance(result, (tuple, list)):
        parts = enumerate(result)
    held = ", ".join(f"{key!r}: {_kind(value)}" for key, value in parts)
    expected = "a tensor of the shape of x; adapt(net, output=...) takes one entry"
    return DTypeError("net's output", f"{type(result).__name__}{f' of {held}' if held else ''}", expected)


def _kind(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def tensor_of(result: object, output: int | str | None) -> Tensor:
    """Return the tensor in what a network returns.

    Args:
        result: A tensor; a tuple or list; a mapping; or an object with attributes.
        output: Place or name of the tensor. None: the result, the first entry of a tuple or list, or its ``sample``.

    Raises:
        DTypeError: There is no tensor; the message says what came.
        ArgumentError: The entry is missing; the message lists those that there are.
    """
    if output is None:
        if isinstance(result, (tuple, list)) and result:
            result = result[0]
        elif not isinstance(result, Tensor):
            sample = result.get("sample") if isinstance(result, Mapping) else getattr(result, "sample", None)
            result = sample if isinstance(sample, Tensor) else result
    elif isinstance(output, str) and not isinstance(result, Mapping):
        if not hasattr(result, output):
            raise ArgumentError("output", repr(output), f"an attribute of the network's {type(result).__name__}")
        result = getattr(result, output)
    else:
        try:
            result = result[output]  # type: ignore[index]  # what cannot be indexed is refused below
        except (KeyError, IndexError, TypeError) as error:
            names = (
                f"{type(result).__name__} with {', '.join(map(repr, result))}" if isinstance(result, Mapping) else ""
            )
            expected = f"an entry of what the network returns, a {names or type(result).__name__}"
            raise ArgumentError("output", repr(output), expected) from error
    if not isinstance(result, Tensor):
        raise not_a_tensor(result)
    return result


class Adapted(nn.Module):
    """A network called in its own way, see :func:`adapt`.

    Args:
        net: The network.
        output, time_dtype, order, names: As for :func:`adapt`.
        time_input: Name of the time input.

    Attributes:
        time_input: The time input that the network takes, for :class:`~scoresde.models.ScoreModel`. None: any.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        output: int | str | None,
        time_input: str | None,
        time_dtype: torch.dtype | None,
        order: str,
        names: Mapping[str, str],
    ):
        super().__init__()
        self.net, self.output, self.time_input = net, output, time_input
        self.time_dtype, self.order, self.names = time_dtype, order, dict(names)

    @property
    def settings(self) -> dict[str, Any]:
        """What :func:`adapt` needs besides the network, in the types of JSON."""
        dtypes = {dtype: name for name, dtype in TIME_DTYPES.items()}
        return {
            "output": self.output,
            "time": self.time_input,
            "time_dtype": None if self.time_dtype is None else dtypes[self.time_dtype],
            "order": self.order,
            "names": self.names,
        }

    def forward(self, x: Tensor, time_input: Tensor, **cond: Any) -> Tensor:
        if self.time_dtype is not None:
            counts = not self.time_dtype.is_floating_point
            time_input = (time_input.round() if counts else time_input).to(self.time_dtype)
        given = {self.names.get(name, name): value for name, value in cond.items()}
        pair = {"x": x, "t": time_input}
        named = {self.names[one]: pair.pop(one) for one in ("x", "t") if one in self.names}
        return tensor_of(self.net(*(pair[one] for one in self.order if one in pair), **named, **given), self.output)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items() if value)


@checked
def adapt(
    net: Callable[..., Any],
    output: int | str | None = None,
    time: str | None = None,
    time_dtype: torch.dtype | str | None = None,
    order: str = "xt",
    names: Mapping[str, str] | None = None,
) -> Adapted:
    """Return any torch network as one of a ``ScoreModel``. ::

        net = adapt(theirs, output="sample", time="ddpm", time_dtype=torch.long, order="tx")
        model = ScoreModel(net, DDPM.linear(1000))

    Args:
        net: A network, or any function.
        output: Place (a number) or name (of an entry or an attribute) of the tensor in what the network returns. None:
            the tensor itself, the first entry of a tuple or list, or ``sample``.
        time: Name of its time input in :data:`~scoresde.models.time_inputs.TIME_INPUTS`, such as ``"ddpm"`` for steps
            counted from 0. None: left to the model.
        time_dtype: Dtype in which it wants the time, such as ``torch.long``; integers are rounded to. None: as it is.
        order: ``"xt"`` (default) for ``net(x, t)``, or ``"tx"``.
        names: Names of its arguments, by ours: ``{"x": "sample", "t": "timestep"}`` passes both by keyword, and
            ``{"y": "class_labels"}`` renames a condition.

    Returns:
        A ``torch.nn.Module`` with the network inside. A model with it can be saved; to load it, the network's class or
        an instance is passed (``ScoreModel.from_pretrained(folder, net=...)``).

    Raises:
        ArgumentError, DTypeError, UnknownNameError: Settings that are none of these. When called: an output without
            such an entry, or that is no tensor.
    """
    if not callable(net):
        raise DTypeError("net", type(net).__name__, "a network, or any function (x, t) -> tensor")
    if order not in ORDERS:
        raise UnknownNameError("order", order, ORDERS)
    dtype = TIME_DTYPES.get(time_dtype) if isinstance(time_dtype, str) else time_dtype
    if time_dtype is not None and dtype not in TIME_DTYPES.values():
        raise DTypeError("time_dtype", time_dtype, f"one of {', '.join(TIME_DTYPES)}")
    if isinstance(output, bool):
        raise DTypeError("output", "bool", "a place, a name, or None")
    return Adapted(net, output, time, dtype, order, names or {})
