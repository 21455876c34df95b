"""What the entries are: few distinct values, a uniform grid, or anything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_compress.artifact.dtypes import Bits, bits_of, from_bits, narrow, storage_type, widen
from lightning_compress.artifact.entropy import CoderName
from lightning_compress.artifact.fields import Data, FieldReader, FieldWriter
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.row_grids import RowGrids, multiply_rows
from lightning_compress.artifact.streams import Stream

FEW = 256
SAMPLE = 4096
GOLDEN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: its multiples are spread out evenly."""

SPARSE = 17
"""From so many values on, levels of a grid that do not occur cost next to nothing."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Kind(IntEnum):
    """What values are; the numbers are part of the format.

    PLANES: any values; all first bytes, all second bytes and so on, for the bytes with the exponents are alike (signs
    are noise, and go to the other end).
    CODEBOOK: at most 256 distinct ones. GRID: whole multiples of a step, at most 256 neighbouring ones. ROWS: the same,
    with a step for each row, in float32.
    """

    PLANES = 0
    CODEBOOK = 1
    GRID = 2
    ROWS = 3


@dataclass(frozen=True)
class Values:
    """Coded values.

    Attributes:
        kind: what they are.
        storage: number of the narrower format in which they, their codebook or their step are stored.
        known: size of the codebook or grid; 0 for planes.
        lowest: the lowest level of a grid.
        codebook: the distinct values, the step, or the steps; little-endian.
        streams: the planes, or the one stream of indices.
    """

    kind: Kind
    storage: int
    known: int
    lowest: int
    codebook: Data
    streams: tuple[Stream, ...]

    @property
    def size(self) -> int:
        """Bytes of the streams."""
        return sum(len(stream.data) for stream in self.streams)

    def write(self, writer: FieldWriter) -> None:
        """The fields; kind and storage stand elsewhere."""
        if self.kind is not Kind.PLANES:
            writer.number(self.known - 1)
            if self.kind is not Kind.CODEBOOK:
                writer.signed(self.lowest)
            writer.data += self.codebook
        for stream in self.streams:
            stream.write(writer)

    @classmethod
    def read(cls, reader: FieldReader, kind: Kind, storage: int, dtype: torch.dtype, rows: int) -> Values:
        """The fields; ``rows`` is the number of rows of the piece."""
        size = storage_type(storage, dtype).itemsize
        if kind is Kind.PLANES:
            return cls(kind, storage, 0, 0, b"", tuple(Stream.read(reader) for _ in range(size)))
        known = reader.number(FEW - 1) + 1
        lowest = 0 if kind is Kind.CODEBOOK else reader.signed(FEW * FEW if kind is Kind.GRID else FEW)
        codebook = reader.take({Kind.CODEBOOK: known, Kind.GRID: 1, Kind.ROWS: rows}[kind] * size)
        return cls(kind, storage, known, lowest, codebook, (Stream.read(reader),))

    def decode(self, count: int, dtype: torch.dtype, rows: NDArray[np.int64] | None = None) -> Bits:
        """The bits of the ``count`` values; ``rows`` are the rows of the piece that they stand in, for ROWS alone."""
        stored = storage_type(self.storage, dtype)
        if self.kind is Kind.PLANES:
            planes = np.empty((count, stored.itemsize), np.uint8)
            for place, stream in enumerate(self.streams):
                planes[:, place] = stream.decode(count, 256)
            values = widen(_sign_first(planes.reshape(-1).view(stored), dtype), self.storage, dtype)
            return _check_bool(values, dtype)
        small = np.frombuffer(self.codebook, stored)
        table = widen(small.copy(), self.storage, dtype)
        if self.kind is Kind.ROWS:
            assert rows is not None
            levels = self.streams[0].decode(count, self.known).astype(np.int16) + np.int16(self.lowest)
            return multiply_rows(table.view(np.float32), levels, rows).view(np.uint32)
        if self.kind is Kind.GRID:
            table = _grid(from_bits(table, dtype), self.lowest, self.known)
        return _check_bool(table, dtype).take(self.streams[0].decode(count, self.known))


def encode_values(bits: Bits, dtype: torch.dtype, coder: CoderName) -> Values:
    """The smallest lossless form of values, shape (n,), n >= 1.

    >>> encode_values(bits_of(torch.tensor([0.5, -0.25, 0.5])), torch.float32, "auto").kind.name
    'GRID'
    """
    found = few_values(bits)
    if found is None:
        return _encode_planes(bits, dtype, coder)
    forms = _encode_few(*found, dtype, coder)
    if len(found[0]) * bits.itemsize > len(bits):
        forms.append(_encode_planes(bits, dtype, coder))
    return min(forms, key=lambda values: values.size + len(values.codebook))


def encode_rows(grids: RowGrids, levels: NDArray[np.int16], coder: CoderName) -> Values:
    """Levels, shape (n,), some or all of those of ``grids``."""
    lowest = int(levels.min())
    known = int(levels.max()) - lowest + 1
    storage, small = narrow(grids.steps.view(np.uint32), torch.float32)
    steps = small.astype(storage_type(storage, torch.float32)).tobytes()
    stream = Stream.encode((levels - lowest).astype(np.uint8), known, coder)
    return Values(Kind.ROWS, storage, known, lowest, steps, (stream,))


def few_values(bits: Bits) -> tuple[Bits, NDArray[np.uint8]] | None:
    """The distinct values, sorted by their bits, and where in them each of ``bits`` stands; None for more than 256.

    >>> few_values(np.array([7, 5, 7], np.uint32))
    (array([5, 7], dtype=uint32), array([1, 0, 1], dtype=uint8))
    """
    distinct = np.unique(bits[:SAMPLE])
    while len(distinct) <= FEW:
        indices = _index(bits, distinct)
        strange = distinct.take(indices) != bits
        if not strange.any():
            return distinct, indices
        distinct = np.union1d(distinct, bits[strange])
    return None


def _index(bits: Bits, distinct: Bits) -> NDArray[np.uint8]:
    """Where in ``distinct`` each of ``bits`` stands, if it does; by a hash without collisions where one is found.

    The highest 16 bits of a multiple say which; for 256 values three multipliers in five keep them apart.
    """
    if bits.itemsize > 2:
        shift = bits.dtype.type(8 * bits.itemsize - 16)
        for odd in range(1, 40, 2):
            multiplier = bits.dtype.type(odd * GOLDEN >> 64 - 8 * bits.itemsize & (1 << 8 * bits.itemsize) - 1 | 1)
            slots = distinct * multiplier >> shift
            if len(np.unique(slots)) == len(distinct):
                table = np.zeros(2**16, np.uint8)
                table[slots] = np.arange(len(distinct))
                found: NDArray[np.uint8] = table.take(bits * multiplier >> shift)
                return found
    return np.searchsorted(distinct, bits).clip(max=len(distinct) - 1).astype(np.uint8)


def _encode_few(distinct: Bits, indices: NDArray[np.uint8], dtype: torch.dtype, coder: CoderName) -> list[Values]:
    """As a grid, if it is one; as a codebook, unless the grid is full anyway."""
    place = np.arange(len(distinct), dtype=np.uint8)
    if dtype in _FLOATS:
        order = np.argsort(from_bits(distinct, dtype).double().numpy(), kind="stable")  # neighbours have like counts
        distinct, place = distinct[order], np.argsort(order).astype(np.uint8)
    grid = _find_grid(distinct, dtype)
    forms = []
    if grid is not None:
        step, levels = grid
        lowest = int(levels.min())
        known = int(levels.max()) - lowest + 1
        stream = Stream.encode((levels - lowest).astype(np.uint8)[place].take(indices), known, coder)
        storage, small = narrow(step, dtype)
        table = small.astype(storage_type(storage, dtype)).tobytes()
        forms.append(Values(Kind.GRID, storage, known, lowest, table, (stream,)))
    if not forms or len(distinct) < min(forms[0].known, SPARSE):
        storage, small = narrow(distinct, dtype)
        table = small.astype(storage_type(storage, dtype)).tobytes()
        stream = Stream.encode(place.take(indices), len(distinct), coder)
        forms.append(Values(Kind.CODEBOOK, storage, len(distinct), 0, table, (stream,)))
    return forms


def _find_grid(distinct: Bits, dtype: torch.dtype) -> tuple[Bits, np.ndarray[tuple[int], np.dtype[np.int64]]] | None:
    """The step and the level of each value, if they are exactly level times step in the arithmetic of ``dtype``."""
    values = from_bits(distinct, dtype)
    if dtype not in _FLOATS or len(distinct) < 2 or not bool(values.isfinite().all()):
        return None
    wide = values.double()
    differences = torch.cat([wide.diff(), wide.abs()])
    smallest = differences[differences > 0].min()
    for divisor in (1, 2, 3):
        step = (smallest / divisor).to(dtype)
        levels = (wide / step.double()).round()
        if not bool(levels.isfinite().all()) or bool((levels.abs() > FEW * FEW).any()):
            return None
        numbers = levels.long().numpy()
        lowest, known = int(numbers.min()), int(numbers.max() - numbers.min()) + 1
        if known <= FEW and np.array_equal(_grid(step.reshape(1), lowest, known)[numbers - lowest], distinct):
            return bits_of(step), numbers
    return None


def _grid(step: torch.Tensor, lowest: int, known: int) -> Bits:
    """The values of a grid."""
    if step.dtype not in _FLOATS:
        raise FormatError(f"{step.dtype} has no grid.")
    work = torch.float64 if step.dtype == torch.float64 else torch.float32
    levels = torch.arange(lowest, lowest + known, dtype=work)
    return bits_of((levels * step.to(work)).to(step.dtype))


def _encode_planes(bits: Bits, dtype: torch.dtype, coder: CoderName) -> Values:
    storage, small = narrow(bits, dtype)
    stored = storage_type(storage, dtype)
    planes = _sign_last(small.astype(stored), dtype).view(np.uint8).reshape(len(bits), stored.itemsize)
    streams = [Stream.encode(np.ascontiguousarray(planes[:, place]), 256, coder) for place in range(stored.itemsize)]
    return Values(Kind.PLANES, storage, 0, 0, b"", tuple(streams))


def _sign_last(bits: Bits, dtype: torch.dtype) -> Bits:
    """The sign of floating-point numbers moved from their highest bit to their lowest."""
    if dtype not in _FLOATS:
        return bits
    return (bits << 1) | (bits >> (8 * bits.itemsize - 1))


def _sign_first(bits: Bits, dtype: torch.dtype) -> Bits:
    """Back from :func:`_sign_last`."""
    if dtype not in _FLOATS:
        return bits
    return (bits >> 1) | (bits << (8 * bits.itemsize - 1))


def _check_bool(bits: Bits, dtype: torch.dtype) -> Bits:
    if dtype is torch.bool and bits.max(initial=0) > 1:
        raise FormatError("A bool is neither 0 nor 1.")
    return bits
