"""What has been seen of late."""

from torch import Tensor

from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.observation import Observation


def moving_average(seen: Observation, grid: Grid) -> tuple[Tensor, Tensor]:
    """Moving averages of each batch's smallest and largest value (Jacob et al., CVPR 2018)."""
    return seen.average_low, seen.average_high
