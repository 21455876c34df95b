"""Structure of zeros: n of m, blocks, rows, columns, kernels."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.pruning.threshold import keep_top

NAMES = ("rows", "columns", "kernels")


class Pattern(ABC):
    """Which entries of a weight may go only together.

    A weight has the outputs in dimension 0 and the inputs in dimension 1, as Linear and convolutions have; further
    dimensions are a kernel's positions.
    """

    sparsity: float | None = None
    """The share of zeros that the pattern itself fixes."""

    @abstractmethod
    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a weight that the pattern does not fit.

        Raises:
            CompressionError: with the way out.
        """

    @abstractmethod
    def spread(self, scores: Tensor) -> Tensor:
        """Scores by which an allocation compares: alike for entries that go together, infinite for those that stay."""

    @abstractmethod
    def whole(
        self, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], masked: Mapping[str, int]
    ) -> dict[str, int]:
        """The numbers of zeros nearest to ``counts`` that the pattern allows, none below ``masked``."""

    @abstractmethod
    def choose(self, scores: Tensor, drop: int) -> Tensor:
        """Boolean mask with ``drop`` zeros in the pattern, the lowest scores; minus infinity is masked already."""


class Units(Pattern):
    """Whole rows, columns, kernels or blocks go, by their mean score.

    Args:
        kind: "rows" (the weights of one output), "columns" (of one input), "kernels" (of one input to one output), or
            the size of a block of the weight as a matrix of outputs by inputs.

    >>> Units("rows").choose(torch.tensor([[1.0, 2.0], [0.0, 9.0]]), 2).tolist()
    [[False, False], [True, True]]
    """

    def __init__(self, kind: str | tuple[int, int]) -> None:
        self.kind = kind

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse vectors, and matrices that blocks do not tile."""
        if len(shape) < 2:
            raise CompressionError(
                f"{name!r} has one dimension and so no {self.kind}. Leave it out: exclude=({name!r},)."
            )
        width = torch.Size(shape[1:]).numel()
        if isinstance(self.kind, tuple) and (shape[0] % self.kind[0] or width % self.kind[1]):
            rows, columns = self.kind
            raise CompressionError(
                f"{name!r} is a matrix of {shape[0]} x {width}, which blocks of {rows} x {columns} do not tile. Use "
                f"another size, or leave it out: exclude=({name!r},)."
            )

    def _units(self, shape: tuple[int, ...]) -> Tensor:
        """Flat indices of the entries, shape (units, entries of each)."""
        places = torch.arange(torch.Size(shape).numel()).view(shape)
        if self.kind == "rows":
            return places.flatten(1)
        if self.kind == "columns":
            return places.transpose(0, 1).flatten(1)
        if self.kind == "kernels":
            return places.reshape(shape[0] * shape[1], -1)
        assert isinstance(self.kind, tuple)
        rows, columns = self.kind
        matrix = places.flatten(1)
        tiles = matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
        return tiles.transpose(1, 2).reshape(-1, rows * columns)

    def spread(self, scores: Tensor) -> Tensor:
        """Each entry has its unit's mean."""
        units = self._units(tuple(scores.shape)).to(scores.device)
        means = scores.flatten()[units].mean(dim=1, keepdim=True)
        result = torch.empty_like(scores.flatten())
        result[units] = means.expand(units.shape)
        return result.view_as(scores)

    def whole(
        self, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], masked: Mapping[str, int]
    ) -> dict[str, int]:
        """Whole units; what rounding leaves over in one weight the next makes up for."""
        result, over = {}, 0
        for name, count in counts.items():
            entries = self._units(shapes[name]).shape[1]
            wanted = round((count + over) / entries) * entries
            size = torch.Size(shapes[name]).numel()
            most = size if count == size else size - entries  # rounding alone takes no weight's last unit
            result[name] = max(min(wanted, most), -(-masked[name] // entries) * entries)
            over += count - result[name]
        return result

    def choose(self, scores: Tensor, drop: int) -> Tensor:
        """The units with the lowest means go."""
        units = self._units(tuple(scores.shape)).to(scores.device)
        means = scores.flatten()[units].mean(dim=1)
        gone = ~keep_top(means, drop // units.shape[1])
        keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
        keep[units[gone].flatten()] = False
        return keep.view_as(scores)


class KeepOf(Pattern):
    """Of each ``group`` consecutive inputs of an output at most ``keep`` are not zero: "2:4".

    Args:
        keep: n.
        group: m.

    >>> KeepOf(1, 2).choose(torch.tensor([[3.0, 1.0, 2.0, 5.0]]), 2).tolist()
    [[True, False, False, True]]
    """

    def __init__(self, keep: int, group: int) -> None:
        if not 0 < keep < group:
            raise CompressionError(f"pattern='{keep}:{group}' keeps {keep} of {group}; 2:4 keeps two of each four.")
        self.keep, self.group = keep, group
        self.sparsity = 1 - keep / group

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse weights whose inputs do not come in whole groups."""
        if len(shape) < 2 or shape[1] % self.group:
            inputs = shape[1] if len(shape) > 1 else 0
            raise CompressionError(
                f"{name!r} has {inputs} inputs, which are not a multiple of {self.group} as pattern="
                f"'{self.keep}:{self.group}' needs. Leave it out: exclude=({name!r},)."
            )

    def spread(self, scores: Tensor) -> Tensor:
        """Infinite for the best ``keep`` of each group."""
        last = scores.movedim(1, -1)
        groups = last.reshape(*last.shape[:-1], -1, self.group)
        lowest = groups.argsort(dim=-1, stable=True)[..., : self.group - self.keep]
        result = torch.full_like(groups, torch.inf)
        result.scatter_(-1, lowest, groups.gather(-1, lowest))
        return result.flatten(-2).movedim(-1, 1).contiguous()

    def whole(
        self, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], masked: Mapping[str, int]
    ) -> dict[str, int]:
        """Any number up to what the pattern allows.

        Raises:
            CompressionError: the allocation asks one weight for more.
        """
        for name, count in counts.items():
            size = torch.Size(shapes[name]).numel()
            if count > size // self.group * (self.group - self.keep):
                raise CompressionError(
                    f"The allocation takes {count} of the {size} weights of {name!r}, more than "
                    f'{self.keep}:{self.group} does. Use allocation="global" or "uniform".'
                )
        return dict(counts)

    def choose(self, scores: Tensor, drop: int) -> Tensor:
        """The lowest of those that may go."""
        return keep_top(self.spread(scores), drop)


def find_pattern(pattern: str | Pattern | None) -> Pattern | None:
    """The pattern that a text stands for: "2:4", "4x4", "rows", "columns", "kernels".

    Raises:
        CompressionError: it stands for none.

    >>> find_pattern("2:4").sparsity
    0.5
    """
    if pattern is None or isinstance(pattern, Pattern):
        return pattern
    if pattern in NAMES:
        return Units(pattern)
    numbers = re.fullmatch(r"(\d+)([:x])(\d+)", str(pattern))
    if numbers is None or "0" in (numbers[1], numbers[3]):
        raise CompressionError(f"pattern={pattern!r}. {did_you_mean(str(pattern), (*NAMES, '2:4', '4x4'))}")
    first, second = int(numbers[1]), int(numbers[3])
    return KeepOf(first, second) if numbers[2] == ":" else Units((first, second))
