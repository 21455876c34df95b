"""As many as stand out of the noise, by the analytic solution of variational Bayesian matrix factorisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

LEAST_THRESHOLD = 2.5129
"""Of the normalised eigenvalues, in units of the square root of the sides' ratio."""


def vbmf(values: Tensor, shape: tuple[int, int]) -> int:
    """The rank that empirical variational Bayes gives to a low-rank matrix under Gaussian noise of unknown variance.

    Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
    Factorization", JMLR 14, 2013, used for ranks by Kim et al., ICLR 2016. No parameter to choose. A matrix that is all
    noise keeps a rank of one.

    Args:
        values: all singular values, falling.
        shape: of the matrix.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> signal = torch.randn(60, 3, generator=generator) @ torch.randn(3, 100, generator=generator)
    >>> noisy = signal + 0.3 * torch.randn(60, 100, generator=generator)
    >>> vbmf(torch.linalg.svdvals(noisy), (60, 100))
    3
    """
    short, long = min(shape), max(shape)
    squares = values.detach().double().cpu().numpy()[:short] ** 2
    ratio = short / long
    threshold = (1 + LEAST_THRESHOLD * np.sqrt(ratio)) * (1 + ratio / (LEAST_THRESHOLD * np.sqrt(ratio)))
    if squares.sum() <= 0:
        return 1
    variance = _noise(squares, long, ratio, threshold)
    return max(1, int((squares > long * variance * threshold).sum()))


def _noise(squares: NDArray[np.float64], long: int, ratio: float, threshold: float) -> float:
    """The noise's variance with the smallest free energy."""
    short = len(squares)
    most = min(int(np.ceil(short / (1 + ratio))) - 1, short - 1)
    high = squares.sum() / (short * long)
    tail = squares[most:]
    low = max(tail[0] / (long * threshold), tail.mean() / long) if len(tail) else high / threshold
    low = max(low, 1e-12 * high)
    if low >= high:
        return float(high)

    def free_energy(logarithm: float) -> float:
        scaled = squares / (long * np.exp(logarithm))
        signal, noise = scaled[scaled > threshold], scaled[scaled <= threshold]
        tau = _tau(signal, ratio)
        terms = (noise - np.log(np.maximum(noise, 1e-300))).sum() + (signal - tau).sum()
        terms += (np.log((tau + 1) / signal) + ratio * np.log(tau / ratio + 1)).sum()
        return float(terms)

    grid = np.linspace(np.log(low), np.log(high), 64)
    best = int(np.argmin([free_energy(point) for point in grid]))
    around = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(free_energy, bounds=around, method="bounded")
    return float(np.exp(found.x if found.fun <= free_energy(grid[best]) else grid[best]))


def _tau(scaled: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    inner = scaled - (1 + ratio)
    tau: NDArray[np.float64] = (inner + np.sqrt(np.maximum(inner**2 - 4 * ratio, 0))) / 2
    return tau
