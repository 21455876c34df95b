"""A kernel taken apart along its axes: a column of it, then a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.architecture.factorization import Factorization, Ranks
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem, alternate, balanced
from lightning_compress.plan.specs import ModuleSpec


class Spatial(Factorization):
    """A (height x 1) convolution to ``rank`` channels, then a (1 x width) one.

    Without data the truncated SVD of the weight as a matrix (inputs * height, width * outputs), which is optimal
    (Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014,
    scheme 2; Tai et al., "Convolutional Neural Networks with Low-rank Regularization", ICLR 2016); with data that is
    where alternating least squares begin.
    """

    def refuses(self, geometry: Geometry) -> str | None:
        """Only a kernel with two axes can be taken apart."""
        return None if len(geometry.kernel) == 2 and min(geometry.kernel) > 1 else "its kernel is no area"

    def full(self, geometry: Geometry) -> Ranks:
        """The smaller side of the matrix."""
        height, width = geometry.kernel
        return (min(geometry.group_inputs * height, geometry.group_outputs * width),)

    def unfoldings(self, problem: Problem) -> list[Tensor]:
        """(inputs * height, outputs * width)."""
        outputs, inputs, _ = problem.weight.shape
        height, width = problem.kernel
        weight = problem.weight.reshape(outputs, inputs, height, width)
        return [weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)]

    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """Columns (rank, inputs, height, 1) and rows (outputs, rank, 1, width)."""
        outputs, inputs, _ = problem.weight.shape
        height, width = problem.kernel
        (rank,) = ranks
        left, values, right = torch.linalg.svd(self.unfoldings(problem)[0], full_matrices=False)
        root = values[:rank].sqrt()
        columns = (left[:, :rank] * root).T.reshape(rank, inputs, height)
        rows = (root[:, None] * right[:rank]).reshape(rank, outputs, width).transpose(0, 1)
        if problem.gram is not None:

            def apply(entries: Tensor, matrix: Tensor) -> Tensor:
                parts = torch.einsum("ria,iabc->rbc", entries, matrix.reshape(inputs, height, width, -1))
                return parts.reshape(rank * width, -1)

            def gather(matrix: Tensor) -> Tensor:
                return torch.einsum("rbiab->ria", matrix.reshape(rank, width, inputs, height, width))

            rows, _, columns = alternate(problem, columns, apply, gather, rounds=rounds)
            rows = rows.reshape(outputs, rank, width)
        flat, columns = balanced(rows.transpose(1, 2).reshape(-1, rank), columns)
        rows = flat.reshape(outputs, width, rank).transpose(1, 2)
        return columns.unsqueeze(-1), rows.unsqueeze(2)

    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """The sum over the channels in between."""
        columns, rows = factors[0].squeeze(-1), factors[1].squeeze(2)
        return torch.einsum("orb,ria->oiab", rows, columns).flatten(2)

    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """Along the first axis, then along the second."""
        inner, groups = ranks[0] * geometry.groups, geometry.groups
        return [
            geometry.layer(geometry.inputs, inner, groups=groups, along=(True, False)),
            geometry.layer(inner, geometry.outputs, groups=groups, along=(False, True), bias=bias),
        ]


spatial = Spatial()
