"""Without the outliers."""

from torch import Tensor

from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.observation import Observation, needs_histogram

SHARE = 0.999


@needs_histogram
def percentile(seen: Observation, grid: Grid) -> tuple[Tensor, Tensor]:
    """The range between the 0.05th and the 99.95th percentile (McKinstry et al., 2019, clip at 99.99 and less)."""
    counts, edges = seen.histogram
    share = counts.cumsum(-1) / counts.sum(-1, keepdim=True).clamp(min=1)
    tail = (1 - SHARE) / 2
    first = (share <= tail).sum(-1).clamp(max=counts.shape[-1] - 1)
    last = (share < 1 - tail).sum(-1).clamp(max=counts.shape[-1] - 1)
    low, high = edges.gather(-1, first[..., None])[..., 0], edges.gather(-1, last[..., None] + 1)[..., 0]
    return low.clamp(min=seen.low, max=seen.high), high.clamp(min=seen.low, max=seen.high)
