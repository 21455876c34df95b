"""What a model file is made of, in bytes, without decoding it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lightning_compress.artifact.container import ModelFile
from lightning_compress.artifact.fields import FieldReader
from lightning_compress.artifact.index import CodedTensor, Entry
from lightning_compress.artifact.mask_codec import BitMask, GapMask
from lightning_compress.artifact.plan_json import plan_from_json
from lightning_compress.artifact.tensor_codec import Record, read_records
from lightning_compress.plan import KeepIndices, Plan


@dataclass(frozen=True)
class TensorSummary:
    """One tensor, or small ones that are coded together.

    Attributes:
        name: the first one's name, and how many more there are.
        shape: its shape; the number of entries where there are several.
        dtype: their dtype.
        weights: number of entries.
        kept: number of entries that are not zero, None where zero is a value like others.
        form: what was found in the values.
        mask: bytes of the gaps or the bitmap.
        values: bytes of the values.
        codebook: bytes of the distinct values or the step.
        tables: bytes of Huffman tables; DEFLATE has its own amid the codewords.
        headers: bytes of all else, the checksum included.
        bound_share: bytes over the zero-order entropy of mask and values; None where every value is another.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    kept: int | None
    form: str
    mask: int
    values: int
    codebook: int
    tables: int
    headers: int
    bound_share: float | None

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.mask + self.values + self.codebook + self.tables + self.headers

    @property
    def bits_per_weight(self) -> float:
        """Bits for one entry."""
        return 8 * self.bytes / max(self.weights, 1)


@dataclass(frozen=True)
class FileSummary:
    """A model file.

    Attributes:
        bytes: its size on the disk.
        ratio: bytes of the dense network in fp32, in the shape before any cut, over the file's.
        tensors: one row for each tensor or group of small ones.
        plan: number of edits in its Plan.
        class_name: of the module that was saved.
        metadata: "metrics" and "user", in JSON.
    """

    bytes: int
    ratio: float
    tensors: tuple[TensorSummary, ...]
    plan: int
    class_name: str
    metadata: dict[str, str]

    @property
    def overhead(self) -> int:
        """Bytes of headers, tables and checksums: of all that is neither mask nor values nor codebook."""
        return self.bytes - sum(row.mask + row.values + row.codebook for row in self.tensors)


def inspect_compressed(path: str | Path) -> FileSummary:
    """What a model file is made of; nothing is decoded.

    Raises:
        FormatError: it is damaged, or no model file.
        OSError: it cannot be read.

    >>> import tempfile
    >>> from torch import nn
    >>> from lightning_compress.artifact import save_compressed
    >>> path = Path(tempfile.mkdtemp(), "model.lcz")
    >>> save_compressed(nn.Linear(20, 30), path) == inspect_compressed(path)
    True
    """
    return summarize_file(ModelFile.open(path, float("inf")))


def summarize_file(file: ModelFile) -> FileSummary:
    """The summary of a file that is open."""
    index, size = file.index, os.path.getsize(file.outer.path)
    rows = [_plain_row(entry) for entry in index.plain]
    rows += [_coded_row(file, entry, coded) for entry, coded in index.coded.items()]
    for group in index.groups:
        first, more = group.members[0], len(group.members) - 1
        reader = FieldReader(group.records, first.name)
        records = list(read_records(reader, group.shape, first.dtype))
        reader.finish()
        name = f"{first.name} and {more} more" if more else first.name
        rows.append(_row(name, first, group.shape, records, len(group.records), group.excess))
    plan = plan_from_json(index.plan, str(file.outer.path))
    ratio = dense_bytes(file.entries.values(), plan) / size
    order = {name: place for place, name in enumerate(sorted(file.entries))}
    rows.sort(key=lambda row: order[row.name.split(" and ")[0]] if row.name not in order else order[row.name])
    return FileSummary(size, ratio, tuple(rows), len(plan), index.class_name, file.outer.metadata)


def dense_bytes(entries: Iterable[Entry], plan: Plan) -> int:
    """Bytes of the tensors in the shape before the Plan's cuts, floating-point ones in fp32."""
    shapes = {entry.name: list(entry.shape) for entry in entries}
    for edit in reversed(plan.edits):
        for part in edit.slices if isinstance(edit, KeepIndices) else ():
            if part.tensor in shapes and part.dim < len(shapes[part.tensor]):
                shapes[part.tensor][part.dim] = part.size
    sizes = {entry.name: 4 if entry.dtype.is_floating_point else entry.dtype.itemsize for entry in entries}
    return sum(prod(shape) * sizes[name] for name, shape in shapes.items())


def _plain_row(entry: Entry) -> TensorSummary:
    dtype = str(entry.dtype).removeprefix("torch.")
    return TensorSummary(entry.name, entry.shape, dtype, entry.size, None, "plain", 0, entry.bytes, 0, 0, 0, None)


def _coded_row(file: ModelFile, entry: Entry, coded: CodedTensor) -> TensorSummary:
    reader = file.coded_reader(entry.name)
    records = list(read_records(reader, entry.shape, entry.dtype))
    reader.finish()
    return _row(entry.name, entry, entry.shape, records, coded.length, coded.excess)


def _row(
    name: str, entry: Entry, shape: tuple[int, ...], records: list[Record], size: int, excess: int | None
) -> TensorSummary:
    masks = [record.mask for record in records if record.mask is not None]
    values = [record.values for record in records if record.values is not None]
    streams = [stream for mask in masks for stream in mask.streams]
    mask_tables = sum(stream.table for stream in streams)
    value_tables = sum(stream.table for part in values for stream in part.streams)
    mask_bytes = sum(mask.size for mask in masks) - mask_tables
    value_bytes = sum(part.size for part in values) - value_tables
    codebook = sum(len(part.codebook) for part in values)
    headers = size - mask_bytes - value_bytes - codebook - mask_tables - value_tables
    kept = sum(mask.entries for mask in masks) if len(masks) == len(records) else None
    return TensorSummary(
        name,
        shape,
        str(entry.dtype).removeprefix("torch."),
        prod(shape),
        kept,
        _form(records),
        mask_bytes,
        value_bytes,
        codebook,
        mask_tables + value_tables,
        headers,
        None if excess is None else 1 + excess / 1000,
    )


def _form(records: list[Record]) -> str:
    """In a word or two."""
    if not records:
        return "empty"
    first = records[0]
    mask = {GapMask: "gaps", BitMask: "bitmap"}.get(type(first.mask), "")
    if isinstance(first.mask, GapMask) and len(first.mask.classes) > 1:
        mask = f"gaps in {len(first.mask.classes)} classes"
    values = "" if first.values is None else first.values.kind.name.lower()
    return ", ".join(filter(None, (mask, values))) or "zeros"
