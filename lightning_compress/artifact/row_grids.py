"""Rows on grids of their own: what quantization with a scale for each channel leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_compress.artifact.dtypes import Bits

MOST_LEVEL = 255
PROBED_ROWS, PROBED_COLUMNS = 8, 256
TOLERANCE = 1e-3
NEIGHBOURS = (0, 1, -1, 2, -2)
"""The step is known up to a rounding of the largest value; the true one is among the nearest numbers."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RowGrids:
    """A matrix of which each row is whole multiples of a step of its own.

    Attributes:
        steps: float32, shape (rows,).
        levels: int16, shape (rows, columns); ``levels * steps`` in float32 is the matrix, bit for bit.
    """

    steps: Floats
    levels: NDArray[np.int16]


def find_row_grids(bits: Bits) -> RowGrids | None:
    """The grids of the rows of a float32 matrix, if every row has one of at most 256 levels.

    Args:
        bits: of the matrix, uint32, shape (rows, columns).

    >>> matrix = np.float32([[1, 2, -3], [4, 0, 8]]) * np.float32([[0.3], [0.7]])
    >>> find_row_grids(matrix.view(np.uint32)).levels.tolist()
    [[1, 2, -3], [1, 0, 2]]
    """
    matrix = bits.view(np.float32)
    if not len(matrix) or _grids(matrix[:PROBED_ROWS]) is None:
        return None
    grids = _grids(matrix)
    if grids is None or int(grids.levels.max()) - int(grids.levels.min()) > MOST_LEVEL:
        return None
    return grids


def multiply_rows(steps: Floats, levels: NDArray[np.int16], rows: NDArray[np.int64]) -> Floats:
    """The values at ``levels``, shape (n,), of the rows ``rows``."""
    with np.errstate(over="ignore", invalid="ignore"):  # a forged step may be anything
        values: Floats = levels.astype(np.float32) * steps[rows]
    return values


def _grids(matrix: Floats) -> RowGrids | None:
    largest = np.abs(matrix).max(1)
    if not np.isfinite(largest).all():
        return None
    highest = _highest_levels(np.abs(matrix[:, :PROBED_COLUMNS]).astype(np.float64), largest.astype(np.float64))
    if (highest == 0).any():
        return None
    levels = np.zeros(matrix.shape, np.int16)
    steps = np.zeros(len(matrix), np.float32)
    left = np.arange(len(matrix))
    for multiple in (1, 2, 3):  # the columns that were probed may all be even levels
        count = highest[left] * multiple
        guess = np.where(largest[left] > 0, largest[left] / count.astype(np.float32), np.float32(1)).astype(np.float32)
        for away in NEIGHBOURS:
            step = (guess.view(np.int32) + np.int32(away)).view(np.float32)
            found = np.rint(matrix[left] / step[:, None]).clip(-MOST_LEVEL, MOST_LEVEL).astype(np.int16)
            fits = _same(found.astype(np.float32) * step[:, None], matrix[left])
            levels[left[fits]], steps[left[fits]] = found[fits], step[fits]
            left, guess = left[~fits], guess[~fits]
            if not len(left):
                return RowGrids(steps, levels)
    return None


def _highest_levels(magnitude: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.int64]:
    """The smallest number of steps that the largest value can be, so that all others are whole numbers too; 0: none."""
    highest = np.where(largest > 0, 0, 1)
    shares = magnitude / np.where(largest > 0, largest, 1)[:, None]
    left = np.flatnonzero(highest == 0)
    for number in range(1, MOST_LEVEL + 1):
        scaled = shares[left] * number
        whole = np.abs(scaled - np.rint(scaled)).max(1) < TOLERANCE
        highest[left[whole]] = number
        left = left[~whole]
        if not len(left):
            break
    return highest


def _same(one: Floats, other: Floats) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one.view(np.uint32) == other.view(np.uint32)).all(1)
    return same
