"""Depthwise separable with several filters a channel, as that many plain depthwise convolutions side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.architecture.factorization import Ranks
from lightning_compress.architecture.factorizations.depthwise_first import DepthwiseFirst
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem
from lightning_compress.plan.specs import ModuleSpec


class DepthwiseBranches(DepthwiseFirst):
    """The same function as ``depthwise_first``; much faster on a CPU, whose kernels like one filter a channel."""

    def refuses(self, geometry: Geometry) -> str | None:
        """Channels side by side belong to no group."""
        return "it has groups" if geometry.groups > 1 else super().refuses(geometry)

    def options(self, geometry: Geometry, multiple: int) -> list[Ranks]:
        """From two branches on."""
        return [ranks for ranks in super().options(geometry, multiple) if ranks[0] > 1]

    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """The filters of each branch (inputs, 1, *kernel), and (outputs, m * inputs, 1...)."""
        filters, mixing = self.separate(problem, ranks[0], rounds)
        shaped = mixing.reshape(len(mixing), -1, ranks[0]).transpose(1, 2).flatten(1)
        branches = [branch.reshape(-1, 1, *problem.kernel) for branch in filters.unbind(1)]
        return *branches, shaped.reshape(*shaped.shape, *[1] * len(problem.kernel))

    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """The sum over the branches."""
        *branches, mixing = factors
        filters = torch.stack([branch.flatten(1) for branch in branches])
        return torch.einsum("omi,mik->oik", mixing.reshape(len(mixing), ranks[0], -1), filters)

    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """Branches, pointwise."""
        branch = geometry.layer(geometry.inputs, geometry.inputs, groups=geometry.inputs, along=True)
        branches = [[str(place), branch] for place in range(ranks[0])]
        return [
            {"type": "Concatenation", "children": branches},
            geometry.layer(ranks[0] * geometry.inputs, geometry.outputs, bias=bias),
        ]


depthwise_branches = DepthwiseBranches()
