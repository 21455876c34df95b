"""Who reads the same tensor, and what is added to what: found by one run of a copy, without capturing a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import evaluation_mode, private_copy
from lightning_compress.surgery.tracing import tensors_in

_ADDS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}


@dataclass(frozen=True)
class Dataflow:
    """What one run has shown.

    Attributes:
        readers: groups of layers, each called once, that read the same tensor; in the order of the calls.
        order: layers in the order of their first calls.
        operands: modules whose outputs are added to a tensor of the same shape.
        loose: operands of such adds that no module returns.
        silent: layers that were not called.
    """

    readers: tuple[tuple[str, ...], ...]
    order: tuple[str, ...]
    operands: tuple[str, ...]
    loose: int
    silent: tuple[str, ...]


def trace_dataflow(root: nn.Module, layers: Collection[str], run: Callable[[nn.Module], object]) -> Dataflow:
    """Run a copy of ``root`` once, in evaluation mode.

    Args:
        root: afterwards as it was, random states too.
        layers: names of layers whose inputs are looked at.
        run: runs the copy that it is given.

    Raises:
        CompressionError: a layer reads NaN or infinite values.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> trace_dataflow(net, ["0", "2"], lambda copy: copy(torch.ones(1, 2))).order
    ('0', '2')
    """
    duplicate = private_copy(root)
    reads: dict[str, list[Tensor]] = {name: [] for name in layers}
    order: dict[str, None] = {}
    made: dict[int, str] = {}
    alive: list[Any] = []

    def before(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = next(tensors_in((args, kwargs)), None)
            if value is not None:
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise CompressionError(
                        f"{name!r} reads values that are not finite (NaN or infinite), so they have no range to "
                        "quantize. Look at the data and at the layers before it."
                    )
                reads[name].append(value)
                order[name] = None

        return note

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not any(output is value for value in tensors_in(args)):
                alive.append(output)
                made.setdefault(id(output), name)

        return note

    for name, module in duplicate.named_modules():
        if name:
            module.register_forward_hook(after(name))
        if name in reads:
            module.register_forward_pre_hook(before(name), with_kwargs=True)
    adds = _Adds()
    with torch.no_grad(), isolated_random_states(), evaluation_mode(duplicate), adds:
        run(duplicate)
    operands = [made.get(id(value), "") for value in adds.operands]
    return Dataflow(
        readers=_groups({name: values[0] for name, values in reads.items() if len(values) == 1}),
        order=tuple(order),
        operands=tuple(dict.fromkeys(filter(None, operands))),
        loose=operands.count(""),
        silent=tuple(name for name, values in reads.items() if not values),
    )


class _Adds(TorchFunctionMode):
    """Notes what is added to what."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _ADDS and len(args) >= 2 and all(isinstance(value, Tensor) for value in args[:2]):
            one, other = args[:2]
            parameters = any(isinstance(value, nn.Parameter) for value in (one, other))
            if one.shape == other.shape and one.dim() >= 2 and one.is_floating_point() and not parameters:
                self.operands += [one, other]
        return function(*args, **(kwargs or {}))


def _groups(reads: dict[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for name, value in reads.items():
        groups.setdefault(id(value), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
