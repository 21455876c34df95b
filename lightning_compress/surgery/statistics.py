"""One pass for all statistics of what layers read: in the training passes for free, or in a pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan.edits import Edit, KeepIndices, RegrowIndices, Slice, named_tensors
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.groups import Group
from lightning_compress.surgery.input_statistics import SUMS, InputStatistics, layer_weight
from lightning_compress.surgery.ports import CONVOLUTIONS, input_dim
from lightning_compress.surgery.tracing import call_with_batch, evaluation_mode, tensors_in


class _Observer:
    """A forward pre-hook. In a copy or a pickle of the module it does nothing: the collector is the original's."""

    def __init__(self, collector: StatisticsCollector | None, name: str) -> None:
        self.collector = collector
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.collector is not None and self.collector.enabled:
            self.collector.observe(self.name, module, args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"collector": None, "name": self.name}


class _Undropped:
    """A forward hook on a dropout: remembers what went in, so that its zeros are not taken for a neuron's."""

    def __init__(self, collector: StatisticsCollector | None, name: str) -> None:
        self.collector = collector
        self.name = name

    def __call__(self, module: _DropoutNd, args: tuple[Any, ...], output: Tensor) -> None:
        if self.collector is not None and self.collector.enabled and module.training and module.p > 0:
            self.collector.before_dropout[self.name] = (args[0].detach(), output.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {"collector": None, "name": self.name}


class StatisticsCollector:
    """Gathers :class:`InputStatistics` of layers in whatever passes are run while it is attached.

    Used as a context manager, or with :meth:`attach` and :meth:`detach`. It keeps sums, never activations; it follows
    edits (a plan ``Follower``). Copies of the module are not observed. Where an ``nn.Dropout`` stands before a layer,
    what went into the dropout is counted: its zeros are not the neurons' own.

    Args:
        root: the network.
        layers: names of Linear and convolutional layers.
        second_moments: gather them too; costs a product of matrices in float64 for each call.
        sums: which of "zeros", "total", "squares" and "ranks" to count; each costs a pass over the input.

    Attributes:
        statistics: layer -> what has been gathered.
        enabled: False pauses.

    Raises:
        CompressionError: an unknown layer, one of another type, second moments of a grouped or transposed convolution.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with StatisticsCollector(net, ["2"]) as collector:
    ...     _ = net(torch.randn(8, 2))
    >>> collector.statistics["2"].count
    8
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Collection[str],
        *,
        second_moments: bool = False,
        sums: Collection[str] = SUMS,
    ) -> None:
        self._root = root
        self._sums = tuple(sums)
        self._second_moments = second_moments
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        known = [name for name, module in root.named_modules() if isinstance(module, (nn.Linear, *CONVOLUTIONS))]
        for name in layers:
            if name not in known:
                raise CompressionError(f"No Linear or convolution is called {name!r}. {did_you_mean(name, known)}")
        self.enabled = True
        self.before_dropout: dict[str, tuple[Tensor, Tensor]] = {}
        self.statistics = {name: self._empty(name) for name in layers}

    def attach(self) -> None:
        """Observe the layers from now on; does nothing if it does already."""
        if not self._handles:
            for name in self.statistics:
                layer = self._root.get_submodule(name)
                self._handles.append(layer.register_forward_pre_hook(_Observer(self, name), with_kwargs=True))
            for name, module in self._root.named_modules():
                if isinstance(module, _DropoutNd):
                    self._handles.append(module.register_forward_hook(_Undropped(self, name)))

    def detach(self) -> None:
        """Observe nothing any more; the statistics stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.before_dropout.clear()

    def __enter__(self) -> StatisticsCollector:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @torch.no_grad()
    def observe(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count one call of a layer; its input is the first tensor among the arguments."""
        value = next(tensors_in((args, kwargs)), None)
        if value is None:
            raise CompressionError(f"{name!r} was called without a tensor.")
        self.statistics[name].add(module, self._undropped(value))

    def _undropped(self, value: Tensor) -> Tensor:
        """What ``value`` was before a dropout, if it comes from one or is a view of its output."""
        place = value.untyped_storage().data_ptr()
        for before, after in self.before_dropout.values():
            if after.untyped_storage().data_ptr() == place and after.numel() == value.numel() and value.is_contiguous():
                return before.reshape(value.shape)
        return value

    def reset(self) -> None:
        """Forget everything gathered."""
        self.statistics = {name: self._empty(name) for name in self.statistics}

    def all_reduce(self) -> dict[str, InputStatistics]:
        """The statistics of all processes together; the collector keeps its own. Every process must call it."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or not self.statistics:
            return {name: own.to(own.zeros.device) for name, own in self.statistics.items()}
        parts = {name: own.parts() for name, own in self.statistics.items()}
        sums = [part.flatten() for own in parts.values() for part in own]
        together = torch.cat(sums)
        distributed.all_reduce(together)
        pieces = iter(torch.split(together, [part.numel() for part in sums]))
        return {name: own.with_parts([next(pieces) for _ in parts[name]]) for name, own in self.statistics.items()}

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Shrink with the network; statistics of features that come back, or of a replaced layer, start again.

        Returns:
            What puts the statistics back as they were.
        """
        former = dict(self.statistics)
        for name in list(self.statistics):
            layer = _find(self._root, name)
            if layer is None:
                del self.statistics[name]
            elif isinstance(edit, KeepIndices) and (part := self._slice_of(layer, edit)) is not None:
                self.statistics[name] = self.statistics[name].keep(part.kept)
            elif not isinstance(edit, KeepIndices) and self._is_touched(name, layer, edit):
                self.statistics[name] = self._empty(name)
        self._attach_anew()

        def back() -> None:
            self.statistics = former
            self._attach_anew()

        return back

    def _attach_anew(self) -> None:
        if self._handles:
            self.detach()
            self.attach()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Numbers and tensors for :meth:`load_state_dict`."""
        return {name: own.state_dict() for name, own in self.statistics.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from what :meth:`state_dict` gave, of the same layers at the same widths."""
        if set(state) != set(self.statistics):
            raise CompressionError(f"Statistics of {sorted(state)}; the collector observes {sorted(self.statistics)}.")
        loaded = {}
        for name, own in self.statistics.items():
            other = InputStatistics.from_state(state[name])
            shapes = [[tuple(part.shape) for part in part_of.parts()] for part_of in (own, other)]
            if shapes[0] != shapes[1]:
                raise CompressionError(f"Statistics of {name!r} have the shapes {shapes[1]}; expected {shapes[0]}.")
            loaded[name] = other.to(own.zeros.device)
        self.statistics = loaded

    def _empty(self, name: str) -> InputStatistics:
        layer = self._root.get_submodule(name)
        try:
            return InputStatistics.empty(layer, second_moments=self._second_moments, sums=self._sums)
        except CompressionError as error:
            raise CompressionError(f"{name!r}: {error}") from error

    def _weight_names(self, layer: nn.Module) -> set[str]:
        return {name for name, tensor in named_tensors(self._root).items() if tensor is layer_weight(layer)}

    def _slice_of(self, layer: nn.Module, edit: KeepIndices) -> Slice | None:
        names = self._weight_names(layer)
        dim = input_dim(layer)
        return next((part for part in edit.slices if part.tensor in names and part.dim == dim), None)

    def _is_touched(self, name: str, layer: nn.Module, edit: Edit) -> bool:
        if isinstance(edit, RegrowIndices):
            return self._slice_of(layer, edit.of) is not None
        return any(f"{name}.".startswith(touched.removesuffix("*")) for touched in edit.touched)


def gather(
    root: nn.Module,
    batches: Iterable[Any],
    layers: Collection[str],
    *,
    forward: Callable[[nn.Module, Any], object] | None = None,
    second_moments: bool = False,
    sums: Collection[str] = SUMS,
) -> dict[str, InputStatistics]:
    """Statistics over ``batches`` in a pass of its own: evaluation mode, no gradients, random states isolated.

    Args:
        root: the network; afterwards as it was.
        batches: what ``forward`` takes, on the network's device.
        layers: names of Linear and convolutional layers.
        forward: runs the network on a batch; by default calls it with the batch, or with the first element of a tuple
            or list.
        second_moments: gather them too.
        sums: which of "zeros", "total", "squares" and "ranks" to count.

    Raises:
        CompressionError: no batches, or an unknown layer.

    >>> net = nn.Linear(2, 1)
    >>> gather(nn.Sequential(net), [torch.tensor([[0.0, 1.0], [0.0, 3.0]])], ["0"])["0"].mean.tolist()
    [0.0, 2.0]
    """
    run = forward or call_with_batch
    count = 0
    collector = StatisticsCollector(root, layers, second_moments=second_moments, sums=sums)
    with torch.no_grad(), isolated_random_states(), evaluation_mode(root), collector:
        for batch in batches:
            run(root, batch)
            count += 1
    if count == 0:
        raise CompressionError("There are no batches to gather statistics from.")
    return collector.statistics


def group_zero_share(group: Group, statistics: Mapping[str, InputStatistics]) -> Tensor:
    """How often each unit of a group is zero where it is read: :func:`per_unit` of the zero shares."""
    return per_unit(group, {name: own.zero_share for name, own in statistics.items() if name in group.consumers})


def per_unit(group: Group, values: Mapping[str, Tensor]) -> Tensor:
    """A figure of each unit of a group where it is read: the mean over its features, then over its consumers.

    Args:
        group: the units.
        values: consumer -> one number for each of its input features; of every consumer of the group.

    Returns:
        float64, shape (group.size,).

    Raises:
        CompressionError: a consumer has no statistics, or the group has no consumer.
    """
    total, readers = torch.zeros(2, group.size, dtype=torch.float64).unbind()
    for part in group.attributes:
        if part.module not in group.consumers or part.name not in ("in_features", "in_channels"):
            continue
        if part.module not in values:
            raise CompressionError(f"{group.name!r} is read by {part.module!r}, of which there are no statistics.")
        share = values[part.module].double().cpu()
        own = part.units >= 0
        features = torch.bincount(part.units[own], minlength=group.size)
        summed = torch.bincount(part.units[own], weights=share[own], minlength=group.size)
        total += summed / features.clamp(min=1)
        readers += (features > 0).double()
    if bool((readers == 0).any()):
        raise CompressionError(f"{group.name!r} has units that no layer reads, so nothing is known of their outputs.")
    return total / readers


def _find(root: nn.Module, name: str) -> nn.Module | None:
    layer = dict(root.named_modules()).get(name)
    return layer if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) else None
