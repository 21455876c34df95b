"""Values that change over the fit: for the temperature and for alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from numbers import Real
from typing import Any, TypeAlias

from lightning_compress.distillation.fields import built
from lightning_compress.errors import CompressionError

Value: TypeAlias = float | Callable[[float], float]
"""A number, or a function of the progress of the fit in [0, 1]."""


@dataclass(frozen=True)
class Ramp:
    """From ``start`` to ``end`` between two moments of the fit, constant before and after.

    Attributes:
        start: the first value.
        end: the last value.
        begin: when it begins to change, as a share of the fit.
        until: when it has arrived.
        shape: "linear" or "cosine".

    Raises:
        CompressionError: moments out of order, or an unknown shape.

    >>> Ramp(8.0, 2.0)(0.5)
    5.0
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.until <= 1:
            raise CompressionError(f"Ramp(begin={self.begin}, until={self.until}): two moments in [0, 1], in order.")
        if self.shape not in ("linear", "cosine"):
            raise CompressionError(f'Ramp(shape={self.shape!r}): "linear" or "cosine".')

    def __call__(self, progress: float) -> float:
        """The value at a moment of the fit."""
        share = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            share = (1 - cos(pi * share)) / 2
        return self.start + share * (self.end - self.start)


def as_value(value: Value | Mapping[str, Any], name: str, *, low: float, high: float) -> Value:
    """A number in range, a function, or a ramp given by its fields.

    Raises:
        CompressionError: a number, or an end of a ramp, outside of [low, high]; or what is neither.

    >>> as_value({"start": 8.0, "end": 2.0}, "temperature", low=0.01, high=1e6)
    Ramp(start=8.0, end=2.0, begin=0.0, until=1.0, shape='linear')
    """
    value = built(Ramp, value) if isinstance(value, Mapping) else value
    numbers = (value.start, value.end) if isinstance(value, Ramp) else () if callable(value) else (value,)
    for number in numbers:
        in_range(number, name, low=low, high=high)
    return value


def in_range(number: Any, name: str, *, low: float, high: float) -> float:
    """The number itself.

    Raises:
        CompressionError: it is none, or outside of [low, high].

    >>> in_range(0.5, "alpha", low=0.0, high=1.0)
    0.5
    """
    if not isinstance(number, Real):
        raise CompressionError(f"{name}={number!r} is no number.")
    value = float(number)
    if not low <= value <= high:
        raise CompressionError(f"{name}={value:g} is outside of [{low:g}, {high:g}].")
    return value


def at(value: Value, progress: float) -> float:
    """The value at a moment of the fit.

    Raises:
        CompressionError: a function that returns no number.

    >>> at(4.0, 0.3)
    4.0
    """
    found = value(progress) if callable(value) else value
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise CompressionError(
            f"A function of the progress gave {found!r} at {progress:g}, which is no number."
        ) from error
