"""Specs of replacement modules: closed trees of ``torch.nn`` modules; a file can describe a layer, but run nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from reprlib import repr as short
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from lightning_compress.errors import PlanError, did_you_mean
from lightning_compress.plan.concatenation import Concatenation
from lightning_compress.plan.pass_through import PassThrough

ModuleSpec: TypeAlias = Mapping[str, Any]
"""``{"type": name, "arguments": {...}}`` or ``{"type": "Sequential", "children": [[name, spec], ...]}``; a
``"Concatenation"`` has children too.
"""

_Check: TypeAlias = Callable[[object], bool]
_Arguments: TypeAlias = Mapping[str, _Check]

MAX_DEPTH, MAX_MODULES, MAX_SIZE, MAX_NAME = 8, 1_000, 2**26, 1_000


class Extent(NamedTuple):
    """How large a spec is: its modules, and the numbers in their parameters and buffers."""

    modules: int
    elements: int


def _size(value: object) -> bool:
    return type(value) is int and 1 <= value < MAX_SIZE


def _size_or_zero(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_SIZE


def _one_or(number: int, check: _Check) -> _Check:
    """One value for all dimensions, or ``number`` of them."""

    def checked(value: object) -> bool:
        values = value if isinstance(value, list | tuple) else [value] * number
        return len(values) == number and all(map(check, values))

    return checked


def _padding(number: int) -> _Check:
    sizes = _one_or(number, _size_or_zero)
    return lambda value: value in ("same", "valid") if isinstance(value, str) else sizes(value)


def _dimension(value: object) -> bool:
    return type(value) is int and -8 <= value < 8


def _flag(value: object) -> bool:
    return type(value) is bool


def _number(value: object) -> bool:
    return value is None or (type(value) in (int, float) and isfinite(value))  # type: ignore[arg-type]


def _border(value: object) -> bool:
    return isinstance(value, str) and value in ("zeros", "reflect", "replicate", "circular")


def _convolution(dimensions: int) -> _Arguments:
    return {
        **dict.fromkeys(["in_channels", "out_channels", "groups"], _size),
        **dict.fromkeys(["kernel_size", "stride", "dilation"], _one_or(dimensions, _size)),
        "padding": _padding(dimensions),
        "bias": _flag,
        "padding_mode": _border,
    }


_LINEAR: _Arguments = {"in_features": _size, "out_features": _size, "bias": _flag}
_NORM: _Arguments = {
    "num_features": _size,
    **dict.fromkeys(["eps", "momentum"], _number),
    **dict.fromkeys(["affine", "track_running_stats"], _flag),
}
_LEAVES: dict[str, tuple[type[nn.Module], _Arguments]] = {
    "Linear": (nn.Linear, _LINEAR),
    "Conv1d": (nn.Conv1d, _convolution(1)),
    "Conv2d": (nn.Conv2d, _convolution(2)),
    "Conv3d": (nn.Conv3d, _convolution(3)),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
    "BatchNorm3d": (nn.BatchNorm3d, _NORM),
    "Identity": (nn.Identity, {}),
    "PassThrough": (PassThrough, {}),
    "ReLU": (nn.ReLU, {}),
    "Flatten": (nn.Flatten, {"start_dim": _dimension, "end_dim": _dimension}),
}
_CONTAINERS: dict[str, type[nn.Module]] = {"Sequential": nn.Sequential, "Concatenation": Concatenation}


def check_spec(spec: ModuleSpec) -> Extent:
    """Refuse unknown types and arguments, values that are no bounded primitives, and trees too deep or too large.

    Returns:
        How large the module is that :func:`build_module` would build.

    Raises:
        PlanError: :func:`build_module` would not build it.

    >>> check_spec({"type": "Linear", "arguments": {"in_features": 4, "out_features": 2}})
    Extent(modules=1, elements=10)
    >>> check_spec({"type": "Linnear"})
    Traceback (most recent call last):
    lightning_compress.errors.PlanError: No module type 'Linnear' in a spec. Did you mean 'Linear'? Known: ...
    """
    modules = 0
    for _ in _checked(spec, depth=0):
        modules += 1
        if modules > MAX_MODULES:
            raise PlanError(f"A module spec has more than {MAX_MODULES} modules.")
    skeleton = _skeleton(spec)
    return Extent(modules, sum(tensor.numel() for tensor in [*skeleton.parameters(), *skeleton.buffers()]))


def build_module(
    spec: ModuleSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The module that ``spec`` describes: weights zero, norms at their identity; draws no random numbers.

    Raises:
        PlanError: see :func:`check_spec`.

    >>> build_module({"type": "Conv2d", "arguments": {"in_channels": 3, "out_channels": 8, "kernel_size": [1, 1]}})
    Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
    """
    check_spec(spec)
    module = _skeleton(spec).to(dtype).to_empty(device=device)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.zero_()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_parameters()
    return module


def plain(spec: Any) -> Any:
    """A copy of a checked spec in dictionaries and lists alone, as JSON would give it back.

    >>> plain({"type": "Conv2d", "arguments": {"kernel_size": (3, 3)}})
    {'type': 'Conv2d', 'arguments': {'kernel_size': [3, 3]}}
    """
    if isinstance(spec, Mapping):
        return {key: plain(value) for key, value in spec.items()}
    return [plain(value) for value in spec] if isinstance(spec, list | tuple) else spec


def _skeleton(spec: ModuleSpec) -> nn.Module:
    """The module on the meta device, where even a huge one costs nothing."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _build(spec)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PlanError(f"The spec {short(spec)} cannot be built: {error}") from error


def _build(spec: ModuleSpec) -> nn.Module:
    if spec["type"] in _CONTAINERS:
        container = _CONTAINERS[spec["type"]]()
        for name, child in spec["children"]:
            container.add_module(name, _build(child))
        return container
    kind, _ = _LEAVES[spec["type"]]
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in spec.get("arguments", {}).items()
    }
    return kind(**arguments)


def _checked(spec: object, depth: int) -> Iterator[None]:
    """One item for each module in turn, so that whoever counts them can stop."""
    if not isinstance(spec, Mapping) or depth > MAX_DEPTH:
        raise PlanError(
            f"A module spec is a mapping with a 'type', nested at most {MAX_DEPTH} deep; got {type(spec).__name__}."
        )
    yield
    kind = spec.get("type")
    if _is_name(kind) and kind in _CONTAINERS:
        for child in _children(spec):
            yield from _checked(child, depth + 1)
    else:
        _check_leaf(spec)


def _check_leaf(spec: ModuleSpec) -> None:
    kind, arguments = spec.get("type"), spec.get("arguments", {})
    if not _is_name(kind) or kind not in _LEAVES:
        hint = did_you_mean(str(kind), [*_LEAVES, *_CONTAINERS]) if _is_name(kind) else ""
        raise PlanError(f"No module type {short(kind)} in a spec. {hint}")
    if not isinstance(arguments, Mapping) or not set(spec) <= {"type", "arguments"}:
        raise PlanError(f"The spec of a {kind} has the keys 'type' and 'arguments' only, not {short(list(spec))}.")
    known = _LEAVES[kind][1]
    for name, value in arguments.items():
        if not _is_name(name) or name not in known:
            hint = did_you_mean(name, known) if _is_name(name) else ""
            raise PlanError(f"{kind} takes no argument {short(name)} in a spec. {hint}")
        if not known[name](value):
            raise PlanError(f"{kind}: {name}={short(value)} is not a bounded value of the right type.")


def _children(spec: ModuleSpec) -> list[object]:
    pairs = spec.get("children")
    if set(spec) != {"type", "children"} or not isinstance(pairs, list | tuple) or len(pairs) > MAX_MODULES:
        raise PlanError(
            f"The spec of a {spec['type']} has 'children': at most {MAX_MODULES} pairs of a name and a spec."
        )
    names = [pair[0] for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 and _is_name(pair[0])]
    if len(names) != len(pairs) or not all(name.replace("_", "a").isalnum() for name in names):
        raise PlanError("A child in a container's spec is a pair of an identifier or number and a spec.")
    if len(set(names)) != len(names):
        raise PlanError(f"The children in a container's spec have a name twice: {short(names)}.")
    return [pair[1] for pair in pairs]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME
