"""Factored layers multiplied out again into one dense layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_compress.architecture.geometry import Geometry
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Plan, Record, ReplaceModule
from lightning_compress.plan.concatenation import Concatenation
from lightning_compress.surgery.compensation import write_


def merge_(
    network: nn.Module, targets: Sequence[str] | None = None, apply: Callable[[ReplaceModule], None] | None = None
) -> list[str]:
    """Multiply factored layers out, in place, through the Plan: one layer each that computes the same.

    Args:
        network: with layers that :func:`~lightning_compress.architecture.low_rank_` or the callbacks have replaced.
        targets: names of them; None is all.
        apply: makes one edit; by default :meth:`~lightning_compress.plan.Record.apply`, in mid-fit the Session's.

    Returns:
        Their names.

    Raises:
        CompressionError: a name that is no factored layer.

    >>> from lightning_compress.architecture import low_rank_
    >>> net = nn.Sequential(nn.Linear(32, 32))
    >>> conversion = low_rank_(net, ranks={"0": 4})
    >>> merge_(net), net[0]
    (['0'], Linear(in_features=32, out_features=32, bias=True))
    """
    replaced = dict.fromkeys(edit.module for edit in Plan.of(network).edits if isinstance(edit, ReplaceModule))
    modules = dict(network.named_modules())
    factored = [name for name in replaced if name in modules and _is_factored(modules[name])]
    for name in factored if targets is None else targets:
        if name not in factored:
            raise CompressionError(f"{name!r} is no factored layer. Factored: {', '.join(factored) or 'none'}.")
    names = factored if targets is None else list(targets)
    for name in names:
        edit, values = dense_layer(name, modules[name])
        (apply or Record.of(network).apply)(edit)
        write_(network, values)
    return names


@torch.no_grad()
def dense_layer(name: str, factored: nn.Module) -> tuple[ReplaceModule, dict[str, Tensor]]:
    """The edit that multiplies one layer out, and the values of its parameters."""
    stages = [_stage(part) for part in factored.children()]
    weight, geometry = stages[0]
    for following, other in stages[1:]:
        weight = _composed(weight, following)
        geometry = _joined(geometry, other)
    last: Any = list(factored.children())[-1]
    outputs, width = geometry.outputs // geometry.groups, geometry.inputs // geometry.groups
    parts = [
        weight[group * outputs : (group + 1) * outputs, group * width : (group + 1) * width]
        for group in range(geometry.groups)
    ]
    values = {f"{name}.weight": torch.cat(parts).reshape(geometry.outputs, width, *geometry.kernel).to(last.weight)}
    if last.bias is not None:
        values[f"{name}.bias"] = last.bias.detach().clone()
    spec = geometry.dense(bias=last.bias is not None)
    return ReplaceModule(name, spec, f"{name} is multiplied out"), values


def _is_factored(module: nn.Module) -> bool:
    layers = [part for child in module.children() for part in (child.children() if _side_by_side(child) else [child])]
    return (
        isinstance(module, nn.Sequential)
        and len(layers) > 1
        and all(isinstance(p, nn.Linear | _ConvNd) for p in layers)
    )


def _side_by_side(module: nn.Module) -> bool:
    return isinstance(module, Concatenation)


def _stage(module: nn.Module) -> tuple[Tensor, Geometry]:
    """The weight (outputs, all inputs, *kernel), zero across groups, in float64; and the shape."""
    if isinstance(module, Concatenation):
        parts = [_stage(child) for child in module.children()]
        first = parts[0][1]
        return torch.cat([weight for weight, _ in parts]), _with(first, outputs=first.outputs * len(parts))
    geometry = Geometry.of(module)
    grouped = geometry.by_group(module.weight.detach().double())  # type: ignore[operator]
    weight = grouped.new_zeros(geometry.outputs, geometry.inputs, *geometry.kernel)
    outputs, inputs = geometry.group_outputs, geometry.group_inputs
    for group, part in enumerate(grouped):
        weight[group * outputs : (group + 1) * outputs, group * inputs : (group + 1) * inputs] = part
    return weight, geometry


def _composed(first: Tensor, second: Tensor) -> Tensor:
    """Of two kernels of which one has a single position along each dimension."""
    kernel = [max(one, two) for one, two in zip(first.shape[2:], second.shape[2:], strict=True)]
    flat = [kernel.reshape(*kernel.shape[:2], -1) for kernel in (second, first)]
    product = torch.einsum("omb,mia->oiab", *flat)
    dims = len(kernel)
    product = product.reshape(*product.shape[:2], *first.shape[2:], *second.shape[2:])
    order = [0, 1, *(2 + k + dims * side for k in range(dims) for side in (0, 1))]
    return product.permute(order).reshape(*product.shape[:2], *kernel)


def _joined(first: Geometry, second: Geometry) -> Geometry:
    """Of two in a row: along each dimension the settings of the one that does something there."""
    takes = [
        k > 1 or stride > 1 or (not isinstance(first.padding, str) and first.padding[d] > 0)
        for d, (k, stride) in enumerate(zip(first.kernel, first.stride, strict=True))
    ]

    def pick(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a if take else b for a, b, take in zip(one, two, takes, strict=True))

    if isinstance(first.padding, str) or isinstance(second.padding, str):
        padding: tuple[int, ...] | str = first.padding if isinstance(first.padding, str) else second.padding
    else:
        padding = pick(first.padding, second.padding)
    mode = first.padding_mode if first.padding_mode != "zeros" else second.padding_mode
    return Geometry(
        second.outputs,
        first.inputs,
        min(first.groups, second.groups),
        pick(first.kernel, second.kernel),
        pick(first.stride, second.stride),
        padding,
        pick(first.dilation, second.dilation),
        mode,
    )


def _with(geometry: Geometry, **changes: Any) -> Geometry:
    return Geometry(**{**vars(geometry), **changes})
