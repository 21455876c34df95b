"""As many as hold most of the squares."""

from __future__ import annotations

from torch import Tensor


def energy(values: Tensor, shape: tuple[int, int], share: float = 0.9) -> int:
    """The smallest rank that keeps ``share`` of the matrix's squared Frobenius norm.

    Args:
        values: singular values, falling.
        shape: of the matrix; not used.
        share: in (0, 1].

    >>> import torch
    >>> energy(torch.tensor([3.0, 1.0, 0.5]), (3, 5))
    2
    """
    squares = values.double().square().cumsum(0)
    if float(squares[-1]) <= 0:
        return 1
    return int((squares < share * (1 - 1e-12) * squares[-1]).sum()) + 1
