"""Weights of a network that share values, and the values, which are trained; outside the module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Edit
from lightning_compress.quantization.kmeans import Codebook, spread
from lightning_compress.quantization.packing import pack_numbers, unpack_numbers
from lightning_compress.training import AuxiliaryOptimizer

LEVELS = "levels"


@dataclass
class Shared:
    """One parameter that shares values.

    Attributes:
        levels: the values, float32 (float64 for a float64 parameter), shape (k,), trained.
        training: their optimizer.
        assignment: int16, shaped like the parameter; 0 for exact zeros, else the number of the level, from 1.
        drift: how far each weight would be from its level, had it been free; None where nobody asks.
    """

    levels: nn.Parameter
    training: AuxiliaryOptimizer
    assignment: Tensor
    drift: Tensor | None


class SharedWeights:
    """Parameters that hold nothing but shared values: after each optimizer step they are overwritten by them.

    A level's gradient is the sum of its members'. A weight that becomes an exact zero (pruned) stays one. A follower:
    assignments are cut with their parameters; what comes back is zero.

    Args:
        module: whose parameters they are.
        learning_rate: of the levels, under Adam.
        precision: dtype to which the levels are rounded before they are shared ("float16": two bytes each in a file).
        drifts: keep where each weight would be, for :meth:`reassign`.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> shared = SharedWeights(layer, learning_rate=0.1)
    >>> book = Codebook(torch.tensor([0.5]), torch.tensor([[1, 0]], dtype=torch.int16))
    >>> shared.share({"weight": book})
    >>> layer.weight.tolist()
    [[0.5, 0.0]]
    """

    def __init__(
        self, module: nn.Module, *, learning_rate: float, precision: torch.dtype | None = None, drifts: bool = False
    ) -> None:
        self._module = module
        self._learning_rate, self._precision, self._drifts = learning_rate, precision, drifts
        self._shared: dict[str, Shared] = {}
        self._parameters: dict[int, str] = {}
        self._aliases: dict[str, str] = {}

    @property
    def module(self) -> nn.Module:
        """Whose parameters share values."""
        return self._module

    @property
    def names(self) -> list[str]:
        """The parameters that share values by now."""
        return list(self._shared)

    def codebook(self, name: str) -> Codebook:
        """The present levels, as they are shared, and the assignment of a parameter."""
        entry = self._shared[name]
        return Codebook(self._table(entry, self._named()[name].dtype), entry.assignment)

    def share(self, books: Mapping[str, Codebook]) -> None:
        """From now on these parameters hold these values."""
        self._take({**self._shared, **{name: self._new(name, book) for name, book in books.items()}})
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Write the shared values into the parameters."""
        named = self._named()
        for name, entry in self._shared.items():
            named[name].copy_(self._values(entry, named[name].dtype))

    @torch.no_grad()
    def step(self, parameter: nn.Parameter, factor: float = 1.0, scale: float = 1.0) -> None:
        """After an optimizer step: train the levels of ``parameter`` on its gradient, and write them into it.

        Args:
            parameter: any; one that shares nothing is left alone.
            factor: of the learning rate.
            scale: what the gradient is still multiplied by (of a gradient scaler).
        """
        name = self._parameters.get(id(parameter))
        if name is None:
            return
        entry = self._shared[name]
        self._on_device(entry, parameter.device)
        entry.assignment.masked_fill_(parameter == 0, 0)
        if entry.drift is not None:
            entry.drift += parameter - self._values(entry, parameter.dtype)
        if parameter.grad is not None and len(entry.levels):
            sums = _sums(parameter.grad, entry.assignment, len(entry.levels)) / scale
            entry.levels.grad = sums.to(entry.levels.dtype)
            entry.training.optimizer.param_groups[0]["lr"] = self._learning_rate * factor
            entry.training.step()
        parameter.copy_(self._values(entry, parameter.dtype))

    @torch.no_grad()
    def reassign(self, choose: Callable[[str, Tensor, Codebook], Tensor]) -> int:
        """Weights to other levels, from where they would be; returns how many.

        Args:
            choose: from name, free weights and present codebook to a new assignment; what is 0 must stay 0.
        """
        named, moved = self._named(), 0
        for name, entry in self._shared.items():
            assert entry.drift is not None
            free = self._values(entry, torch.float32) + entry.drift
            after = choose(name, free, self.codebook(name))
            moved += int((after != entry.assignment).sum())
            entry.assignment = after
            entry.drift = free - self._values(entry, torch.float32)
            named[name].copy_(self._values(entry, named[name].dtype))
        return moved

    # -- averages -----------------------------------------------------------------------------------------------------

    def shared(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor shaped like the parameter ``name`` with its groups' means in the place of their members.

        ``tensor`` itself where its groups share values already, or where ``name`` (any name of a tied parameter) is
        none of ours.
        """
        entry = self._shared.get(self._aliases.get(name, name))
        if entry is None:
            return tensor
        base = self._values(entry, tensor.dtype).to(tensor.device)
        if torch.equal(base, tensor):
            return tensor
        return spread(self._means(entry, tensor).to(tensor.dtype), entry.assignment.to(tensor.device))

    @torch.no_grad()
    def project_(self, *, keep: bool = False) -> None:
        """The parameters' groups to their means: an average over steps shares values again.

        Args:
            keep: the means are the levels from now on.
        """
        named = self._named()
        for name, entry in self._shared.items():
            after = self.shared(name, named[name].detach())
            if after is not named[name] and not torch.equal(after, named[name]):
                if keep:
                    entry.levels.copy_(self._means(entry, named[name].detach()))
                named[name].copy_(after)

    def _means(self, entry: Shared, tensor: Tensor) -> Tensor:
        base = self._values(entry, tensor.dtype).to(tensor.device)
        assignment = entry.assignment.to(tensor.device)
        counts = torch.bincount(assignment.flatten().long(), minlength=len(entry.levels) + 1)[1:].clamp(min=1)
        change = _sums(tensor - base, assignment, len(entry.levels)) / counts
        means = self._table(entry, tensor.dtype).to(tensor.device) + change
        return means if self._precision is None else means.to(self._precision).to(means.dtype)

    # -- following and remembering ------------------------------------------------------------------------------------

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Cut with the network; what comes back is zero; a parameter that is gone or new shares nothing."""
        former = {name: (entry, entry.assignment, entry.drift) for name, entry in self._shared.items()}
        replaced = tuple(name.removesuffix("*") for name in edit.touched if name.endswith("*"))
        named = self._named()
        stay = {n: e for n, e in self._shared.items() if n in named and not (replaced and n.startswith(replaced))}
        for name, entry in stay.items():
            entry.assignment = edit.carry(name, entry.assignment)
            entry.drift = None if entry.drift is None else edit.carry(name, entry.drift)
        self._take(stay)
        return partial(self._back, former)

    def _back(self, former: Mapping[str, tuple[Shared, Tensor, Tensor | None]]) -> None:
        for entry, assignment, drift in former.values():
            entry.assignment, entry.drift = assignment, drift
        self._take({name: entry for name, (entry, _, _) in former.items()})

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint: as many bits a weight as its number needs, and the levels with their optimizer."""
        return {
            name: {
                "shape": list(entry.assignment.shape),
                "assignment": pack_numbers(entry.assignment, _width(len(entry.levels))),
                "count": len(entry.levels),
                "training": _cloned(entry.training.state_dict()),
                "drift": None if entry.drift is None else entry.drift.clone(),
            }
            for name, entry in self._shared.items()
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`to_state`.

        Raises:
            CompressionError: the state does not fit the module as it is; the present one stays.
        """
        entries = {}
        for name, part in state.items():
            assignment = unpack_numbers(part["assignment"], _width(part["count"]), part["shape"])
            entry = self._new(name, Codebook(torch.zeros(part["count"]), assignment))
            entry.training.load_state_dict(_cloned(part["training"]))
            entry.drift = None if part["drift"] is None else part["drift"].to(entry.assignment.device).clone()
            entries[name] = entry
        self._take(entries)
        self.apply_()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _new(self, name: str, book: Codebook) -> Shared:
        parameter = self._named().get(name)
        if parameter is None or parameter.shape != book.assignment.shape:
            raise CompressionError(
                f"The codebook of {name!r} is for a weight of shape {tuple(book.assignment.shape)}; the module has "
                "no such parameter."
            )
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        levels = nn.Parameter(book.levels.detach().to(parameter.device, dtype).clone())
        training = AuxiliaryOptimizer({LEVELS: levels}, partial(torch.optim.Adam, lr=self._learning_rate))
        assignment = book.assignment.to(parameter.device).clone()
        drift = parameter.detach() - spread(levels.detach(), assignment) if self._drifts else None
        return Shared(levels, training, assignment, drift)

    def _take(self, entries: dict[str, Shared]) -> None:
        named = self._named()
        for name, entry in entries.items():
            if name not in named or named[name].shape != entry.assignment.shape:
                raise CompressionError(f"The codebook of {name!r} does not fit the module's parameter.")
        first = {id(parameter): name for name, parameter in named.items()}
        every = self._module.named_parameters(remove_duplicate=False)
        self._aliases = {name: first[id(parameter)] for name, parameter in every}
        self._shared = entries
        self._parameters = {id(named[name]): name for name in entries}

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(self._module.named_parameters())

    def _table(self, entry: Shared, dtype: torch.dtype) -> Tensor:
        levels = entry.levels.detach()
        return (levels if self._precision is None else levels.to(self._precision)).to(dtype)

    def _values(self, entry: Shared, dtype: torch.dtype) -> Tensor:
        return spread(self._table(entry, dtype), entry.assignment)

    @staticmethod
    def _on_device(entry: Shared, device: torch.device) -> None:
        if entry.assignment.device != device:  # the module has moved since
            entry.assignment = entry.assignment.to(device)
            entry.drift = None if entry.drift is None else entry.drift.to(device)
            entry.levels.data = entry.levels.data.to(device)
            for state in entry.training.optimizer.state.values():
                state.update({key: v.to(device) for key, v in state.items() if isinstance(v, Tensor) and v.dim()})


def _sums(tensor: Tensor, assignment: Tensor, count: int) -> Tensor:
    """Sum of the members of each level, float64, shape (k,)."""
    return torch.bincount(assignment.flatten().long(), tensor.flatten().double(), count + 1)[1:]


def _width(count: int) -> int:
    return max(1, count.bit_length())


def _cloned(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    if isinstance(state, Iterable) and not isinstance(state, str):
        return type(state)(_cloned(value) for value in state)  # type: ignore[call-arg]
    return state
