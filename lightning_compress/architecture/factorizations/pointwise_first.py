"""Depthwise separable in the other order: channels mixed by a 1x1 layer, then every output filtered by itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from lightning_compress.architecture.factorization import Factorization, Ranks
from lightning_compress.architecture.factorizations.depthwise_first import MOST
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.least_squares import Problem, solve
from lightning_compress.plan.specs import ModuleSpec


class PointwiseFirst(Factorization):
    """k*k*I*O parameters become m*(k*k*O + I*O): a blueprint kernel for each output, scaled for each input.

    Haase, Amthor, "Rethinking Depthwise Separable Convolutions", CVPR 2020. The loss falls apart into one for each
    output, whose slice W[o] (inputs, positions) has its truncated SVD without data; with data each output has
    alternating least squares of its own, which begin there.
    """

    separable = True

    def refuses(self, geometry: Geometry) -> str | None:
        """Only a kernel of several positions that mixes channels can be separated."""
        if geometry.positions == 1:
            return "its kernel has a single position"
        return "it reads a single channel" if geometry.group_inputs == 1 else None

    def full(self, geometry: Geometry) -> Ranks:
        """The smaller side of a slice."""
        return (min(geometry.group_inputs, geometry.positions),)

    def options(self, geometry: Geometry, multiple: int) -> list[Ranks]:
        """Small multipliers below the break-even."""
        inputs, positions = geometry.group_inputs, geometry.positions
        return [
            (m,)
            for m in range(1, min(MOST + 1, self.full(geometry)[0]))
            if m * (inputs + positions) < inputs * positions
        ]

    def unfoldings(self, problem: Problem) -> list[Tensor]:
        """The slices of all outputs, below one another."""
        return [problem.weight.flatten(0, 1)]

    def fit(self, problem: Problem, ranks: Ranks, rounds: int) -> tuple[Tensor, ...]:
        """The mixing (outputs * m, inputs, 1...), that of one output together, and kernels (outputs, m, *kernel)."""
        outputs, inputs, _ = problem.weight.shape
        (multiplier,) = ranks
        left, values, right = torch.linalg.svd(problem.weight, full_matrices=False)
        root = values[:, :multiplier].sqrt()
        mixing = (left[:, :, :multiplier] * root[:, None]).transpose(1, 2)
        kernels = root[:, :, None] * right[:, :multiplier]
        for _ in range(ceil(rounds / 2) if problem.gram is not None else 0):  # each is exact here
            kernels = _filters(problem, mixing)
            mixing = _mixing(problem, kernels)
        ends = mixing.norm(dim=2), kernels.norm(dim=2)
        ratio = (ends[1] / ends[0]).sqrt()
        ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, torch.ones_like(ratio)).unsqueeze(-1)
        mixing, kernels = mixing * ratio, kernels / ratio
        ones = [1] * len(problem.kernel)
        return (
            mixing.reshape(outputs * multiplier, inputs, *ones),
            kernels.reshape(outputs, multiplier, *problem.kernel),
        )

    def product(self, factors: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """The sum over the kernels of each output."""
        kernels = factors[1].flatten(2)
        mixing = factors[0].reshape(len(kernels), ranks[0], -1)
        return torch.einsum("omi,omk->oik", mixing, kernels)

    def layers(self, geometry: Geometry, ranks: Ranks, *, bias: bool) -> list[ModuleSpec]:
        """Pointwise, depthwise."""
        inner = geometry.outputs * ranks[0]
        return [
            geometry.layer(geometry.inputs, inner, groups=geometry.groups),
            geometry.layer(inner, geometry.outputs, groups=geometry.outputs, along=True, bias=bias),
        ]


def _filters(problem: Problem, mixing: Tensor) -> Tensor:
    """The best kernels (outputs, m, positions) for the mixing: one small system for each output."""
    outputs, inputs, positions = problem.weight.shape
    multiplier = mixing.shape[1]
    moments = problem.moments.reshape(inputs, positions, inputs, positions)
    half = torch.einsum("omi,ikjl->omkjl", mixing, moments)
    gram = torch.einsum("omkjl,onj->omknl", half, mixing).reshape(outputs, multiplier * positions, -1)
    goal = torch.einsum("omi,oik->omk", mixing, problem.cross.reshape(outputs, inputs, positions)).flatten(1)
    found = [solve(one, other[None])[0] for one, other in zip(gram, goal, strict=True)]
    return torch.stack(found).reshape(outputs, multiplier, positions)


def _mixing(problem: Problem, kernels: Tensor) -> Tensor:
    """The best mixing (outputs, m, inputs) for the kernels."""
    outputs, inputs, positions = problem.weight.shape
    moments = problem.moments.reshape(inputs, positions, inputs, positions)
    cross = problem.cross.reshape(outputs, inputs, positions)
    found = []
    for kernel, goal in zip(kernels, cross, strict=True):
        half = torch.einsum("mk,ikjl->mijl", kernel, moments)
        gram = torch.einsum("mijl,nl->minj", half, kernel).reshape(len(kernel) * inputs, -1)
        right = torch.einsum("mk,ik->mi", kernel, goal).reshape(1, -1)
        found.append(solve(gram, right).reshape(len(kernel), inputs))
    return torch.stack(found)


pointwise_first = PointwiseFirst()
