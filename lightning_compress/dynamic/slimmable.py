"""One network at many widths: the first units of every group, with running statistics of their own."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.errors import CompressionError
from lightning_compress.plan import KeepIndices, Record, named_tensors
from lightning_compress.plan.edits import first_names
from lightning_compress.plan.fewer_heads import settle_
from lightning_compress.surgery import Groups, TracingInput, find_groups, merge, private_copy, recalibrate_batchnorm_
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.surgery.tracing import call_with_batch
from lightning_compress.values import is_number

_SLIMMABLE: weakref.WeakKeyDictionary[nn.Module, Slimmable] = weakref.WeakKeyDictionary()
Statistics = dict[str, dict[str, Tensor]]
"""BatchNorm's name -> its running statistics at one width."""


class Slimmable:
    """The widths of a network: what each leaves of it, and the statistics of its BatchNorms there.

    Yu et al., "Slimmable Neural Networks", ICLR 2019, arXiv:1812.08928. At width w the first round(w * n) units (at
    least one) of every group of n that hang together are used; nothing else of the network changes.

    Args:
        module: the network, or the LightningModule around it; not touched.
        groups: its dependency groups.
        widths: in (0, 1]; 1 is the whole network, whose statistics are those in the module.

    Raises:
        CompressionError: a width out of range, or a network without groups.
    """

    def __init__(self, module: nn.Module, groups: Groups, widths: Sequence[float]) -> None:
        self._module = weakref.ref(module)
        self.widths = checked_widths(widths)
        self._now = 1.0
        if not len(groups):
            reasons = "; ".join(f"{name!r}: {why}" for name, why in list(groups.skipped.items())[:3])
            raise CompressionError(f"No units of this network can be left out: {reasons or 'it has no layers'}.")
        self.edits = {width: _edit(groups, width) for width in self.widths if width < 1}
        self.statistics: dict[float, Statistics] = {}
        for width, edit in self.edits.items():
            self.statistics[width] = _fresh_statistics(module, edit)

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        module = self._module()
        if module is None:
            raise CompressionError("The network whose widths these are is gone.")
        return module

    def check(self, width: float) -> float:
        """The width as it was given.

        Raises:
            CompressionError: not one of them.
        """
        found = next((one for one in self.widths if is_number(width) and abs(one - width) < 1e-9), None)
        if found is None:
            raise CompressionError(f"width={width!r} is none of {', '.join(map(str, self.widths))}.")
        return found

    @contextmanager
    def at(self, width: float, seen: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Inside, the module computes at ``width``, and gradients flow into the units that it uses.

        The tensors in the module are exchanged for parts of them and put back afterwards; statistics that a BatchNorm
        updates inside are those of this width.

        Args:
            width: one of the widths.
            seen: values that stand for parameters of these names, such as rounded weights; parts of them are used.
        """
        width = self.check(width)
        if width in (1, self._now):  # a part of the network that is called inside computes at this width already
            yield
            return
        swap = _Swap(self.module, self.edits[width], self.statistics[width], seen or {})
        former, self._now = self._now, width
        try:
            swap.make()
            yield
        finally:
            swap.undo()
            self._now = former

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors of which a width below 1 uses a part."""
        return frozenset[str]().union(*(edit.touched for edit in self.edits.values()))

    def export(self, width: float) -> nn.Module:
        """An ordinary small module; see :func:`export_width`."""
        width = self.check(width)
        duplicate = private_copy(self.module)
        for part in duplicate.modules():
            if isinstance(part.__dict__.get("forward"), WidthForward):
                del part.__dict__["forward"]
        if width < 1:
            Record.of(duplicate).apply(self.edits[width])
            tensors = named_tensors(duplicate)
            with torch.no_grad():
                for norm, own in self.statistics[width].items():
                    for key, value in own.items():
                        tensors[f"{norm}.{key}"].copy_(value)
        return duplicate

    def recalibrate(
        self, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] = call_with_batch
    ) -> None:
        """Estimate the statistics of every width below 1 anew, as averages over ``batches``.

        Yu and Huang, "Universally Slimmable Networks", ICCV 2019, arXiv:1903.05134.
        """
        kept = list(batches)
        for width, own in self.statistics.items():
            if own:
                small = self.export(width)
                recalibrate_batchnorm_(small, kept, forward)
                tensors = named_tensors(small)
                for norm, entries in own.items():
                    for key in entries:
                        entries[key].copy_(tensors[f"{norm}.{key}"])

    def state_dict(self) -> dict[str, Any]:
        """Widths and statistics, loadable with ``weights_only=True``."""
        return {"widths": list(self.widths), "statistics": copy.deepcopy(list(self.statistics.values()))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CompressionError: it has other widths.
        """
        if tuple(state["widths"]) != self.widths:
            raise CompressionError(f"These statistics are of the widths {state['widths']}, not {list(self.widths)}.")
        for own, given in zip(self.statistics.values(), state["statistics"], strict=True):
            for norm, entries in own.items():
                for key, value in entries.items():
                    value.copy_(given[norm][key])


class WidthForward:
    """Stands on a network in the place of its forward and runs it at one width; in a copy it is the network's own."""

    def __init__(
        self, network: nn.Module, slim: Slimmable | None = None, width: float = 1.0, former: Any = None
    ) -> None:
        self._network, self._slim, self.width, self.former = network, slim, width, former
        self._running = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns at this width."""
        own = self.former or type(self._network).forward.__get__(self._network)
        if self._slim is None or self._running:
            return own(*args, **kwargs)
        self._running = True
        try:
            with self._slim.at(self.width):
                return own(*args, **kwargs)
        finally:
            self._running = False

    def __deepcopy__(self, memo: dict[int, Any]) -> WidthForward:
        return WidthForward(memo.get(id(self._network), self._network), former=copy.deepcopy(self.former, memo))

    def __reduce__(self) -> tuple[type[WidthForward], tuple[Any, ...]]:
        return WidthForward, (self._network, None, 1.0, self.former)


def make_slimmable(
    module: nn.Module,
    tracing: TracingInput,
    widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    exclude: Sequence[str] = (),
) -> Slimmable:
    """Find what hangs together in ``module``, so that its width can be switched; nothing of it changes.

    Args:
        module: the network, or what contains it.
        tracing: a call that runs it.
        widths: in (0, 1].
        exclude: layers whose outputs always stay; those of recurrent layers do anyway.

    Raises:
        CompressionError: see :class:`Slimmable`.
    """
    refuse_text(exclude, "exclude")
    recurrent = [name for name, part in module.named_modules() if isinstance(part, nn.RNNBase)]  # flat weights
    groups = find_groups(module, tracing, exclude=[*exclude, *recurrent], approximate=True)
    slim = Slimmable(module, groups, widths)
    _SLIMMABLE[module] = slim
    return slim


def remember_slimmable(module: nn.Module, slim: Slimmable) -> None:
    """Let :func:`set_width` find the widths of ``module``."""
    _SLIMMABLE[module] = slim


def slimmable_of(module: nn.Module) -> Slimmable:
    """The widths of a module.

    Raises:
        CompressionError: it has none.
    """
    if module not in _SLIMMABLE:
        raise CompressionError(
            f"{type(module).__name__} has no widths. Fit it with SlimmableWidths(...), or call make_slimmable."
        )
    return _SLIMMABLE[module]


def set_width(module: nn.Module, width: float) -> None:
    """Run ``module`` at ``width`` from now on, whoever calls it or, of a LightningModule, its network.

    Its parameters and ``state_dict`` stay those of the whole network. A copy runs at full width;
    :func:`export_width` gives a small one.

    Args:
        module: a network that has been trained with :class:`~lightning_compress.dynamic.SlimmableWidths`.
        width: one of its widths.

    Raises:
        CompressionError: no widths, or another one.
    """
    slim = slimmable_of(module)
    width = slim.check(width)
    for part in [module, *module.children()]:
        former = part.__dict__.get("forward")
        if isinstance(former, WidthForward):
            del part.__dict__["forward"]
            former = former.former
            if former is not None:
                part.__dict__["forward"] = former
        if width < 1 and type(part).forward is not nn.Module.forward:
            part.__dict__["forward"] = WidthForward(part, slim, width, former)


def export_width(module: nn.Module, width: float) -> nn.Module:
    """An ordinary small module: a copy in which only the units of ``width`` are left, by an edit of its Plan.

    Its outputs are those of the network switched to that width.

    Args:
        module: see :func:`set_width`; not touched.
        width: likewise.

    Raises:
        CompressionError: likewise.
    """
    return slimmable_of(module).export(width)


def checked_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Widths in rising order, 1 included.

    Raises:
        CompressionError: out of (0, 1].

    >>> checked_widths([0.5, 0.25])
    (0.25, 0.5, 1.0)
    """
    given = list(widths) if isinstance(widths, Iterable) else []
    if not given or not all(is_number(width) and 0 < width <= 1 for width in given):
        raise CompressionError(f"widths={widths!r}: a list of numbers, each in (0, 1].")
    return tuple(sorted({float(width) for width in given} | {1.0}))


class _Swap:
    """Tensors, statistics and attributes of a narrower network, put into the module and taken out again."""

    def __init__(
        self, module: nn.Module, edit: KeepIndices, statistics: Statistics, seen: Mapping[str, Tensor]
    ) -> None:
        self._module, self._edit, self._statistics, self._seen = module, edit, statistics, seen
        self._slots: list[tuple[dict[str, Any], str, Any]] = []
        self._changed: list[nn.Module] = []

    def make(self) -> None:
        """Put the parts in."""
        names, parts = first_names(self._module), dict[str, Tensor]()
        modules = dict(self._module.named_modules(remove_duplicate=False))
        for owner in modules.values():
            for slots in (owner._parameters, owner._buffers):
                for key, tensor in list(slots.items()):
                    name = "" if tensor is None else names[id(tensor)]
                    if name in self._edit.touched or name in self._seen:
                        assert tensor is not None
                        if name not in parts:
                            parts[name] = _part(self._edit, name, self._seen.get(name, tensor))
                        self._put(slots, key, parts[name])
        for norm, own in self._statistics.items():
            for key, value in own.items():
                self._put(modules[norm]._buffers, key, value)
        for change in self._edit.attributes:
            self._put(modules[change.module].__dict__, change.name, change.after)
        self._changed = [modules[name] for name in dict.fromkeys(change.module for change in self._edit.attributes)]
        self._settle()

    def undo(self) -> None:
        """Put everything back."""
        for slots, key, value in reversed(self._slots):
            slots[key] = value
        self._slots = []
        self._settle()

    def _settle(self) -> None:
        """An attention computes as its present number of heads asks for."""
        for module in self._changed:
            settle_(module)

    def _put(self, slots: dict[str, Any], key: str, value: Any) -> None:
        self._slots.append((slots, key, slots[key]))
        slots[key] = value


def _part(edit: KeepIndices, name: str, tensor: Tensor) -> Tensor:
    """What ``edit`` leaves of a tensor: a view where the kept indices are the first ones."""
    for part in edit.slices:
        if part.tensor == name:
            number = part.kept.numel()
            if int(part.kept[-1]) == number - 1:
                tensor = tensor.narrow(part.dim, 0, number)
            else:
                tensor = tensor.index_select(part.dim, part.kept.to(tensor.device))
    return tensor.contiguous()


def _edit(groups: Groups, width: float) -> KeepIndices:
    return merge([group.keep(torch.arange(max(1, round(width * group.size)))) for group in groups])


def _fresh_statistics(module: nn.Module, edit: KeepIndices) -> Statistics:
    """Of every BatchNorm that keeps statistics: those of the module, cut to this width."""
    found: Statistics = {}
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            found[name] = {
                key: edit.carry(f"{name}.{key}", buffer.detach()).clone() for key, buffer in norm.named_buffers()
            }
    return found
