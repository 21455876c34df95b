"""What has been seen of a tensor: extremes, their moving averages, and a histogram if an observer asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.grid import Grid
from lightning_compress.registry import resolve

BINS = 1024
MOMENTUM = 0.1
OBSERVERS = "lightning_compress.quantization.observers"


class Observation:
    """Sums over all that has been shown, for each channel (or for the tensor as a whole: one channel).

    Histograms span [-radius, radius], a power of two, the same for all processes; when a larger value comes, the radius
    doubles and pairs of bins become one, so that nothing is lost but resolution.

    Args:
        channels: number of ranges.
        histogram: keep one.

    Attributes:
        low: smallest value seen, shape (channels,).
        high: largest.
        average_low: moving average of the batches' smallest values.
        average_high: of the largest.
        count: batches seen.

    >>> seen = Observation()
    >>> seen.add(torch.tensor([[-1.0, 3.0]]))
    >>> seen.low.item(), seen.high.item()
    (-1.0, 3.0)
    """

    def __init__(self, channels: int = 1, *, histogram: bool = False) -> None:
        zeros = partial(torch.zeros, dtype=torch.float32)  # whatever the default is where they are made
        self.low, self.average_low = zeros(channels), zeros(channels)
        self.high, self.average_high = zeros(channels), zeros(channels)
        self.radius = zeros(channels)
        self.counts = zeros(channels, BINS) if histogram else zeros(0)
        self.count = 0

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Count one batch, of shape (channels, values)."""
        rows = rows.detach().float()
        if rows.shape[1] == 0:
            return
        low, high = torch.aminmax(rows, dim=1)
        if self.low.device != rows.device:
            self.to(rows.device)
        if self.count == 0:
            self.low, self.high, self.average_low, self.average_high = low, high, low.clone(), high.clone()
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.average_low = self.average_low.lerp(low, MOMENTUM)
            self.average_high = self.average_high.lerp(high, MOMENTUM)
        self.count += 1
        if self.counts.numel():
            self._widen(torch.maximum(low.abs(), high.abs()))
            place = ((rows / self.radius[:, None] + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
            self.counts.scatter_add_(1, place, torch.ones_like(rows))

    @property
    def is_finite(self) -> bool:
        """Whether all that was seen was."""
        return bool(torch.isfinite(self.low).all() & torch.isfinite(self.high).all())

    @property
    def histogram(self) -> tuple[Tensor, Tensor]:
        """Counts (channels, bins) and edges (channels, bins + 1)."""
        steps = torch.linspace(-1, 1, BINS + 1, dtype=torch.float32, device=self.counts.device)
        return self.counts, self.radius[:, None] * steps

    def _widen(self, needed: Tensor) -> None:
        """Double the radius of each channel until it covers ``needed``."""
        fresh = self.radius <= 0
        power = torch.exp2(needed.clamp(min=torch.finfo(torch.float32).tiny).log2().ceil())
        self.radius = torch.where(fresh, power, self.radius)
        while bool((narrow := self.radius < needed).any()):
            pairs = self.counts.view(len(self.counts), BINS // 2, 2).sum(-1)
            halved = torch.nn.functional.pad(pairs, (BINS // 4, BINS // 4))
            self.counts = torch.where(narrow[:, None], halved, self.counts)
            self.radius = torch.where(narrow, 2 * self.radius, self.radius)

    @torch.no_grad()
    def all_reduce(self) -> None:
        """Of all processes together: extremes, mean of the averages, sum of what was counted since the last time."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        extremes = torch.cat([-self.low, self.high, self.radius])
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        averages = torch.cat([self.average_low, self.average_high]) / distributed.get_world_size()
        distributed.all_reduce(averages)
        low, self.high, radius = extremes.chunk(3)
        self.low, (self.average_low, self.average_high) = -low, averages.chunk(2)
        if self.counts.numel():
            self._widen(radius)
            distributed.all_reduce(self.counts)
            self.counts /= distributed.get_world_size()

    def keep(self, kept: Tensor) -> None:
        """Of the channels ``kept`` alone."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor) and value.numel():
                setattr(self, name, value[kept.to(value.device)])

    def to(self, device: torch.device) -> None:
        """Move to ``device``."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        vars(self).update(
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        )


Observer: TypeAlias = Callable[[Observation, Grid], tuple[Tensor, Tensor]]
"""From what has been seen, the range (low, high) that a grid shall cover, each of shape (channels,)."""

F = TypeVar("F", bound=Callable[..., Any])


def needs_histogram(observer: F) -> F:
    """Mark an observer that looks at the histogram."""
    observer.needs_histogram = True  # type: ignore[attr-defined]
    return observer


def wants_histogram(observer: Observer) -> bool:
    """Whether the observer looks at the histogram."""
    return bool(getattr(observer, "needs_histogram", False))


def resolve_observer(observer: str | Observer) -> Observer:
    """The function of that name in ``quantization/observers``, or the callable itself."""
    return resolve(observer, OBSERVERS)


def observed_range(observer: Observer, rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The range for ``rows`` (channels, values) alone.

    Raises:
        CompressionError: nothing to observe, or values that are not finite.

    >>> from lightning_compress.quantization.observers.minmax import minmax
    >>> [x.item() for x in observed_range(minmax, torch.tensor([[-1.0, 2.0]]), Grid(8))]
    [-1.0, 2.0]
    """
    if rows.numel() == 0 or not bool(torch.isfinite(rows).all()):
        raise CompressionError("There is nothing to observe, or a value is not finite (NaN or infinite).")
    seen = Observation(len(rows), histogram=wants_histogram(observer))
    seen.add(rows)
    return observer(seen, grid)
