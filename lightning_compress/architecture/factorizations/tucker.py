"""Fewer channels on both sides of the kernel: 1x1, the kernel, 1x1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.architecture.factorization import Factorization, Ranks
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem, alternate, balanced
from lightning_compress.plan.specs import ModuleSpec


class Tucker(Factorization):
    """Tucker-2: ranks (inputs, outputs) of the core.

    Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR
    2016. Begins at the leading singular vectors of the input unfolding; the rounds that follow are HOOI without data,
    and its counterpart in the metric of the inputs with data.
    """

    def refuses(self, geometry: Geometry) -> str | None:
        """Only a kernel of several positions lies between two 1x1 layers."""
        return None if geometry.positions > 1 else "its kernel has a single position"

    def full(self, geometry: Geometry) -> Ranks:
        """All channels of either side, as far as the other unfolding's side allows."""
        inputs, outputs, positions = geometry.group_inputs, geometry.group_outputs, geometry.positions
        return min(inputs, outputs * positions), min(outputs, inputs * positions)

    def unfoldings(self, problem: Problem) -> list[Tensor]:
        """(inputs, outputs * positions) and (outputs, inputs * positions)."""
        return [problem.weight.transpose(0, 1).flatten(1), problem.weight.flatten(1)]

    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """(first rank, inputs, 1...), (second rank, first rank, *kernel) and (outputs, second rank, 1...)."""
        _, inputs, positions = problem.weight.shape
        reads, makes = ranks
        vectors = torch.linalg.svd(self.unfoldings(problem)[0], full_matrices=False)[0][:, :reads]

        def apply(entries: Tensor, matrix: Tensor) -> Tensor:
            parts = torch.einsum("ri,ikc->rkc", entries, matrix.reshape(inputs, positions, -1))
            return parts.reshape(reads * positions, -1)

        def gather(matrix: Tensor) -> Tensor:
            return torch.einsum("rkik->ri", matrix.reshape(reads, positions, inputs, positions))

        makes = min(makes, reads * positions)
        last, core, first = alternate(problem, vectors.T, apply, gather, rank=makes, rounds=rounds)
        core = core.reshape(makes, reads, positions)
        flat, first = balanced(core.transpose(1, 2).reshape(-1, reads), first)
        core = flat.reshape(makes, positions, reads).transpose(1, 2)
        last, core = balanced(last, core)
        ones = [1] * len(problem.kernel)
        return (
            first.reshape(*first.shape, *ones),
            core.reshape(makes, reads, *problem.kernel),
            last.reshape(*last.shape, *ones),
        )

    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """Core times both sides."""
        first, core, last = (factor.flatten(2) for factor in factors)
        return torch.einsum("os,srk,ri->oik", last[..., 0], core, first[..., 0])

    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """Pointwise, the kernel, pointwise."""
        groups = geometry.groups
        reads = ranks[0]
        makes = min(ranks[1], reads * geometry.positions)
        return [
            geometry.layer(geometry.inputs, reads * groups, groups=groups),
            geometry.layer(reads * groups, makes * groups, groups=groups, along=True),
            geometry.layer(makes * groups, geometry.outputs, groups=groups, bias=bias),
        ]


tucker = Tucker()
