"""What is asked for: bits, grids, observers and scales, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.quantization.bit_budget import BitBudget
from lightning_compress.quantization.grid import check_bits
from lightning_compress.quantization.observation import Observer, resolve_observer
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.values import is_number, is_whole

SCALES = ("observed", "lsq", "lsq+", "pact", "dorefa")
GRANULARITIES = ("tensor", "channel", "group")

Bits: TypeAlias = int | Mapping[float, int] | Mapping[str, int] | None
"""Bits; None leaves that side alone; {time: bits} changes them in mid-fit (an int counts epochs, a float is a share of
the fit); {pattern: bits} gives each layer its own, and leaves alone those that no pattern matches.
"""


@dataclass(frozen=True)
class Settings:
    """How a network is quantized; see :class:`~lightning_compress.quantization.QuantizationAwareTraining`."""

    weight_bits: Bits | BitBudget = 8
    activation_bits: Bits = 8
    observer: str | Observer = "moving_average"
    weight_observer: str | Observer = "minmax"
    scale: str = "observed"
    granularity: str = "channel"
    group_size: int | None = None
    symmetric: Sequence[bool] = (True, False)
    narrow: bool = True
    edge_bits: int | None = 8
    add_bits: int | None = None
    targets: Sequence[str] | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.weight_bits, BitBudget):
            check_schedule(self.weight_bits, "weight_bits")
        check_schedule(self.activation_bits, "activation_bits")
        for name in ("edge_bits", "add_bits"):
            if getattr(self, name) is not None:
                check_bits(getattr(self, name), name)
        if self.weight_bits is None and self.activation_bits is None:
            raise CompressionError("weight_bits=None and activation_bits=None leave nothing to quantize. Give one.")
        _among(self.scale, SCALES, "scale")
        _among(self.granularity, GRANULARITIES, "granularity")
        if (self.granularity == "group") != (self.group_size is not None):
            raise CompressionError(
                f"granularity={self.granularity!r} and group_size={self.group_size}: a group size, such as 32, goes "
                "with granularity='group' and with nothing else."
            )
        if self.group_size is not None and not (is_whole(self.group_size) and self.group_size >= 1):
            raise CompressionError(f"group_size={self.group_size!r} is not a whole number of at least 1.")
        pair = self.symmetric
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(one, bool) for one in pair):
            raise CompressionError(f"symmetric={pair!r}: give one for weights and one for activations: (True, False).")
        object.__setattr__(self, "symmetric", tuple(pair))
        if not isinstance(self.narrow, bool):
            raise CompressionError(f"narrow={self.narrow!r} is neither True nor False.")
        if not self.symmetric[0] and self.scale != "observed":
            raise CompressionError(f"scale={self.scale!r} needs symmetric weights: symmetric=(True, ...).")
        resolve_observer(self.observer)
        resolve_observer(self.weight_observer)
        refuse_text(self.targets, "targets")
        refuse_text(self.exclude, "exclude")
        object.__setattr__(self, "exclude", tuple(self.exclude or ()))

    @property
    def kind(self) -> dict[str, Any]:
        """What scales and zero points of one fit cannot be taken over without into another."""
        names = ("scale", "granularity", "group_size", "narrow")
        return {**{name: getattr(self, name) for name in names}, "symmetric": list(self.symmetric)}


def _among(value: str, known: Sequence[str], name: str) -> None:
    if value not in known:
        raise CompressionError(f"{name}={value!r} is unknown. {did_you_mean(str(value), known)}")


def check_schedule(bits: Bits, name: str) -> None:
    """Refuse bits out of range, and times that are none.

    Raises:
        CompressionError: with the way out.
    """
    if not isinstance(bits, Mapping):
        if bits is not None:
            check_bits(bits, name)
        return
    if not bits:
        raise CompressionError(f"{name}={{}} is empty. Give bits, such as 8, or None.")
    for key, value in bits.items():
        check_bits(value, f"{name}[{key!r}]")
    if all(isinstance(key, str) for key in bits):
        return
    if not all(_is_time(key) for key in bits) or 0 not in bits:
        raise CompressionError(
            f"{name}={dict(bits)!r}: give {{time: bits}} with a time 0, such as {{0: 8, 0.5: 4}}, or {{layer: bits}}."
        )
    if any(isinstance(key, float) and key > 1 for key in bits):
        raise CompressionError(f"{name}={dict(bits)!r}: a float is a share of the fit, up to 1; an int counts epochs.")


def _is_time(key: object) -> bool:
    return is_number(key) and bool(key >= 0)


def bits_of(bits: Bits | BitBudget, layer: str, time: float, horizon: float) -> int | None:
    """The bits of ``layer`` at ``time`` (epochs) of a fit of ``horizon`` epochs; None leaves it alone. Of a budget that
    is not shared out yet, its most.

    >>> bits_of({0: 8, 0.5: 4}, "fc", 5.0, 10.0), bits_of({"fc*": 3}, "fc1", 0.0, 1.0), bits_of({"fc*": 3}, "c", 0, 1)
    (4, 3, None)
    """
    if isinstance(bits, BitBudget):
        return bits.most
    if not isinstance(bits, Mapping):
        return bits
    named = [value for key, value in bits.items() if isinstance(key, str) and fnmatchcase(layer, key)]
    if any(isinstance(key, str) for key in bits):
        return bits[layer] if layer in bits else named[0] if named else None  # type: ignore[index]
    times = {in_epochs(key, horizon): value for key, value in bits.items()}  # type: ignore[arg-type]
    return times[max(moment for moment in times if moment <= time + 1e-9)]


def in_epochs(value: float, horizon: float) -> float:
    """A time in epochs: a float is a share of ``horizon``, an int counts epochs."""
    return value * horizon if isinstance(value, float) else float(value)
