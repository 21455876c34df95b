"""Finding groups: Torch-Pruning says what hangs together in a network, a trial cut on a copy whether that is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan.edits import named_tensors
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.groups import Counted, Coupled, Group, Groups, merge
from lightning_compress.surgery.ports import Port, is_layer, port
from lightning_compress.surgery.tracing import TracingInput, exact_arithmetic, float32, private_copy, tensors_in
from lightning_compress.surgery.verification import accepted, verify_edit

Axis = tuple[str, int | str]
"""A tensor and one of its dimensions, or a module and one of its attributes."""


def find_groups(root: nn.Module, tracing: TracingInput, *, exclude: Collection[str] = ()) -> Groups:
    """The groups of units that can be taken out of the network; ``root`` is not touched.

    Covers Linear, convolutions (transposed and depthwise too), BatchNorm, InstanceNorm, PReLU and embeddings through
    flattening, residual additions, concatenation and tied weights. Each group is tried out on a copy with general
    weights (constant tensors, such as a fresh BatchNorm's, made random): one that fails :func:`verify_edit` is left
    out. So are units that reach the outputs of the call or a bare ``nn.Parameter``, channels of grouped convolutions,
    and channels that a LayerNorm or GroupNorm averages over. The structure comes from Torch-Pruning: Fang et al.,
    "DepGraph: Towards Any Structural Pruning", CVPR 2023.

    Args:
        root: the network or the LightningModule around it; all names are relative to it.
        tracing: a call that runs the network.
        exclude: layers, or modules with all their layers, whose outputs stay.

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
    links = _Links(network)
    links.add_all(_trace(network, tracing))
    for name in links.layers:
        if any(name == excluded or name.startswith(f"{excluded}.") for excluded in exclude):
            links.refuse(name, "it is excluded")
    groups, skipped = links.groups()
    network.requires_grad_(False)
    _make_general_(network)
    sound, reasons = accepted(groups, lambda some: _trial(network, some, tracing))
    for position, reason in reasons.items():
        skipped.update(dict.fromkeys(groups[position].producers, reason))
    return Groups(sound, {name: skipped[name] for name in links.layers if name in skipped})


def _check_exclude(root: nn.Module, exclude: Collection[str]) -> None:
    if isinstance(exclude, str):
        raise CompressionError(f"exclude={exclude!r} is one name; write exclude=({exclude!r},).")
    known = dict(root.named_modules())
    for name in exclude:
        if name not in known:
            raise CompressionError(f"exclude: no module is called {name!r}. {did_you_mean(name, filter(None, known))}")


def _trace(network: nn.Module, tracing: TracingInput) -> torch_pruning.DependencyGraph:
    """The dependency graph; changes ``network``, which is a copy: everything evaluates and wants gradients."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def outputs(result: object) -> list[Tensor]:
        # a node of its own for each output, also where a layer's output is the network's
        return [output.clone() for output in tensors_in(result) if output.grad_fn is not None]

    try:
        with torch.inference_mode(False), torch.enable_grad(), isolated_random_states(), exact_arithmetic(network):
            return torch_pruning.DependencyGraph().build_dependency(
                network, (), forward_fn=lambda copy, _: tracing.run(copy), output_transform=outputs, verbose=False
            )
    except Exception as error:
        raise CompressionError(
            f"{type(network).__name__} cannot be traced with a call of {tracing.module or 'its forward'!r}: {error}"
        ) from error


class _Links:
    """Indices of tensor dimensions that stand for the same unit, gathered from the graph's group of every layer."""

    def __init__(self, network: nn.Module) -> None:
        self.names: dict[nn.Module, str] = {module: name for name, module in network.named_modules()}
        self.tensors = named_tensors(network)
        self.tensor_names: dict[int, str] = {}
        for name, tensor in self.tensors.items():
            self.tensor_names.setdefault(id(tensor), name)
        self.layers = [name for module, name in self.names.items() if is_layer(module)]
        self.modules = {name: module for module, name in self.names.items()}
        self.module_places = {name: place for place, name in enumerate(self.modules)}
        self.tensor_places = {name: place for place, name in enumerate(self.tensors)}
        self.indices = _Sets()
        self.axes: dict[Axis, None] = {}
        self.outputs: dict[str, Axis] = {}
        self.inputs: dict[str, Axis] = {}
        self.refused: dict[str, str] = {}
        self.covered: set[str] = set()

    def refuse(self, layer: str, reason: str) -> None:
        """The outputs of ``layer`` stay; the first reason counts."""
        self.refused.setdefault(layer, reason)

    def add_all(self, graph: torch_pruning.DependencyGraph) -> None:
        """Read the group of every layer."""
        for module, name in self.names.items():
            if name not in self.layers or name in self.covered:
                continue
            if module not in graph.module2node:
                self.refuse(name, "the traced call does not run it")
                continue
            pruner = graph.get_pruner_of_module(module)
            try:
                width = pruner.get_out_channels(module)
                items = list(graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width))).items)
            except Exception as error:
                self.refuse(name, f"its dependencies cannot be traced ({type(error).__name__}: {error})")
                continue
            self._add(name, graph, items)

    def _add(self, name: str, graph: torch_pruning.DependencyGraph, items: Iterable[Any]) -> None:
        root: Axis | None = None
        for item in items:
            module, node_type = item.dep.target.module, item.dep.target.type
            if node_type == torch_pruning.ops.OPTYPE.OUTPUT:
                self.refuse(name, "its units reach the outputs of the network")
            elif isinstance(module, nn.Parameter):
                parameter = graph._param_to_name[module]
                self.refuse(name, f"its units meet the parameter {parameter!r}, which belongs to no layer")
            elif module in self.names:
                axes = self._axes(name, module, item.dep.handler.__name__ != "prune_in_channels")
                if root is None and not axes:
                    return  # the layer itself cannot shrink
                root = root or axes[0]
                for axis in axes:
                    for index, unit in zip(item.idxs, item.root_idxs, strict=True):
                        self.indices.join((axis, index), (root, unit))
                if axes and axes[0] == self.outputs.get(self.names[module]) and len(item.idxs) == self._size(axes[0]):
                    self.covered.add(self.names[module])  # all that its outputs reach is in this group

    def _axes(self, layer: str, module: nn.Module, output: bool) -> list[Axis]:
        owner = self.names[module]
        side = port(module, output=output)
        if isinstance(side, str):
            self.refuse(layer, side if owner == layer else f"its units meet {owner!r}: {side}")
            return []
        axes = list(self._named(owner, module, side))
        if len(axes) < len(side.tensors) + len(side.attributes):
            self.refuse(layer, f"{owner!r} has a parametrized weight, which cannot shrink")
            return []
        self.axes.update(dict.fromkeys(axes))
        if is_layer(module):
            (self.outputs if output else self.inputs)[owner] = axes[0]
        return axes

    def _named(self, owner: str, module: nn.Module, side: Port) -> Iterator[Axis]:
        for key, dim in side.tensors:
            name = self.tensor_names.get(id(getattr(module, key)))
            if name is not None:
                yield name, dim
        for attribute in side.attributes:
            yield owner, attribute

    def groups(self) -> tuple[list[Group], dict[str, str]]:
        """The groups that nothing speaks against so far, and the reasons against the layers of the others."""
        units = {axis: [self.indices.find((axis, index)) for index in range(self._size(axis))] for axis in self.axes}
        made, skipped = [], {}
        for layers in self._families(units):
            culprit = next((layer for layer in layers if layer in self.refused), None)
            if culprit is None:
                made.append(layers)
                continue
            shared = f"it shares units with {culprit!r}: {self.refused[culprit]}"
            skipped.update({layer: self.refused.get(layer, shared) for layer in layers})
        return self._number(made, units), skipped

    def _families(self, units: Mapping[Axis, Sequence[object]]) -> list[list[str]]:
        """Layers that produce common units, together."""
        families = _Sets()
        first: dict[object, str] = {}
        for layer in self.layers:
            for unit in units[self.outputs[layer]] if layer in self.outputs else ():
                families.join(layer, first.setdefault(unit, layer))
        members: dict[object, list[str]] = defaultdict(list)
        for layer in self.layers:
            members[families.find(layer)].append(layer)
        return list(members.values())

    def _number(self, made: Sequence[Sequence[str]], units: Mapping[Axis, Sequence[object]]) -> list[Group]:
        """Number the units of each family, in the order of its layers' outputs, and collect the axes they are on."""
        numbers: dict[object, tuple[int, int]] = {}
        sizes = [0] * len(made)
        for position, layers in enumerate(made):
            for unit in (unit for layer in layers for unit in units[self.outputs[layer]]):
                if unit not in numbers:
                    numbers[unit] = position, sizes[position]
                    sizes[position] += 1
        axes: list[dict[Axis, Tensor]] = [{} for _ in made]
        for axis, on_axis in units.items():
            found = torch.tensor([numbers.get(unit, (-1, -1)) for unit in on_axis], dtype=torch.int64)
            for position in sorted(set(found[:, 0].tolist())):
                if position >= 0:
                    axes[position][axis] = torch.where(found[:, 0] == position, found[:, 1], -1)
        return [self._group(*parts) for parts in zip(made, sizes, axes, strict=True)]

    def _group(self, layers: Sequence[str], size: int, axes: Mapping[Axis, Tensor]) -> Group:
        coupled = [Coupled(owner, key, units) for (owner, key), units in axes.items() if isinstance(key, int)]
        counted = [Counted(owner, key, units) for (owner, key), units in axes.items() if isinstance(key, str)]
        coupled.sort(key=lambda part: (self.tensor_places[part.tensor], part.dim))
        counted.sort(key=lambda part: (self.module_places[part.module], part.name))
        consumers = tuple(name for name in self.modules if self.inputs.get(name) in axes)
        return Group(layers[0], size, tuple(layers), consumers, tuple(coupled), tuple(counted))

    def _size(self, axis: Axis) -> int:
        owner, key = axis
        size = self.tensors[owner].shape[key] if isinstance(key, int) else getattr(self.modules[owner], key)
        assert isinstance(size, int)
        return size


class _Sets:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}

    def find(self, element: object) -> object:
        """The representative of the set of ``element``; itself where it was never joined."""
        path = []
        while (parent := self._parent.get(element, element)) != element:
            path.append(element)
            element = parent
        self._parent.update(dict.fromkeys(path, element))
        return element

    def join(self, one: object, two: object) -> None:
        """Unite the sets of two elements."""
        first, second = self.find(one), self.find(two)
        if first != second:
            self._parent[first] = second


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
        verify_edit(network, merge(edits), tracing)
    except CompressionError as error:
        return str(error)
    return None
