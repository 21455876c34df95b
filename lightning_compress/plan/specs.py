"""Specs of replacement modules: closed trees of ``torch.nn`` modules, so that a file can describe a layer but run nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from lightning_compress.errors import PlanError, did_you_mean

ModuleSpec: TypeAlias = Mapping[str, Any]
"""``{"type": name, "arguments": {...}}`` or ``{"type": "Sequential", "children": [[name, spec], ...]}``."""

MAX_DEPTH, MAX_MODULES, MAX_SIZE = 8, 1_000, 2**31

_CONVOLUTION = frozenset(
    ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode"]
)
_NORM = frozenset(["num_features", "eps", "momentum", "affine", "track_running_stats"])
_LEAVES: dict[str, tuple[type[nn.Module], frozenset[str]]] = {
    "Linear": (nn.Linear, frozenset({"in_features", "out_features", "bias"})),
    "Conv1d": (nn.Conv1d, _CONVOLUTION),
    "Conv2d": (nn.Conv2d, _CONVOLUTION),
    "Conv3d": (nn.Conv3d, _CONVOLUTION),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
    "BatchNorm3d": (nn.BatchNorm3d, _NORM),
    "Identity": (nn.Identity, frozenset()),
    "ReLU": (nn.ReLU, frozenset()),
    "Flatten": (nn.Flatten, frozenset({"start_dim", "end_dim"})),
}
_PADDING_WORDS = frozenset({"zeros", "reflect", "replicate", "circular", "same", "valid"})


def check_spec(spec: ModuleSpec) -> None:
    """Refuse unknown types and arguments, values that are no bounded primitives, and trees too deep or too large.

    Raises:
        PlanError: the spec is not one that :func:`build_module` would build.

    >>> check_spec({"type": "Linear", "arguments": {"in_features": 4, "out_features": 2}})
    >>> check_spec({"type": "Linnear"})
    Traceback (most recent call last):
    lightning_compress.errors.PlanError: No module type 'Linnear' in a spec. Did you mean 'Linear'? Known: ...
    """
    if _count(spec, depth=0) > MAX_MODULES:
        raise PlanError(f"A module spec has more than {MAX_MODULES} modules.")


def build_module(
    spec: ModuleSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The module that ``spec`` describes: weights zero, norms at their identity; draws no random numbers.

    >>> build_module({"type": "Conv2d", "arguments": {"in_channels": 3, "out_channels": 8, "kernel_size": [1, 1]}})
    Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
    """
    check_spec(spec)
    with torch.device("meta"):
        module = _build(spec)
    elements = sum(tensor.numel() for tensor in module.parameters())
    if elements > MAX_SIZE:
        raise PlanError(f"A module spec asks for {elements:,} parameters; at most {MAX_SIZE:,} are allowed.")
    module = module.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.zero_()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_parameters()
    return module


def _build(spec: ModuleSpec) -> nn.Module:
    if spec["type"] == "Sequential":
        sequence = nn.Sequential()
        for name, child in spec["children"]:
            sequence.add_module(name, _build(child))
        return sequence
    kind, _ = _LEAVES[spec["type"]]
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in spec.get("arguments", {}).items()
    }
    return kind(**arguments)


def _count(spec: object, depth: int) -> int:
    if not isinstance(spec, Mapping) or depth > MAX_DEPTH:
        raise PlanError(
            f"A module spec is a mapping with a 'type', nested at most {MAX_DEPTH} deep; got {type(spec).__name__}."
        )
    kind = spec.get("type")
    if kind == "Sequential":
        return _count_children(spec, depth)
    if not isinstance(kind, str) or kind not in _LEAVES:
        raise PlanError(f"No module type {kind!r} in a spec. {did_you_mean(str(kind), [*_LEAVES, 'Sequential'])}")
    arguments = spec.get("arguments", {})
    if not isinstance(arguments, Mapping) or not set(spec) <= {"type", "arguments"}:
        raise PlanError(f"The spec of a {kind} has the keys 'type' and 'arguments' only, not {sorted(map(str, spec))}.")
    for name, value in arguments.items():
        if name not in _LEAVES[kind][1]:
            raise PlanError(f"{kind} takes no argument {name!r} in a spec. {did_you_mean(str(name), _LEAVES[kind][1])}")
        if not _bounded(value):
            raise PlanError(f"{kind}: {name}={value!r} is not a bounded primitive.")
    return 1


def _count_children(spec: ModuleSpec, depth: int) -> int:
    children = spec.get("children")
    if set(spec) != {"type", "children"} or not isinstance(children, Sequence) or len(children) > MAX_MODULES:
        raise PlanError(f"The spec of a Sequential has 'children': at most {MAX_MODULES} pairs of a name and a spec.")
    total = 1
    for pair in children:
        named = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str)
        if not named or not pair[0].replace("_", "a").isalnum():
            raise PlanError("A child in a Sequential's spec is a pair of an identifier or number and a spec.")
        total += _count(pair[1], depth + 1)
    return total


def _bounded(value: object) -> bool:
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return 0 <= value < MAX_SIZE
    if isinstance(value, float):
        return value == value and abs(value) < MAX_SIZE
    if isinstance(value, str):
        return value in _PADDING_WORDS
    return (
        isinstance(value, list | tuple) and len(value) <= 3 and all(isinstance(v, int) and _bounded(v) for v in value)
    )
