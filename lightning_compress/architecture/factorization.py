"""What every factorisation says of itself: where it fits, its ranks, its best factors, the layers made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem
from lightning_compress.plan.specs import ModuleSpec

PACKAGE = "lightning_compress.architecture.factorizations"
Ranks = tuple[int, ...]
STEPS = 6
"""Ranks of each layer that are tried for a budget, where each takes a fit of its own."""


@dataclass(frozen=True)
class Choice:
    """One way to make a layer smaller.

    Attributes:
        method: name of a factorisation in ``architecture/factorizations``.
        ranks: its ranks, those of each group of a grouped convolution.
    """

    method: str
    ranks: Ranks

    def __str__(self) -> str:
        return f"{self.method} {'x'.join(map(str, self.ranks))}"


class Factorization(ABC):
    """A pattern of smaller layers that together stand in for one. Each file in ``factorizations/`` has one instance.

    Attributes:
        separable: whether it is a depthwise separable one.
    """

    separable: ClassVar[bool] = False

    @abstractmethod
    def refuses(self, geometry: Geometry) -> str | None:
        """Why it cannot stand in for such a layer; None if it can."""

    @abstractmethod
    def full(self, geometry: Geometry) -> Ranks:
        """The smallest ranks that give any layer of this shape exactly."""

    @abstractmethod
    def unfoldings(self, problem: Problem) -> list[Tensor]:
        """The matrices whose ranks these are, one for each rank."""

    @abstractmethod
    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """The best factors of one group, as weights (outputs, inputs, *kernel) in the order of the layers."""

    @abstractmethod
    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """The weight (outputs, inputs, positions) that the factors of one group make together."""

    @abstractmethod
    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """Specs of the layers, in order; only the last one may have a bias."""

    def options(self, geometry: Geometry, multiple: int) -> list[Ranks]:
        """Ranks to choose among for a budget, in multiples of ``multiple``."""
        full = self.full(geometry)
        shares = [2 ** (-step / 2) for step in range(1, STEPS + 1)]
        options = {tuple(rounded(share * rank, rank, multiple) for rank in full) for share in shares}
        return sorted(options)

    def losses(self, problem: Problem, options: Sequence[Ranks], rounds: int) -> list[float]:
        """The share of E|y|^2 that each of them loses."""
        return [problem.loss(self.product(self.fit(problem, ranks, rounds), ranks).flatten(1)) for ranks in options]

    def weights(self, factors: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The weights of the layers, in the order of :meth:`layers`' leaves, of the factors of each group."""
        return [torch.cat(parts) for parts in zip(*factors, strict=True)]

    def spec(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> ModuleSpec:
        """The layers in a row."""
        children = [[str(place), layer] for place, layer in enumerate(self.layers(geometry, ranks, bias=bias))]
        return {"type": "Sequential", "children": children}


def rounded(rank: float, full: int, multiple: int) -> int:
    """A rank from 1 to ``full``, a multiple of ``multiple`` where there is room for one.

    >>> rounded(11.3, 64, 8), rounded(2.0, 64, 8), rounded(2.0, 5, 8)
    (8, 8, 2)
    """
    if full < multiple:
        return max(1, min(full, round(rank)))
    return max(multiple, min(full, round(rank / multiple) * multiple))
