"""Which layers can be replaced by smaller ones, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_compress.architecture.geometry import CONVOLUTIONS
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import Plan, ReplaceModule
from lightning_compress.surgery.paired_moments import call_order
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.surgery.tracing import TracingInput, private_copy
from lightning_compress.surgery.verification import accepted, difference, evaluate

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layers:
    """What can be replaced.

    Attributes:
        calls: name -> how often it runs in one call of the network, in the order in which they run.
        skipped: name -> why it cannot be replaced.
    """

    calls: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)


def find_layers(
    network: nn.Module,
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    call: TracingInput | None = None,
) -> Layers:
    """The Linear layers and convolutions whose outputs are all that the network has of them.

    A copy in which each of them is wrapped in an ``nn.Sequential`` has to compute the same: who reads a layer's weight
    without calling the layer is found so. That ``nn.MultiheadAttention`` does is known without.

    Args:
        network: any module.
        targets: patterns of names, of layers or of modules with layers in them; None: all that can be replaced.
        exclude: patterns of what to leave alone.
        call: runs the network; without it the order is that of ``named_modules`` and nobody is tried out.

    Raises:
        CompressionError: a pattern that matches nothing, a layer asked for by its own name that cannot be replaced, a
            lazy layer that has no weights yet, or a call that fails.

    >>> list(find_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), exclude=("2",)).calls)
    ['0']
    """
    refuse_text(targets, "targets")
    refuse_text(exclude, "exclude")
    present = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear | _ConvNd)}
    lazy = next((name for name, part in present.items() if any(map(is_lazy, part.parameters()))), None)
    if lazy is not None:
        raise CompressionError(f"{lazy!r} is lazy and has no weights yet. Run the network on a batch once.")
    wanted = [name for name in present if targets is None or _matches(name, targets)]
    for pattern in (*(targets or ()), *exclude):
        if not any(_matches(name, [pattern]) for name in present):
            raise CompressionError(
                f"{pattern!r} matches no Linear layer or convolution. {did_you_mean(pattern, present)}"
            )
    wanted = [name for name in wanted if not _matches(name, exclude)]
    skipped = {name: reason for name in wanted if (reason := _reason(network, name, present[name]))}
    usable = [name for name in wanted if name not in skipped]
    calls = dict.fromkeys(usable, 1)
    if call is not None:
        calls, more = _tried(network, usable, call)
        skipped |= more
    named = [name for name in skipped if targets is not None and name in targets]
    if named:
        raise CompressionError(f"{named[0]!r} cannot be replaced: {skipped[named[0]]}. Leave it out of targets.")
    return Layers(calls, skipped)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    parts = name.replace("_orig_mod.", "").split(".")
    return any(
        fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts) + 1) for pattern in patterns
    )


def _reason(network: nn.Module, name: str, layer: nn.Module) -> str | None:
    kind = next((base for base in (nn.Linear, *CONVOLUTIONS) if isinstance(layer, base)), None)
    if kind is None:
        return f"a {type(layer).__name__} is no plain convolution"
    if is_parametrized(layer) or "weight" not in layer._parameters:
        return "its weight is computed from other parameters (weight_norm, parametrize, fake quantization)"
    if type(layer).forward is not kind.forward or "forward" in vars(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if not name:
        return "it is the whole network"
    if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
        return "the attention around it reads its weight without calling it"
    if not all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters()):
        return "it has weights that are not finite"
    own = {id(parameter) for parameter in layer.parameters()}
    others = [part for part in network.modules() if part is not layer]
    if any(id(parameter) in own for part in others for parameter in part._parameters.values()):
        return "its weight is tied to another layer's"
    if any(isinstance(edit, ReplaceModule) and name.startswith(f"{edit.module}.") for edit in Plan.of(network).edits):
        return "it is a factor already"
    return None


def _tried(network: nn.Module, names: Sequence[str], call: TracingInput) -> tuple[dict[str, int], dict[str, str]]:
    expected = evaluate(private_copy(network), call)
    counts = call_order(network, names, call)
    skipped = {name: "the network's call does not run it" for name in names if name not in counts}
    usable, refused = accepted(list(counts), lambda some: _misses(network, some, call, expected))
    reasons = {name: refused[place] for place, name in enumerate(counts) if place in refused}
    return {name: counts[name] for name in counts if name in set(usable)}, skipped | reasons


def _misses(network: nn.Module, names: Sequence[str], call: TracingInput, expected: Sequence[object]) -> str | None:
    wrapped = private_copy(network)
    for name in names:
        layer = wrapped.get_submodule(name)
        inside = nn.Sequential(layer)
        for owner in list(wrapped.modules()):
            if owner is not inside:
                for key, child in owner._modules.items():
                    if child is layer:
                        owner._modules[key] = inside
    try:
        found = difference(expected, evaluate(wrapped, call))  # type: ignore[arg-type]
    except CompressionError as error:
        return f"somebody reads its weight without calling it, as attention does ({error})"
    return None if found <= TOLERANCE else "somebody looks into it without calling it"
