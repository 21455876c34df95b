"""Range coding with asymmetric numeral systems: fractions of a bit a symbol, where a Huffman code pays whole ones.

All that has been coded is one large number, the state. Coding a symbol of frequency f (of 2**14) makes the state
2**14 / f times larger, which is what the symbol is worth; decoding takes symbols off in the opposite order. What grows
beyond 32 bits leaves in words of 16. Long streams are dealt out to many states that advance side by side in numpy.

The frequencies are stored as rounded logarithms, or, for the gaps in a random mask, as the one parameter of a geometric
distribution. All arithmetic is in whole numbers, so that every machine finds the same ones.

Duda, "Asymmetric numeral systems", 2013; the interleaving is Giesen's, "Interleaved entropy coders", 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.artifact.fields import Data
from lightning_compress.artifact.format_error import FormatError

PRECISION = 14
TOTAL = 1 << PRECISION
LOWEST = 1 << 16
"""Where each of many states begins, and what it is at least between two symbols. A single one begins at 1, and may be
smaller as long as no word has left it: what is not in the words is in the state, and nothing is wasted. (At 1, it stays
1 however many first symbols are taken off: their number must be known, and it is.)
"""

RESOLUTIONS = (1, 2, 4, 8)
"""Steps of the stored logarithms in one bit."""

GEOMETRIC = 4
LONGEST = 255
"""The symbol of a geometric stream that stands for "255, and more follows"."""

WORDS_PER_STATE = 256
LEAST_STATES, MOST_STATES = 5, 12
"""Logarithms of the number of states, where there are many."""

ONE_BY_ONE = 2**15
"""Shorter streams have one state."""

_ONE = 1 << 30
RAREST = _ONE >> (PRECISION + 6)
"""Of a geometric distribution: what is rarer than a 64th of the lowest frequency is not expected at all."""

_ROOTS = tuple(round(_ONE * 2 ** (-step / 16)) for step in range(16))
_ABSENT = -1

Symbols = NDArray[np.uint8]
Frequencies = NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """How often each symbol is expected.

    Attributes:
        head: what the first byte of a stream says of it.
        table: its parameters.
        frequencies: of TOTAL, shape (symbols,); 0 for what does not occur.
    """

    head: int
    table: bytes
    frequencies: Frequencies

    def bits(self, counts: NDArray[np.int64]) -> float:
        """What symbols that occur ``counts`` times take, the table included."""
        used = np.flatnonzero(counts)
        frequencies = self.frequencies[used]
        if not frequencies.all():
            return float("inf")
        return float((counts[used] * (PRECISION - np.log2(frequencies))).sum()) + 8 * len(self.table)


def best_model(counts: NDArray[np.int64]) -> Model:
    """The model with which symbols that occur ``counts`` times, shape (256,), are smallest.

    >>> model = best_model(np.bincount([3] * 300 + [7] * 100, minlength=256))
    >>> model.frequencies[[3, 7]].tolist()
    [12105, 4279]
    """
    models = [_explicit(_logarithms(counts, step), place) for place, step in enumerate(RESOLUTIONS)]
    gaps = int((counts * np.arange(256)).sum())
    stops = int(counts.sum() - counts[LONGEST])
    if stops and gaps:
        models.append(_geometric(min(round(16 * np.log2((stops + gaps) / stops)), 255)))
    return min(models, key=lambda model: model.bits(counts))


def rans_bits(counts: NDArray[np.int64]) -> float:
    """About the size in bits of a stream of symbols that occur ``counts`` times, shape (256,).

    >>> rans_bits(np.bincount([0] * 90 + [1] * 10, minlength=256)) < 100
    True
    """
    size = best_model(counts).bits(counts)
    logarithm = _states(int(counts.sum()), size)
    return size + 8 + (24 << logarithm if logarithm else 8)


def rans_encode(symbols: Symbols) -> bytes:
    """One byte that says what follows, the table, the states, the words.

    Args:
        symbols: shape (n,), n >= 1.

    >>> text = np.frombuffer(b"abracadabra", np.uint8)
    >>> rans_decode(rans_encode(text), 11).tobytes()
    b'abracadabra'
    """
    counts = np.bincount(symbols, minlength=256)
    model = best_model(counts)
    logarithm = _states(len(symbols), model.bits(counts))
    if logarithm:
        many, words = _encode_many(symbols, model.frequencies, 1 << logarithm)
        form, states = logarithm - 1, many.astype("<u4").tobytes()
    else:
        state, words = _encode_one(symbols, model.frequencies)
        form = (state.bit_length() - 1) // 8
        states = state.to_bytes(form + 1, "little")
    return bytes([model.head | form << 3]) + model.table + states + words.astype("<u2").tobytes()


def rans_decode(data: Data, count: int) -> Symbols:
    """``count`` symbols.

    Raises:
        FormatError: an unknown model, too few or too many words, or states that do not end where they began.
    """
    frequencies, start = read_model(data)
    form = data[0] >> 3
    if form >= MOST_STATES:
        raise FormatError(f"A range-coded stream has an unknown number of states ({form}).")
    stop = start + (form + 1 if form < 4 else 8 << form)
    if len(data) < stop or (len(data) - stop) % 2:
        raise FormatError("A range-coded stream is cut off.")
    words = np.frombuffer(data[stop:], "<u2").astype(np.uint64)
    slots: NDArray[Any]
    if form < 4:
        slots = _decode_one(int.from_bytes(data[start:stop], "little"), words, frequencies, count)
    else:
        slots = _decode_many(np.frombuffer(data[start:stop], "<u4").astype(np.uint64), words, frequencies, count)
    symbols: Symbols = np.repeat(np.arange(len(frequencies), dtype=np.uint8), frequencies)[slots]
    return symbols


def _states(count: int, bits: float) -> int:
    """Logarithm of the number of states: each wastes some 24 bits, and makes decoding faster."""
    if count < ONE_BY_ONE:
        return 0
    return int(np.clip(np.log2(max(bits / 16 / WORDS_PER_STATE, 1)) // 1, LEAST_STATES, MOST_STATES))


# -- models -----------------------------------------------------------------------------------------------------------


def _logarithms(counts: NDArray[np.int64], resolution: int) -> list[int]:
    """How many steps each symbol's share lies below 1; ``_ABSENT`` where it does not occur."""
    size = int(np.flatnonzero(counts)[-1]) + 1
    share = counts[:size] / counts.sum()
    with np.errstate(divide="ignore"):
        steps = np.rint(np.minimum(-resolution * np.log2(share), resolution * PRECISION))
    return [int(step) if count else _ABSENT for step, count in zip(steps, counts[:size], strict=True)]


def _explicit(logarithms: list[int], place: int) -> Model:
    resolution = RESOLUTIONS[place]
    return Model(place, _write_logarithms(logarithms), _from_logarithms(logarithms, resolution))


def _from_logarithms(logarithms: list[int], resolution: int) -> Frequencies:
    """Frequencies that are as those logarithms say, and add up to TOTAL."""
    weights = [
        0 if steps == _ABSENT else _ROOTS[steps % resolution * (16 // resolution)] >> (steps // resolution)
        for steps in logarithms
    ]
    return _normalized(weights)


def _geometric(parameter: int) -> Model:
    """Each unit of a gap is the last one with the same probability, 2 ** (-parameter / 16); the rarest never come."""
    stop = _ROOTS[parameter % 16] >> (parameter // 16)
    weights, rest = [], _ONE
    for _ in range(LONGEST):
        weights.append(rest * stop // _ONE)
        rest -= weights[-1]
    return Model(GEOMETRIC, bytes([parameter]), _normalized([w if w >= RAREST else 0 for w in [*weights, rest]]))


def _normalized(weights: list[int]) -> Frequencies:
    """At least 1 for every weight that is not 0, TOTAL together; the largest takes what rounding leaves."""
    total = sum(weights)
    frequencies = np.array([weight and max(weight * TOTAL // total, 1) for weight in weights], np.int64)
    largest = int(frequencies.argmax())
    frequencies[largest] += TOTAL - int(frequencies.sum())
    if frequencies[largest] < 1:
        raise FormatError("The frequencies of a range-coded stream do not add up.")
    return frequencies


def _write_logarithms(logarithms: list[int]) -> bytes:
    """Number of symbols less one; then each logarithm's difference from the one before, in Elias' gamma code.

    1 for the same, 2 for one more, 3 for one less, 4 for a run of symbols that do not occur (its length follows), and
    so on outwards.

    >>> _read_logarithms(_write_logarithms([2, 3, -1, -1, 1]))
    ([2, 3, -1, -1, 1], 4)
    """
    text, before, run = "", 0, 0
    for steps in logarithms:
        if steps == _ABSENT:
            run += 1
            continue
        if run:
            text += _gamma(4) + _gamma(run)
        change = steps - before
        code = 2 * change if change > 0 else 1 - 2 * change
        text += _gamma(code + (code >= 4))
        before, run = steps, 0
    return bytes([len(logarithms) - 1]) + np.packbits(np.array(list(text), np.uint8)).tobytes()


def _read_logarithms(data: Data) -> tuple[list[int], int]:
    """What :func:`_write_logarithms` wrote at the beginning of ``data``, and its size in bytes."""
    if not data:
        raise FormatError("A range-coded stream has no table.")
    size = data[0] + 1
    text = "".join(f"{byte:08b}" for byte in data[1 : 1 + 4 * 256])
    logarithms: list[int] = []
    at = before = 0
    while len(logarithms) < size:
        code, at = _read_gamma(text, at)
        if code == 4:
            run, at = _read_gamma(text, at)
            logarithms += [_ABSENT] * run
        else:
            code -= code > 4
            before += code // 2 if code % 2 == 0 else -(code // 2)
            logarithms.append(before)
        if not 0 <= before <= RESOLUTIONS[-1] * PRECISION:
            raise FormatError("A range-coded stream has a frequency that cannot be.")
    used = -(-at // 8)
    if len(logarithms) > size or logarithms[-1] == _ABSENT or "1" in text[at : 8 * used]:
        raise FormatError("The table of a range-coded stream is not in its shortest form.")
    return logarithms, 1 + used


def _gamma(number: int) -> str:
    return f"{number:0{2 * number.bit_length() - 1}b}"


def _read_gamma(text: str, at: int) -> tuple[int, int]:
    one = text.find("1", at, at + 9)
    stop = 2 * one - at + 1
    if one < 0 or stop > len(text):
        raise FormatError("The table of a range-coded stream is cut off.")
    return int(text[one:stop], 2), stop


def read_model(data: Data) -> tuple[Frequencies, int]:
    """Frequencies, and where the states begin.

    Raises:
        FormatError: ``data`` begin with no model.
    """
    if not data or data[0] & 7 > GEOMETRIC:
        raise FormatError("A range-coded stream begins with a model that is unknown.")
    kind = data[0] & 7
    if kind == GEOMETRIC:
        if len(data) < 2:
            raise FormatError("A range-coded stream has no parameter.")
        return _geometric(data[1]).frequencies, 2
    logarithms, size = _read_logarithms(data[1:])
    if max(logarithms) > RESOLUTIONS[kind] * PRECISION:
        raise FormatError("A range-coded stream has a frequency that cannot be.")
    return _from_logarithms(logarithms, RESOLUTIONS[kind]), 1 + size


# -- states -----------------------------------------------------------------------------------------------------------


def _starts(frequencies: Frequencies) -> Frequencies:
    return np.cumsum(frequencies) - frequencies


def _encode_one(symbols: Symbols, frequencies: Frequencies) -> tuple[int, NDArray[np.uint64]]:
    frequency, start = frequencies.tolist(), _starts(frequencies).tolist()
    state, words = 1, []
    for symbol in reversed(symbols.tolist()):
        share = frequency[symbol]
        if state >= share << (32 - PRECISION):
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // share << PRECISION) + state % share + start[symbol]
    return state, np.array(words[::-1], np.uint64)


def _decode_one(state: int, words: NDArray[np.uint64], frequencies: Frequencies, count: int) -> NDArray[np.int64]:
    share = np.repeat(frequencies, frequencies).tolist()
    offset = (np.arange(TOTAL) - np.repeat(_starts(frequencies), frequencies)).tolist()
    source, slots = iter(words.tolist()), np.empty(count, np.int64)
    for index in range(count):
        slot = state & (TOTAL - 1)
        slots[index] = slot
        state = share[slot] * (state >> PRECISION) + offset[slot]
        if state < LOWEST and (word := next(source, None)) is not None:
            state = state << 16 | word
    _check_end(state == 1 and next(source, None) is None)
    return slots


def _encode_many(
    symbols: Symbols, frequencies: Frequencies, number: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    frequency, start = frequencies.astype(np.uint64)[symbols], _starts(frequencies).astype(np.uint64)[symbols]
    limit = frequency << np.uint64(32 - PRECISION)
    states, words = np.full(number, LOWEST, np.uint64), []
    for first in reversed(range(0, len(symbols), number)):
        part = slice(first, first + number)
        share = frequency[part]
        active = states[: len(share)]
        full = np.flatnonzero(active >= limit[part])
        words.append(active[full][::-1] & 0xFFFF)
        active[full] >>= np.uint64(16)
        whole, rest = np.divmod(active, share)
        active[:] = (whole << np.uint64(PRECISION)) + rest + start[part]
    return states, np.concatenate(words)[::-1]


def _decode_many(
    states: NDArray[np.uint64], words: NDArray[np.uint64], frequencies: Frequencies, count: int
) -> NDArray[np.uint16]:
    share = np.repeat(frequencies, frequencies).astype(np.uint64)
    offset = (np.arange(TOTAL) - np.repeat(_starts(frequencies), frequencies)).astype(np.uint64)
    slots, at = np.empty(count, np.uint16), 0
    mask, shift, sixteen = np.uint64(TOTAL - 1), np.uint64(PRECISION), np.uint64(16)
    for first in range(0, count, len(states)):
        active = states[: count - first]
        slot = active & mask
        slots[first : first + len(slot)] = slot
        active[:] = share[slot] * (active >> shift) + offset[slot]
        small = np.flatnonzero(active < LOWEST)
        fresh = words[at : at + len(small)]
        if len(fresh) < len(small):
            raise FormatError("A range-coded stream is cut off.")
        active[small] = active[small] << sixteen | fresh
        at += len(small)
    _check_end(at == len(words) and bool((states == LOWEST).all()))
    return slots


def _check_end(right: bool) -> None:
    if not right:
        raise FormatError("A range-coded stream does not end where its last symbol does.")
