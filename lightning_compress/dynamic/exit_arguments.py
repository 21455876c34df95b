"""What EarlyExits is asked for, checked at once, before hours of training depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from math import inf
from typing import Any, TypeAlias

from lightning_compress.dynamic.calibration import calibrate_exits, check_target
from lightning_compress.dynamic.inference import CONFIDENCES
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.registry import resolve
from lightning_compress.values import is_number

Weights: TypeAlias = float | Sequence[float] | str | Mapping[str, Sequence[float]] | Callable[[float], Sequence[float]]
"""Of the exits' losses: one for all, one for each, "learned", {"start": ..., "end": ...}, or a function of progress."""


def checked_exits(exits: Sequence[float | str]) -> tuple[float | str, ...]:
    """Names of modules, or rising shares of the multiply-accumulates.

    Raises:
        CompressionError: neither.

    >>> checked_exits([0.1, 0.4])
    (0.1, 0.4)
    """
    if isinstance(exits, str) or is_number(exits):
        raise CompressionError(f"exits={exits!r} is one of them; write exits=({exits!r},).")
    found = tuple(exits) if isinstance(exits, Iterable) else ()
    numbers = [one for one in found if is_number(one)]
    names = [one for one in found if isinstance(one, str) and one]
    rising = all(0 < one < 1 for one in numbers) and sorted({*numbers}) == numbers
    if not found or len(found) not in (len(numbers), len(names)) or not rising or len({*names}) != len(names):
        raise CompressionError(
            f"exits={found!r}: names of modules, or rising shares of the multiply-accumulates in (0, 1)."
        )
    return found


def check_weights(weights: Any, exits: int) -> None:
    """Refuse anything that is no :data:`Weights` for so many exits, negative numbers included.

    >>> check_weights("fixed", 3)
    Traceback (most recent call last):
    lightning_compress.errors.CompressionError: weights='fixed': numbers, "learned", {"start": ..., "end": ...} or ...
    """
    if callable(weights) or weights == "learned":
        return
    lists = list(weights.values()) if isinstance(weights, Mapping) else [weights]
    known = not isinstance(weights, Mapping) or set(weights) == {"start", "end"}
    if not known or not all(
        is_number(one) or (isinstance(one, Sequence) and not isinstance(one, str)) for one in lists
    ):
        raise CompressionError(
            f'weights={weights!r}: numbers, "learned", {{"start": ..., "end": ...}} or a function of the progress.'
        )
    for one in lists:
        numbers = [one] if is_number(one) else list(one)
        if not all(is_number(number) and 0 <= number < inf for number in numbers):
            raise CompressionError(f"weights={weights!r}: finite numbers, none of them negative.")
        if not is_number(one) and len(numbers) != exits:
            raise CompressionError(f"{len(numbers)} weights for {exits} exits: one for each, or one number for all.")


def weights_at(weights: Weights, progress: float, exits: int) -> list[float]:
    """The weight of each exit's loss at a moment of the fit.

    Raises:
        CompressionError: not as many as there are exits.

    >>> weights_at({"start": [0.0, 0.0], "end": [1.0, 0.5]}, 0.5, 2)
    [0.5, 0.25]
    """
    if isinstance(weights, Mapping):
        ends = [weights_at(weights[key], progress, exits) for key in ("start", "end")]
        return [a + progress * (b - a) for a, b in zip(*ends, strict=True)]
    found = weights(progress) if callable(weights) else weights
    numbers = [float(found)] * exits if isinstance(found, int | float) else [float(one) for one in found]
    if len(numbers) != exits:
        raise CompressionError(f"{len(numbers)} weights for {exits} exits: give one for each, or one number for all.")
    return numbers


def check_numbers(**numbers: tuple[Any, float, float]) -> None:
    """Refuse arguments outside of their ranges.

    >>> check_numbers(temperature=("2", 0.0, 1.0))
    Traceback (most recent call last):
    lightning_compress.errors.CompressionError: temperature='2' is no number in [0, 1].
    """
    for what, (value, low, high) in numbers.items():
        if not is_number(value) or not low <= value <= high:
            raise CompressionError(f"{what}={value!r} is no number in [{low:g}, {high:g}].")


def checked_calibration(arguments: Any) -> dict[str, Any] | None:
    """Arguments of :func:`~lightning_compress.dynamic.calibrate_exits`, as a dictionary of their own.

    Raises:
        CompressionError: no such arguments, or not one target.

    >>> checked_calibration({"dorp": 0.01})
    Traceback (most recent call last):
    lightning_compress.errors.CompressionError: calibrate: 'dorp' is no argument of calibrate_exits. Did you mean ...
    """
    if arguments is None:
        return None
    if not isinstance(arguments, Mapping):
        raise CompressionError(f'calibrate={arguments!r}: a mapping, such as {{"drop": 0.01}}.')
    known = list(signature(calibrate_exits).parameters)[2:]
    for name in arguments:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise CompressionError(f"calibrate: {name!r} is no argument of calibrate_exits. {hint}")
    check_target(**{name: value for name, value in arguments.items() if name not in ("tuning", "confidence")})
    if arguments.get("confidence") is not None:
        resolve(arguments["confidence"], CONFIDENCES)
    return dict(arguments)
