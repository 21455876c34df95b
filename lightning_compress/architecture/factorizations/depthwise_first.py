"""Depthwise separable: every channel filtered by itself, then mixed by a 1x1 layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.architecture.factorization import Factorization, Ranks
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem, alternate, balanced
from lightning_compress.plan.specs import ModuleSpec

MOST = 4
"""Largest multiplier that a budget chooses among."""


class DepthwiseFirst(Factorization):
    """k*k*I*O parameters become m*(k*k*I + I*O); the rank is the multiplier m.

    Without data the loss falls apart into one for each input channel, whose best filters are the leading singular
    vectors of the slice W[:, i] as a matrix (outputs, positions): the truncated SVD is optimal (Guo, Li, Lin, Chen,
    "Network Decoupling: From Regular to Depthwise Separable Convolutions", BMVC 2018). With data alternating least
    squares begin there. The layers are those of Sifre, 2014, and Chollet, "Xception", CVPR 2017.
    """

    separable = True

    def refuses(self, geometry: Geometry) -> str | None:
        """Only a kernel of several positions that mixes channels can be separated."""
        if geometry.positions == 1:
            return "its kernel has a single position"
        return "it is depthwise already" if geometry.group_inputs == 1 and geometry.groups > 1 else None

    def full(self, geometry: Geometry) -> Ranks:
        """The smaller side of a slice."""
        return (min(geometry.group_outputs, geometry.positions),)

    def options(self, geometry: Geometry, multiple: int) -> list[Ranks]:
        """Small multipliers below the break-even m < O k^2 / (O + k^2)."""
        outputs, positions = geometry.group_outputs, geometry.positions
        return [
            (m,)
            for m in range(1, min(MOST + 1, self.full(geometry)[0]))
            if m * (outputs + positions) < outputs * positions
        ]

    def unfoldings(self, problem: Problem) -> list[Tensor]:
        """The slices of all input channels, below one another."""
        return [problem.weight.transpose(0, 1).flatten(0, 1)]

    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """Filters (inputs * m, 1, *kernel), those of one channel together, and (outputs, inputs * m, 1...)."""
        filters, mixing = self.separate(problem, ranks[0], rounds)
        ones = [1] * len(problem.kernel)
        return filters.reshape(-1, 1, *problem.kernel), mixing.reshape(*mixing.shape, *ones)

    def separate(self, problem: Problem, multiplier: int, rounds: int) -> tuple[Tensor, Tensor]:
        """Filters (inputs, m, positions) and the mixing (outputs, inputs * m)."""
        outputs, inputs, positions = problem.weight.shape
        slices = problem.weight.transpose(0, 1)
        left, values, right = torch.linalg.svd(slices, full_matrices=False)
        root = values[:, :multiplier].sqrt()
        filters = root[:, :, None] * right[:, :multiplier]
        mixing = (left[:, :, :multiplier] * root[:, None]).transpose(0, 1).reshape(outputs, inputs * multiplier)
        if problem.gram is not None:

            def apply(entries: Tensor, matrix: Tensor) -> Tensor:
                parts = torch.einsum("imk,ikc->imc", entries, matrix.reshape(inputs, positions, -1))
                return parts.reshape(inputs * multiplier, -1)

            def gather(matrix: Tensor) -> Tensor:
                return torch.einsum("imik->imk", matrix.reshape(inputs, multiplier, inputs, positions))

            mixing, _, filters = alternate(problem, filters, apply, gather, rounds=rounds)
        mixing, flat = balanced(mixing, filters.reshape(inputs * multiplier, positions))
        return flat.reshape(inputs, multiplier, positions), mixing

    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """The sum over the filters of each channel."""
        filters, mixing = factors[0].flatten(1), factors[1].flatten(1)
        outputs, multiplier = len(mixing), ranks[0]
        inputs = mixing.shape[1] // multiplier
        shaped = filters.reshape(inputs, multiplier, -1), mixing.reshape(outputs, inputs, multiplier)
        return torch.einsum("oim,imk->oik", shaped[1], shaped[0])

    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """Depthwise, pointwise."""
        inner = geometry.inputs * ranks[0]
        return [
            geometry.layer(geometry.inputs, inner, groups=geometry.inputs, along=True),
            geometry.layer(inner, geometry.outputs, groups=geometry.groups, bias=bias),
        ]


depthwise_first = DepthwiseFirst()
