"""The one problem behind all factorisations: the product of two factors that comes closest to what a layer computes.

With p the vectors that a layer's weight is multiplied with, y its outputs, C = E[p pT] and G = E[y pT] (both about the
means), a factored weight V loses E|y - V p|^2 = E|y|^2 - 2 tr(V GT) + tr(V C VT). All factorisations here are V = M S:
S is made of the first layers' entries in a fixed pattern, M is the last layer's weight, so that each of them has a
closed form once the other is known. Without data C is the identity, G the weight: the loss is the Frobenius norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """What one group of a layer is to compute, in float64.

    Attributes:
        weight: of the layer, shape (outputs, inputs, positions of the kernel).
        gram: C, shape (n, n), n = inputs * positions; None stands for the identity.
        cross: G, shape (outputs, n).
        energy: E|y|^2, a number.
        kernel: its size along each dimension.
    """

    weight: Tensor
    gram: Tensor | None
    cross: Tensor
    energy: float
    kernel: tuple[int, ...]

    @classmethod
    def of_weight(cls, weight: Tensor) -> Problem:
        """To come close to a weight (outputs, inputs, *kernel) in the Frobenius norm."""
        wide = weight.detach().double()
        cross = wide.flatten(1)
        kernel = tuple(wide.shape[2:])
        return cls(wide.reshape(*wide.shape[:2], -1), None, cross, float(cross.square().sum()), kernel)

    @property
    def moments(self) -> Tensor:
        """C, written out."""
        if self.gram is None:
            return torch.eye(self.cross.shape[1], dtype=self.cross.dtype, device=self.cross.device)
        return self.gram

    def loss(self, weight: Tensor) -> float:
        """The share of E|y|^2 that a weight (outputs, n) loses; 0 is exact."""
        spread = weight if self.gram is None else weight @ self.gram
        lost = self.energy - 2 * float((weight * self.cross).sum()) + float((weight * spread).sum())
        return max(0.0, lost) / max(self.energy, 1e-300)

    def through(self, apply: Map) -> tuple[Tensor, Tensor]:
        """(S C ST, G ST) for S given as what it makes of a matrix (n, columns)."""
        half = apply(self.moments)
        return apply(half.T), apply(self.cross.T).T


def solve(gram: Tensor, cross: Tensor) -> Tensor:
    """M with M gram = cross; gram symmetric and not negative, of any rank.

    >>> solve(torch.diag(torch.tensor([2.0, 4.0])).double(), torch.tensor([[2.0, 2.0]]).double())
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    scale = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 1e-12 * scale.max().clamp_min(1e-300), scale, torch.ones_like(scale)).reciprocal()
    scaled = gram * scale[:, None] * scale
    jitter = 1e-12 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(scaled + jitter)
    if int(failed) == 0:
        solution: Tensor = torch.cholesky_solve((cross * scale).T, factor).T * scale
        if bool(solution.isfinite().all()):
            return solution
    inverse = torch.linalg.pinv(scaled, hermitian=True)
    least: Tensor = (cross * scale) @ inverse * scale
    return least


def reduced_rank(gram: Tensor | None, cross: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """P (outputs, rank) and Q (rank, n) whose product is the best weight of that rank: reduced-rank regression.

    Izenman, "Reduced-rank regression for the multivariate linear model", 1975; without data the truncated SVD.
    """
    if gram is None:
        left, values, right = torch.linalg.svd(cross, full_matrices=False)
        root = values[:rank].sqrt()
        return left[:, :rank] * root, root[:, None] * right[:rank]
    best = solve(gram, cross)
    vectors = torch.linalg.eigh(best @ cross.T)[1].flip(1)[:, :rank]
    return balanced(vectors, vectors.T @ best)


def explained(problem: Problem) -> Tensor:
    """What each further rank adds to E|y|^2, falling; their sum is all that a weight of full rank explains."""
    if problem.gram is None:
        values: Tensor = torch.linalg.svdvals(problem.cross)
        return values.square()
    best = solve(problem.gram, problem.cross)
    found: Tensor = torch.linalg.eigvalsh(best @ problem.cross.T).flip(0)
    return found.clamp_min(0)


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product of (outputs, units) and (units, ...) with both factors of each unit equally long."""
    ends = left.norm(dim=0), right.flatten(1).norm(dim=1)
    ratio = (ends[1] / ends[0]).sqrt()
    ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, torch.ones_like(ratio))
    return left * ratio, right / ratio.view(-1, *[1] * (right.dim() - 1))


def conjugate_gradient(operator: Map, goal: Tensor, start: Tensor, steps: int) -> Tensor:
    """A few steps towards ``operator(x) = goal`` from ``start``; the operator is symmetric and not negative.

    Each step lowers the quadratic loss, so a few are an improvement, too.
    """
    x, residual = start, goal - operator(start)
    direction, size = residual, residual.square().sum()
    floor = 1e-24 * goal.square().sum()
    for _ in range(steps):
        if size <= floor:
            break
        spread = operator(direction)
        curvature = (direction * spread).sum()
        if curvature <= 0:
            break
        step = size / curvature
        x, residual = x + step * direction, residual - step * spread
        new = residual.square().sum()
        direction, size = residual + (new / size) * direction, new
    return x


def alternate(
    problem: Problem,
    start: Tensor,
    apply: Callable[[Tensor, Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
    *,
    rank: int | None = None,
    rounds: int = 10,
    steps: int = 12,
) -> tuple[Tensor, Tensor, Tensor]:
    """M and S in turn, each the best for the other.

    Args:
        problem: to solve.
        start: the entries of S.
        apply: ``f(entries, matrix)``: S times a matrix (n, columns).
        gather: the entries' part of a matrix shaped like S: the adjoint of writing them into it.
        rank: of M; None does not limit it.
        rounds: of both; 0 keeps S as it is.
        steps: of conjugate gradients in each round.

    Returns:
        P (outputs, rank), Q (rank, rows of S) with M = P Q, and the entries; without a rank M, an empty Q.
    """
    entries = start
    moments = problem.moments

    def outer() -> tuple[Tensor, Tensor, Tensor]:
        gram, cross = problem.through(lambda matrix: apply(entries, matrix))
        if rank is None:
            whole = solve(gram, cross)
            return whole, cross.new_empty(0), whole
        left, right = reduced_rank(gram, cross, rank)
        return left, right, left @ right

    for _ in range(rounds):
        whole = outer()[2]
        spread = whole.T @ whole
        entries = conjugate_gradient(
            lambda x, spread=spread: gather(spread @ apply(x, moments)),  # type: ignore[misc]
            gather(whole.T @ problem.cross),
            entries,
            steps,
        )
        size = entries.square().mean().sqrt()
        entries = entries / size if size > 0 else entries
    left, right, _ = outer()
    return left, right, entries
