"""Where the entries are that are not zero: gaps between them, or a bitmap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_compress.artifact.entropy import Coder, CoderName, allowed_coders, entropy_bits
from lightning_compress.artifact.fields import Data, FieldReader, FieldWriter
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.huffman import huffman_bits
from lightning_compress.artifact.row_classes import MAX_CLASSES, mask_bits, row_classes
from lightning_compress.artifact.streams import LARGE, Stream

Mask = NDArray[np.bool_]
Places = NDArray[np.int64]
ESCAPE = 255
MAX_LOW = 16
MANY_GAPS = 2**12
TABLE_BITS, TABLE_EVERY = 6, 2**15
"""DEFLATE spends about so many bits on each symbol that occurs, and anew after so many symbols."""


@dataclass(frozen=True)
class GapClass:
    """The gaps between the entries of the rows of one class.

    Attributes:
        entries: number of entries that are not zero.
        escapes: number of symbols that stand for no entry.
        low_bits: so many lowest bits of every gap are stored as they are, for they are noise.
        high: gap >> low_bits; 255 stands for 255 and "more follows".
        low: the lowest bits, packed.
    """

    entries: int
    escapes: int
    low_bits: int
    high: Stream
    low: Data

    @classmethod
    def read(cls, reader: FieldReader, entries: int, size: int) -> GapClass:
        """The fields of a class of ``entries`` in a mask of ``size``."""
        if not entries:
            return _EMPTY
        escapes, low_bits = reader.number(size // ESCAPE), reader.number(MAX_LOW)
        return cls(entries, escapes, low_bits, Stream.read(reader), reader.take(-(-entries * low_bits // 8)))


@dataclass(frozen=True)
class GapMask:
    """Gaps: the number of zeros before each entry that is not zero, in the order of the rows of each class.

    Attributes:
        entries: number of entries that are not zero.
        class_of_row: None where there is one class only.
        classes: at most 8.
    """

    entries: int
    class_of_row: Stream | None
    classes: tuple[GapClass, ...]

    def write(self, writer: FieldWriter) -> None:
        """The fields."""
        writer.number(self.entries)
        if not self.entries:
            return
        writer.number(len(self.classes))
        if self.class_of_row is not None:
            self.class_of_row.write(writer)
        for part in self.classes:
            if self.class_of_row is not None:
                writer.number(part.entries)
            if part.entries:
                writer.number(part.escapes)
                writer.number(part.low_bits)
                part.high.write(writer)
                writer.data += part.low

    @classmethod
    def read(cls, reader: FieldReader, size: int) -> GapMask:
        """The fields of a mask of ``size`` entries."""
        entries = reader.number(size)
        if not entries:
            return cls(0, None, ())
        number = reader.number(MAX_CLASSES)
        if number == 1:
            return cls(entries, None, (GapClass.read(reader, entries, size),))
        class_of_row = Stream.read(reader)
        parts = tuple(GapClass.read(reader, reader.number(entries), size) for _ in range(number))
        if sum(part.entries for part in parts) != entries:
            raise reader.refuse(f"the classes of a mask have not its {entries} entries")
        return cls(entries, class_of_row, parts)

    @property
    def streams(self) -> list[Stream]:
        """All of them."""
        first = [] if self.class_of_row is None else [self.class_of_row]
        return [*first, *(part.high for part in self.classes if part.entries)]

    @property
    def size(self) -> int:
        """Bytes of the streams."""
        return sum(len(stream.data) for stream in self.streams) + sum(len(part.low) for part in self.classes)

    def decode(self, rows: int, columns: int) -> Places:
        """Where the entries are in the flattened mask of shape (rows, columns), in ascending order.

        Raises:
            FormatError: an entry beyond the end, or another number of entries than stated.
        """
        if self.class_of_row is None:
            return _decode_gaps(self.classes[0], rows * columns) if self.classes else np.zeros(0, np.int64)
        class_of_row = self.class_of_row.decode(rows, len(self.classes))
        sizes = columns * np.bincount(class_of_row, minlength=len(self.classes))
        starts = np.cumsum(sizes) - sizes
        parts = zip(self.classes, sizes.tolist(), starts.tolist(), strict=True)
        together = np.concatenate([_decode_gaps(part, size) + start for part, size, start in parts])
        return _in_order(together, np.argsort(class_of_row, kind="stable"), columns)


@dataclass(frozen=True)
class BitMask:
    """One bit an entry, eight of them one symbol."""

    entries: int
    stream: Stream

    def write(self, writer: FieldWriter) -> None:
        """The fields."""
        writer.number(self.entries)
        self.stream.write(writer)

    @classmethod
    def read(cls, reader: FieldReader, size: int) -> BitMask:
        """The fields of a mask of ``size`` entries."""
        return cls(reader.number(size), Stream.read(reader))

    @property
    def streams(self) -> list[Stream]:
        """The one."""
        return [self.stream]

    @property
    def size(self) -> int:
        """Bytes of the stream."""
        return len(self.stream.data)

    def decode(self, rows: int, columns: int) -> Places:
        """Where the entries are in the flattened mask of shape (rows, columns), in ascending order.

        Raises:
            FormatError: not as many entries as stated.
        """
        places = np.flatnonzero(self.stream.decode(rows * columns, 2).view(np.bool_))
        if len(places) != self.entries:
            raise FormatError(f"A mask has {len(places)} entries instead of {self.entries}.")
        return places


def encode_bitmap(mask: Mask, coder: CoderName) -> BitMask:
    """``mask`` as a bitmap."""
    return BitMask(int(mask.sum()), Stream.encode(mask.reshape(-1).view(np.uint8), 2, coder))


def encode_gaps(mask: Mask, coder: CoderName) -> GapMask:
    """``mask``, shape (rows, columns), as gaps; in row classes where they make it smaller.

    >>> mask = np.random.default_rng(0).random((64, 100)) < 0.1
    >>> bool((encode_gaps(mask, "auto").decode(64, 100) == np.flatnonzero(mask)).all())
    True
    """
    entries = int(mask.sum())
    if not entries:
        return GapMask(0, None, ())
    bits, classes = row_classes(mask.sum(1, dtype=np.int64), mask.shape[1])
    number = int(classes.max(initial=0)) + 1
    forms = []
    if number == 1 or mask.size < LARGE or bits > 0.95 * mask_bits(mask.size, entries):
        forms.append(GapMask(entries, None, (_encode_class(mask, coder),)))
    if number > 1:
        parts = tuple(_encode_class(mask[classes == position], coder) for position in range(number))
        forms.append(GapMask(entries, Stream.encode(classes, number, coder), parts))
    return min(forms, key=_written)


def _written(mask: GapMask) -> int:
    writer = FieldWriter()
    mask.write(writer)
    return len(writer.data)


def _encode_class(mask: Mask, coder: CoderName) -> GapClass:
    places = np.flatnonzero(mask.reshape(-1))
    if not len(places):
        return _EMPTY
    gaps = np.diff(places, prepend=-1) - 1
    allowed = allowed_coders(coder, len(gaps))
    widths = {0} if Coder.RANS in allowed else set()
    if allowed != (Coder.RANS,):
        widths.add(_best_low_bits(gaps))
    return min((_code_gaps(gaps, low_bits, coder) for low_bits in sorted(widths)), key=_class_size)


def _class_size(part: GapClass) -> int:
    return len(part.high.data) + len(part.low)


def _code_gaps(gaps: NDArray[np.int64], low_bits: int, coder: CoderName) -> GapClass:
    high = gaps >> low_bits
    if high.max() < ESCAPE:
        symbols = high.astype(np.uint8)
    else:
        escapes = high // ESCAPE
        last = np.cumsum(escapes + 1) - 1
        symbols = np.full(int(last[-1]) + 1, ESCAPE, np.uint8)
        symbols[last] = high % ESCAPE
    low = pack_bits(gaps & ((1 << low_bits) - 1), low_bits)
    return GapClass(len(gaps), len(symbols) - len(gaps), low_bits, Stream.encode(symbols, 256, coder), low)


def _best_low_bits(gaps: NDArray[np.int64]) -> int:
    """The number of low bits with which a Huffman code, its table included, is smallest."""
    often = np.bincount(gaps)
    lengths = np.flatnonzero(often)
    often = often[lengths]
    sizes: list[float] = []
    for low_bits in range(MAX_LOW + 1):
        escapes, symbols = np.divmod(lengths >> low_bits, ESCAPE)
        counts = np.bincount(symbols, often, minlength=256)
        counts[ESCAPE] = escapes @ often
        sizes.append(_coded_bits(counts.astype(np.int64)) + low_bits * len(gaps))
        if low_bits and sizes[-1] > sizes[-2]:
            break
    return int(np.argmin(sizes))


def _coded_bits(counts: NDArray[np.int64]) -> float:
    """Size of a Huffman code; for many symbols about that, from their entropy and what DEFLATE's tables take."""
    total = int(counts.sum())
    if total < MANY_GAPS:
        return huffman_bits(counts)
    return entropy_bits(counts) + TABLE_BITS * np.count_nonzero(counts) * -(-total // TABLE_EVERY)


def _decode_gaps(part: GapClass, size: int) -> Places:
    """Where the entries of ``part`` are in a flat mask of ``size``."""
    if not part.entries:
        return np.zeros(0, np.int64)
    symbols = part.high.decode(part.entries + part.escapes, 256)
    stops = symbols != ESCAPE
    if np.count_nonzero(stops) != part.entries or not stops[-1]:
        raise FormatError(f"A mask has {np.count_nonzero(stops)} entries, not {part.entries}, or ends with an escape.")
    steps = symbols.astype(np.int64)
    steps <<= part.low_bits
    steps += stops
    places = np.cumsum(steps, out=steps)
    if part.escapes:
        places = places[stops]
    places -= 1
    if part.low_bits:
        places += np.cumsum(unpack_bits(part.low, part.low_bits, part.entries))
    if places[-1] >= size:
        raise FormatError(f"A mask has an entry at {places[-1]}; its length is {size}.")
    return places


def _in_order(places: Places, order: Places, columns: int) -> Places:
    """From places in a mask whose rows stand in another ``order`` to those in the mask itself, ascending again."""
    rows = np.arange(len(order))
    stops = np.searchsorted(places, columns * (rows + 1))
    number = np.diff(stops, prepend=0)
    sorted_number = np.empty_like(number)
    sorted_number[order] = number
    away = (np.cumsum(sorted_number) - sorted_number)[order] - (stops - number)
    found = np.empty_like(places)
    found[np.arange(len(places)) + np.repeat(away, number)] = places + np.repeat(columns * (order - rows), number)
    return found


def pack_bits(numbers: NDArray[np.int64], width: int) -> bytes:
    """The lowest ``width`` bits of each number, one behind the other.

    >>> pack_bits(np.array([1, 2, 3]), 2).hex()
    '6c'
    """
    shifts = np.arange(width - 1, -1, -1)
    return np.packbits(((numbers[:, None] >> shifts) & 1).astype(np.uint8)).tobytes()


def unpack_bits(data: Data, width: int, count: int) -> NDArray[np.int64]:
    """Back from :func:`pack_bits`.

    Raises:
        FormatError: ``data`` are not ``count`` numbers.
    """
    if len(data) != -(-count * width // 8):
        raise FormatError(f"{len(data)} bytes are not {count} numbers of {width} bits.")
    padded = np.zeros(len(data) + 2, np.int64)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]  # 24 bits from each byte on: any 16 from any bit on
    at = np.arange(count) * width
    numbers: NDArray[np.int64] = words[at >> 3] >> (24 - width - (at & 7)) & ((1 << width) - 1)
    return numbers


_EMPTY = GapClass(0, 0, 0, Stream.encode(np.zeros(0, np.uint8), 256, "auto"), b"")
