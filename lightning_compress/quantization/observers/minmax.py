"""All that has ever been seen."""

from torch import Tensor

from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.observation import Observation


def minmax(seen: Observation, grid: Grid) -> tuple[Tensor, Tensor]:
    """From the smallest to the largest value ever seen."""
    return seen.low, seen.high
