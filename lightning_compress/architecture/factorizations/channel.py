"""Fewer channels in between: the layer with ``rank`` outputs, then a 1x1 one; of a Linear layer, two Linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_compress.architecture.factorization import Factorization, Ranks, rounded
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem, explained, reduced_rank
from lightning_compress.plan.specs import ModuleSpec


class Channel(Factorization):
    """W (outputs, inputs * positions) = P Q, by the truncated SVD, or by reduced-rank regression on data.

    Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015 (its
    linear part).
    """

    def refuses(self, geometry: Geometry) -> str | None:
        """It stands in for any layer of more than one output and input."""
        return "it has a rank of one already" if self.full(geometry) == (1,) else None

    def full(self, geometry: Geometry) -> Ranks:
        """The smaller side of the matrix."""
        return (min(geometry.group_outputs, geometry.group_inputs * geometry.positions),)

    def unfoldings(self, problem: Problem) -> list[Tensor]:
        """The weight as a matrix."""
        return [problem.weight.flatten(1)]

    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """In closed form, whatever ``rounds``."""
        left, right = reduced_rank(problem.gram, problem.cross, ranks[0])
        inputs = problem.weight.shape[1]
        ones = [1] * len(problem.kernel)
        return right.reshape(-1, inputs, *problem.kernel), left.reshape(*left.shape, *ones)

    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """P Q."""
        first, last = factors
        return (last.flatten(1) @ first.flatten(1)).reshape(len(last), first.shape[1], -1)

    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """The layer itself with fewer outputs, then a pointwise one."""
        inner = ranks[0] * geometry.groups
        return [
            geometry.layer(geometry.inputs, inner, groups=geometry.groups, along=True),
            geometry.layer(inner, geometry.outputs, groups=geometry.groups, bias=bias),
        ]

    def options(self, geometry: Geometry, multiple: int) -> list[Ranks]:
        """Many: all of them follow from one decomposition."""
        (full,) = self.full(geometry)
        return sorted({(rounded(full * (step / 32) ** 1.5, full, multiple),) for step in range(1, 32)})

    def losses(self, problem: Problem, options: Sequence[Ranks], rounds: int) -> list[float]:
        """All from one decomposition."""
        left = problem.energy - explained(problem).cumsum(0)
        return [max(0.0, float(left[rank - 1])) / max(problem.energy, 1e-300) for (rank,) in options]


channel = Channel()
