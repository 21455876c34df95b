"""What a network costs, counted and timed."""

from lightning_compress.measure.cost import Cost, measure
from lightning_compress.measure.latency import LatencyComparison, compare_latency

__all__ = ["Cost", "LatencyComparison", "compare_latency", "measure"]
