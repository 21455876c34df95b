"""Tensors to records and back: what a tensor is, is found from its values, and its smallest form is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.artifact.dtypes import Bits, bits_of
from lightning_compress.artifact.entropy import CoderName, entropy_bits, foretold_bytes
from lightning_compress.artifact.fields import FieldReader, FieldWriter
from lightning_compress.artifact.mask_codec import BitMask, GapMask, Mask, encode_bitmap, encode_gaps
from lightning_compress.artifact.row_classes import row_classes
from lightning_compress.artifact.row_grids import MOST_LEVEL, find_row_grids
from lightning_compress.artifact.streams import LARGE
from lightning_compress.artifact.value_codec import Kind, Values, encode_rows, encode_values, few_values

T = TypeVar("T", bound=np.generic)

PIECE = 2**21
"""Entries that are coded at a time: what is needed besides the tensor itself does not grow with it."""

MANY = 2**14
"""From so many entries that are not zero, "auto" takes the coder that is read fastest: the half percent that a range
coder would save is then not worth ten times the decoding.
"""

PROBED = 16
"""Rows of a large matrix in which grids are looked for first."""


@dataclass(frozen=True)
class Record:
    """A piece of a tensor, coded.

    Attributes:
        transposed: the piece was read column by column.
        mask: where it is not zero; None where zero is a value like others.
        values: what it is there; None where it is zero throughout.
    """

    transposed: bool
    mask: GapMask | BitMask | None
    values: Values | None

    def write(self, writer: FieldWriter) -> None:
        """One byte that says what follows, then mask and values."""
        kind, storage = (self.values.kind, self.values.storage) if self.values is not None else (Kind.PLANES, 0)
        form = 0 if self.mask is None else 1 if isinstance(self.mask, GapMask) else 2
        writer.data.append(form | kind << 2 | self.transposed << 4 | storage << 5)
        if self.mask is not None:
            self.mask.write(writer)
        if self.values is not None:
            self.values.write(writer)

    @classmethod
    def read(cls, reader: FieldReader, size: int, columns: int, dtype: torch.dtype) -> Record:
        """The record of ``size`` entries in rows of ``columns``; nothing is decoded."""
        head = reader.byte()
        form, kind, storage = head & 3, head >> 2 & 3, head >> 5
        rows_of_floats = kind == Kind.ROWS and (dtype != torch.float32 or head & 16)
        if form == 3 or rows_of_floats or storage > 3 or (storage and not dtype.is_floating_point):
            raise reader.refuse(f"the form {head} of a record is unknown")
        mask: GapMask | BitMask | None = None
        if form:
            mask = GapMask.read(reader, size) if form == 1 else BitMask.read(reader, size)
        empty = not size if mask is None else not mask.entries
        rows = size // columns if columns else 0
        return cls(bool(head & 16), mask, None if empty else Values.read(reader, Kind(kind), storage, dtype, rows))

    def decode(self, out: Bits, columns: int, dtype: torch.dtype) -> None:
        """Write the entries into ``out``, shape (n,).

        Raises:
            FormatError: the streams are not what the record says.
        """
        rows = len(out) // columns if columns else 0
        by_row = self.values is not None and self.values.kind is Kind.ROWS
        if self.mask is None:
            if self.values is not None:
                places = np.repeat(np.arange(rows), columns) if by_row else None
                out[:] = self.values.decode(len(out), dtype, places)
            return
        places = self.mask.decode(*((columns, rows) if self.transposed else (rows, columns)))
        if self.transposed:
            column, row = np.divmod(places, rows)
            places = row * columns + column
        out.fill(0)
        if self.values is not None:
            out[places] = self.values.decode(len(places), dtype, places // columns if by_row else None)


def encode_tensor(tensor: Tensor, coder: CoderName = "auto") -> list[Record]:
    """The records of a tensor on the CPU, one for each of its pieces.

    >>> pruned = torch.zeros(64, 64)
    >>> pruned[::9, ::7] = 0.5
    >>> record, = encode_tensor(pruned)
    >>> type(record.mask).__name__, record.values.kind.name
    ('GapMask', 'CODEBOOK')
    """
    return list(encode_pieces(tensor, coder))


def encode_pieces(tensor: Tensor, coder: CoderName = "auto") -> Iterator[Record]:
    """The same, one after the other."""
    bits = bits_of(tensor)
    for start, stop, columns in pieces(tensor.shape):
        yield _encode_piece(bits[start:stop], columns, tensor.dtype, coder)


def decode_tensor(records: Iterable[Record], out: Tensor) -> None:
    """Write the entries into ``out``, a contiguous tensor on the CPU, bit for bit as they were.

    Raises:
        FormatError: the records are not of a tensor of this shape and dtype.

    >>> tensor = torch.tensor([[1.0, float("nan")], [-0.0, 3.0]])
    >>> back = torch.empty(2, 2)
    >>> decode_tensor(encode_tensor(tensor), back)
    >>> back.view(torch.int32).equal(tensor.view(torch.int32))
    True
    """
    bits = bits_of(out)
    for record, (start, stop, columns) in zip(records, pieces(out.shape), strict=True):
        record.decode(bits[start:stop], columns, out.dtype)


def check_tensor(records: Iterable[Record], shape: Sequence[int], dtype: torch.dtype, like: Tensor | None) -> bool:
    """Decode piece by piece and keep nothing: whether the entries are those of ``like``, bit for bit.

    Args:
        records: of a tensor of this ``shape`` and ``dtype``.
        shape: its shape.
        dtype: its dtype.
        like: a tensor on the CPU of the same shape and dtype; None if it is enough that the records can be decoded.

    Raises:
        FormatError: they cannot.

    >>> tensor = torch.tensor([0.0, 1.0, -0.0])
    >>> [check_tensor(encode_tensor(tensor), (3,), tensor.dtype, other) for other in (None, tensor, -tensor)]
    [True, True, False]
    """
    expected = None if like is None else bits_of(like)
    for record, (start, stop, columns) in zip(records, pieces(shape), strict=True):
        piece = bits_of(torch.empty(stop - start, dtype=dtype))
        record.decode(piece, columns, dtype)
        if expected is not None and not np.array_equal(piece, expected[start:stop]):
            return False
    return True


def write_records(records: Sequence[Record], writer: FieldWriter) -> None:
    """One behind the other."""
    for record in records:
        record.write(writer)


def read_records(reader: FieldReader, shape: Sequence[int], dtype: torch.dtype) -> Iterator[Record]:
    """The records of a tensor, one at a time; nothing is decoded."""
    for start, stop, columns in pieces(shape):
        yield Record.read(reader, stop - start, columns, dtype)


def pieces(shape: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Start, stop and row length of each piece of the flattened tensor: whole rows, where they are not too long.

    >>> list(pieces((3, 2, 2)))
    [(0, 12, 4)]
    """
    total = prod(shape)
    columns = prod(shape[1:]) if len(shape) > 1 else total
    if not 0 < columns <= PIECE:
        columns = PIECE
    step = PIECE // columns * columns
    for start in range(0, total, step):
        stop = min(start + step, total)
        yield start, stop, min(columns, stop - start)


def entropy_bound(bits: Bits) -> float:
    """Zero-order bound in bytes: the entropy of the mask and of the values that are not zero; 0 for many values.

    >>> round(entropy_bound(np.array([0, 0, 1, 2], np.uint32)), 3)
    0.75
    """
    nonzero = bits[bits != 0]
    found = few_values(nonzero)
    if found is None:
        return 0.0
    return (entropy_bits(np.array([len(bits) - len(nonzero), len(nonzero)])) + entropy_bits(np.bincount(found[1]))) / 8


def _encode_piece(bits: Bits, columns: int, dtype: torch.dtype, coder: CoderName) -> Record:
    matrix = bits.reshape(-1, columns)
    mask = matrix != 0
    entries = np.count_nonzero(mask)
    if not entries:
        return Record(False, GapMask(0, None, ()), None)
    if coder == "auto":
        coder = "deflate" if entries >= MANY else "smallest"
    share = entries / len(bits)
    forms: list[GapMask | BitMask | None] = [None] if share > 0.25 else []
    if share < 0.98:
        forms.append(_encode_mask(mask, coder))
    candidates = [Record(False, coded, encode_values(_taken(matrix, mask, coded), dtype, coder)) for coded in forms]
    if share < 0.98 and _columns_may_pay(mask):
        turned = np.ascontiguousarray(mask.T)
        candidates.append(Record(True, encode_gaps(turned, coder), encode_values(matrix.T[turned], dtype, coder)))
    if dtype == torch.float32 and _rows_may_pay(matrix) and (grids := find_row_grids(matrix)) is not None:
        candidates += [
            Record(False, coded, encode_rows(grids, _taken(grids.levels, mask, coded), coder)) for coded in forms
        ]
    return min(candidates, key=_written)


def _encode_mask(mask: Mask, coder: CoderName) -> GapMask | BitMask:
    """The smaller of gaps and bitmap: the values behind them are the same."""
    gaps = encode_gaps(mask, coder)
    if np.count_nonzero(mask) <= 0.05 * mask.size:
        return gaps
    if mask.size >= LARGE and foretold_bytes(np.packbits(mask), coder) > 0.99 * gaps.size:
        return gaps
    bitmap = encode_bitmap(mask, coder)
    return gaps if _written(Record(False, gaps, None)) <= _written(Record(False, bitmap, None)) else bitmap


def _columns_may_pay(mask: Mask) -> bool:
    """Whether a mask that is read column by column may be smaller; that of a large one must be clearly so."""
    rows, columns = map(int, mask.shape)
    if mask.size < LARGE or min(rows, columns) < 2:
        return min(rows, columns) > 1
    by_row, _ = row_classes(mask.sum(1, dtype=np.int64), columns)
    by_column, _ = row_classes(mask.sum(0, dtype=np.int64), rows)
    return by_column < 0.98 * by_row


def _rows_may_pay(matrix: Bits) -> bool:
    """Whether steps for each row may save anything: in a large matrix, whether they do in a few of its rows."""
    if matrix.size < LARGE or len(matrix) < 2:
        return len(matrix) > 1
    probe = np.ascontiguousarray(matrix[:: len(matrix) // PROBED][:PROBED])
    grids, few = find_row_grids(probe), few_values(probe.reshape(-1))
    if grids is None or few is None:
        return grids is not None
    apart = entropy_bits(np.bincount((grids.levels + MOST_LEVEL).reshape(-1)))
    return apart < 0.97 * entropy_bits(np.bincount(few[1]))


def _taken(matrix: NDArray[T], mask: Mask, coded: GapMask | BitMask | None) -> NDArray[T]:
    """The entries that are coded one by one, row by row."""
    return matrix.reshape(-1) if coded is None else matrix.reshape(-1).take(np.flatnonzero(mask))


def _written(record: Record) -> int:
    writer = FieldWriter()
    record.write(writer)
    return len(writer.data)
