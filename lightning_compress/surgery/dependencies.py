"""Finding groups: units are followed through one run of the network, and a trial cut on a copy shows who is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan.edits import first_names, named_tensors
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.groups import Counted, Coupled, Group, Groups, merge
from lightning_compress.surgery.labels import Labels
from lightning_compress.surgery.layer_rules import NOT_EXACT, Axis, LayerAxes, Watch, rule_for
from lightning_compress.surgery.ports import is_layer
from lightning_compress.surgery.tracing import (
    TracingInput,
    evaluation_mode,
    exact_arithmetic,
    float32,
    private_copy,
    tensors_in,
)
from lightning_compress.surgery.unit_tracer import LARGEST, UnitTracer, parameter_labels
from lightning_compress.surgery.verification import accepted, verify_edit

HEADS = ("num_heads", "n_heads", "n_head", "heads", "nhead", "num_attention_heads")
"""Attributes in which modules of attention count their heads."""
WIDTHS = ("inner_dim", "all_head_size", "embed_dim", "hidden_size", "dim")
"""Attributes in which they count the entries of all heads together."""


def find_groups(
    root: nn.Module, tracing: TracingInput, *, exclude: Collection[str] = (), approximate: bool = False
) -> Groups:
    """The groups of units that can be taken out of the network; ``root`` is not touched.

    The network runs once, on a copy, and the units of every layer are followed through all that happens to them:
    what only moves entries (views, concatenation, channel shuffles, windows) moves their labels, what combines entries
    (residual sums, gates, attention) joins them. So covered are Linear, convolutions (transposed, grouped and
    depthwise), recurrent layers, norms, PReLU, embeddings, whole heads of attention, and parameters of no layer, such
    as a layer scale. Of a GroupNorm whole groups of channels go, which is exact.

    Each group is tried out on a copy with general weights (constant tensors, such as a fresh BatchNorm's, made
    random): one that fails :func:`verify_edit` is left out. So are units that reach the outputs of the call.

    Args:
        root: the network or the LightningModule around it; all names are relative to it.
        tracing: a call that runs the network.
        exclude: layers, or modules with all their layers, whose outputs stay.
        approximate: find groups, too, that a LayerNorm, an RMSNorm or a GroupNorm of one group averages over, though
            taking out of them changes the norm's statistics; :attr:`Group.norms` has their names.

    Returns:
        The groups, in the order of their first layers in ``named_modules``; ``skipped`` has the reason for all others.

    Raises:
        CompressionError: an unknown name in ``exclude``, or a network that cannot be traced.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> groups = find_groups(net, TracingInput("", (torch.randn(2, 1, 4, 4),), {}))
    >>> [(group.name, group.size, group.consumers) for group in groups], sorted(groups.skipped)
    ([('0', 4, ('3',))], ['3'])
    """
    _check_exclude(root, exclude)
    network, tracing = private_copy(root).float(), tracing.map(float32)
    layers = [name for name, module in network.named_modules() if is_layer(module)]
    excluded = {name for name in layers if any(name == one or name.startswith(f"{one}.") for one in exclude)}
    groups, skipped = _Families(network, *_follow(network, tracing), excluded, approximate).groups()
    _make_general_(network.requires_grad_(False))
    groups = [_counting_heads(network, group, tracing) for group in groups]
    sound, reasons = accepted(groups, lambda some: _trial(network, some, tracing))
    failed = {layer: why for position, why in reasons.items() for layer in groups[position].producers}
    if failed:  # perhaps the parts of what is split evenly have to stay alike
        again, _ = _Families(network, *_follow(network, tracing, even=True), excluded, approximate).groups()
        again = [group for group in again if failed.keys() >= set(group.producers)]
        proved, _ = accepted(again, lambda some: _trial(network, [*sound, *some], tracing))
        sound += proved
        failed = {layer: why for layer, why in failed.items() if not any(layer in one.producers for one in proved)}
    skipped.update(failed)
    order = {name: place for place, name in enumerate(layers)}
    sound.sort(key=lambda group: order[group.name])
    return Groups(sound, {name: skipped[name] for name in layers if name in skipped})


def _check_exclude(root: nn.Module, exclude: Collection[str]) -> None:
    if isinstance(exclude, str):
        raise CompressionError(f"exclude={exclude!r} is one name; write exclude=({exclude!r},).")
    known = dict(root.named_modules())
    for name in exclude:
        if name not in known:
            raise CompressionError(f"exclude: no module is called {name!r}. {did_you_mean(name, filter(None, known))}")


def _follow(network: nn.Module, tracing: TracingInput, *, even: bool = False) -> tuple[LayerAxes, set[str]]:
    """Run the network and follow the units; also the names of the layers that ran.

    Args:
        network: a copy without hooks, in single precision.
        tracing: likewise.
        even: where units are split into parts of equal length (chunks, a channel shuffle), those at the same place
            of each part are one unit.
    """
    labels = Labels()
    axes = LayerAxes(network, labels, first_names(network))
    known = {
        id(tensor): parameter_labels(labels, tensor)
        for tensor in _tensors_of_no_layer(network)
        if tensor.is_floating_point() and tensor.dim() > 0 and tensor.numel() <= LARGEST
    }
    tracer = UnitTracer(labels, known, even=even)
    watch = Watch(axes, tracer)
    watch.attach(network)
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            isolated_random_states(),
            evaluation_mode(network),
            exact_arithmetic(network),
            tracer,
        ):
            try:
                outputs = list(tensors_in(tracing.run(network)))
            finally:
                while tracer.inside:  # a layer failed
                    tracer.resume()
    except Exception as error:
        raise CompressionError(
            f"{type(network).__name__} cannot be traced with a call of {tracing.module or 'its forward'!r}: {error}"
        ) from error
    finally:
        watch.detach()
    for output in outputs:
        found = tracer.get(output)
        if found is not None:
            labels.refuse(found, "its units reach the outputs of the network")
    _adopt(network, axes, tracer)
    return axes, watch.ran


def _tensors_of_no_layer(network: nn.Module) -> list[Tensor]:
    owned = {
        id(tensor)
        for module in network.modules()
        if rule_for(module) is not None
        for tensor in [*module._parameters.values(), *module._buffers.values()]
    }
    return [tensor for tensor in named_tensors(network).values() if id(tensor) not in owned]


def _adopt(network: nn.Module, axes: LayerAxes, tracer: UnitTracer) -> None:
    """Find the dimension along which a parameter of no layer has met units, if it is one."""
    labels, names = axes.labels, first_names(network)
    for tensor in _tensors_of_no_layer(network):
        found = tracer.get(tensor) if tensor.is_floating_point() and tensor.dim() else None
        if found is None:
            continue
        units = labels.units(found)
        for dim in range(tensor.dim()):
            across = units.movedim(dim, 0).reshape(tensor.shape[dim], -1)
            if tensor.shape[dim] > 1 and bool((across == across[:, :1]).all()):
                axes.axes[names[id(tensor)], dim] = found.movedim(dim, 0).reshape(tensor.shape[dim], -1)[:, 0]
                break
        else:
            if tensor.numel() > 1 and torch.unique(units).numel() == tensor.numel():
                labels.refuse(found, f"its units meet the parameter {names[id(tensor)]!r} in more than one dimension")


class _Families:
    """Layers that make common units, and what speaks against taking those out."""

    def __init__(
        self, network: nn.Module, axes: LayerAxes, ran: set[str], excluded: Collection[str], approximate: bool
    ) -> None:
        self.layers = [name for name, module in network.named_modules() if is_layer(module)]
        self._axes, self._labels, self._approximate = axes, axes.labels, approximate
        self._modules = dict(network.named_modules())
        self._module_places = {name: place for place, name in enumerate(self._modules)}
        self._tensor_places = {name: place for place, name in enumerate(named_tensors(network))}
        self._refused: dict[str, str] = dict(axes.refused)
        for name in self.layers:
            if name not in ran:
                around = self._modules.get(name.rpartition(".")[0])
                inner = isinstance(around, nn.MultiheadAttention)
                reason = "its outputs are the width of the attention around it, which is fixed"
                self.refuse(name, reason if inner else "the traced call does not run it")
            if name in excluded:
                self._refused[name] = "it is excluded"

    def refuse(self, layer: str, reason: str) -> None:
        """The outputs of ``layer`` stay; the first reason counts."""
        self._refused.setdefault(layer, reason)

    def groups(self) -> tuple[list[Group], dict[str, str]]:
        """The groups that nothing speaks against so far, and the reasons against the layers of the others."""
        made = {layer: self._labels.units(own) for layer, own in self._axes.outputs.items()}
        self._refuse_units(made)
        kept, skipped = [], {}
        for layers in self._families(made):
            culprit = next((layer for layer in layers if layer in self._refused), None)
            if culprit is None:
                kept.append(layers)
                continue
            shared = f"it shares units with {culprit!r}: {self._refused[culprit]}"
            skipped.update({layer: self._refused.get(layer, shared) for layer in layers})
        groups = []
        for group in self._number(kept, made):
            if group.size > 1:
                groups.append(group)
            else:
                skipped.update(dict.fromkeys(group.producers, "all its units hang together, so none can go alone"))
        return groups, skipped

    def _refuse_units(self, made: Mapping[str, Tensor]) -> None:
        against: dict[int, str] = {}
        refused = list(self._labels.refused)
        if not self._approximate:
            refused += [(own, f"its units meet {norm!r}: {NOT_EXACT}") for own, norm in self._axes.norms]
        for numbers, reason in refused:
            for unit in set(self._labels.units(numbers).tolist()):
                against.setdefault(unit, reason)
        for layer in self.layers:
            reasons = [against[unit] for unit in made[layer].tolist() if unit in against] if layer in made else []
            if reasons:
                self.refuse(layer, reasons[0])

    def _families(self, made: Mapping[str, Tensor]) -> list[list[str]]:
        """Layers that make common units, together."""
        first: dict[int, str] = {}
        leader = {layer: layer for layer in self.layers}

        def lead(layer: str) -> str:
            while leader[layer] != layer:
                layer = leader[layer]
            return layer

        for layer in self.layers:
            for unit in set(made[layer].tolist()) if layer in made else ():
                leader[lead(layer)] = lead(first.setdefault(unit, layer))
        members: dict[str, list[str]] = defaultdict(list)
        for layer in self.layers:
            members[lead(layer)].append(layer)
        return list(members.values())

    def _number(self, kept: Sequence[Sequence[str]], made: Mapping[str, Tensor]) -> list[Group]:
        """Number the units of each family, in the order of its layers' outputs, and collect the axes they are on."""
        owner, number = torch.full((2, self._largest() + 1), -1)
        sizes = [0] * len(kept)
        for position, layers in enumerate(kept):
            numbers: dict[int, int] = {}
            for unit in (unit for layer in layers for unit in made[layer].tolist()):
                numbers.setdefault(unit, len(numbers))
            units = torch.tensor(list(numbers))
            owner[units], number[units] = position, torch.arange(len(numbers))
            sizes[position] = len(numbers)
        parts: list[dict[Axis, Tensor]] = [{} for _ in kept]
        for axis, labels in self._axes.axes.items():
            units = self._labels.units(labels)
            owners = owner[units]
            for position in set(owners.tolist()) - {-1}:
                parts[position][axis] = torch.where(owners == position, number[units], -1)
        return [self._group(*each) for each in zip(kept, sizes, parts, strict=True)]

    def _largest(self) -> int:
        every = [int(self._labels.units(labels).max()) for labels in self._axes.axes.values()]
        return max(every, default=0)

    def _group(self, layers: Sequence[str], size: int, axes: Mapping[Axis, Tensor]) -> Group:
        coupled = [Coupled(owner, key, units) for (owner, key), units in axes.items() if isinstance(key, int)]
        counted = [Counted(owner, key, units) for (owner, key), units in axes.items() if isinstance(key, str)]
        coupled.sort(key=lambda part: (self._tensor_places[part.tensor], part.dim))
        counted.sort(key=lambda part: (self._module_places[part.module], part.name))
        consumers = tuple(name for name in self._modules if self._axes.inputs.get(name) in axes)
        rows = {layer: self._axes.rows[layer] for layer in layers}
        norms = {norm for own, norm in self._axes.norms if any(norm == part.module for part in counted)}
        return Group(
            layers[0], size, tuple(layers), consumers, tuple(coupled), tuple(counted), rows, tuple(sorted(norms))
        )


def _counting_heads(network: nn.Module, group: Group, tracing: TracingInput) -> Group:
    """The group with the attributes that count its heads, where its units are heads of attention; else as it is."""
    if any(part.name == "num_heads" for part in group.attributes):  # nn.MultiheadAttention's rule has them
        return group
    width = max(part.units.numel() for part in group.coupled if part.tensor.endswith("weight"))
    around = [(name, module) for name, module in network.named_modules() if _contains(name, group.producers)]
    for name, module in reversed(around):
        heads = [key for key in HEADS if getattr(module, key, None) == group.size]
        if not heads or width <= group.size:
            continue
        counts = tuple(Counted(name, key, torch.arange(group.size)) for key in heads if not _has(group, name, key))
        plain = replace(group, attributes=(*group.attributes, *counts))
        inner = {part.units.numel(): part.units for part in group.coupled if part.units.numel() > group.size}
        wide = tuple(
            Counted(name, key, inner[getattr(module, key)])
            for key in WIDTHS
            if isinstance(getattr(module, key, None), int) and getattr(module, key) in inner
        )
        both = replace(plain, attributes=(*plain.attributes, *wide))
        tried = (plain, both, group)
        return next((one for one in tried if _trial(network, [one], tracing) is None), plain)
    return group


def _contains(name: str, layers: Sequence[str]) -> bool:
    return all(layer == name or layer.startswith(f"{name}." if name else "") for layer in layers)


def _has(group: Group, module: str, key: str) -> bool:
    return any((part.module, part.name) == (module, key) for part in group.attributes)


@torch.no_grad()
def _make_general_(network: nn.Module) -> None:
    """Random values for constant tensors: a BatchNorm of ones and zeros would hide that channels are mixed up."""
    generator = torch.Generator().manual_seed(0)
    for tensor in named_tensors(network).values():
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def _trial(network: nn.Module, groups: Sequence[Group], tracing: TracingInput) -> str | None:
    """Why a random half of the units of these groups cannot be taken out together; None if it can."""
    generator = torch.Generator().manual_seed(0)
    edits = []
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        edits.append(group.keep(order[: max(1, group.size // 2)].sort().values))
    try:
        verify_edit(network, merge(edits), tracing, norms=list({norm for group in groups for norm in group.norms}))
    except CompressionError as error:
        return str(error)
    return None
