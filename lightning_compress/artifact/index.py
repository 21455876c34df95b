"""The index: one tensor of the outer file that says what the others are, and holds the small ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch

from lightning_compress.artifact.dtypes import DTYPES
from lightning_compress.artifact.entropy import deflate, inflate
from lightning_compress.artifact.fields import Data, FieldReader, FieldWriter, seal, unseal
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.tensor_codec import read_records

NAME = ".lcz"
"""What the index is called in the outer file: no module can have a tensor of this name."""

MAGIC, VERSION = b"LC", 1
MAX_TENSORS, MAX_DIMENSIONS, MAX_DIMENSION = 2**16, 8, 2**48
MAX_PLAN, MAX_INFLATION = 2**24, 256
PLAN_WORDS = (
    b'"]],"arguments":{"type":"Identity"}}]}"BatchNorm2d","children":[["Sequential","Linear","arguments":{"kernel_size":'
    b'"stride":"padding":"dilation":"groups":1,"bias":false,true,"type":"Conv2d","module":"spec":{"kind":"replace","label":'
    b'"["classifier.","features.","layers.","running_mean",0,"running_var",0,","num_features",","in_channels",'
    b'","out_channels",.bias",0,.weight",1,"]],"attributes":[["in_features",","out_features",.weight",0,'
    b'{"version":1,"edits":[{"kind":"keep","label":" cuts in one","slices":[["network.'
)
"""What the deflated Plan may refer to, so that a file of two thousand bytes does not spend a hundred on field names;
part of version 1 of the format, never to be changed."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the model.

    Attributes:
        name: as in the ``state_dict``.
        dtype: its own, whatever it is stored in.
        shape: its own.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Group:
    """Small tensors of one dtype that are coded as one, flattened, one behind the other; a single one keeps its shape.

    Attributes:
        members: at least one.
        excess: by how many thousandths the records are larger than the zero-order bound; None where there is none.
        records: the coded bytes.
    """

    members: tuple[Entry, ...]
    excess: int | None
    records: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """What the records are of."""
        return self.members[0].shape if len(self.members) == 1 else (sum(entry.size for entry in self.members),)


@dataclass(frozen=True)
class CodedTensor:
    """A tensor whose coded bytes are one of the outer file.

    Attributes:
        length: of the coded bytes.
        excess: see :class:`Group`.
    """

    length: int
    excess: int | None


@dataclass(frozen=True)
class Index:
    """What a file holds.

    Attributes:
        plan: state of the Plan in primitives; None where there is none.
        class_name: of the module; for people, never looked up.
        plain: tensors that are ordinary ones of the outer file, with their CRC32.
        coded: tensors whose coded bytes are a tensor of the outer file.
        groups: the small tensors.
        aliases: other names of tied tensors.
    """

    plan: Any = None
    class_name: str = ""
    plain: dict[Entry, int] = field(default_factory=dict)
    coded: dict[Entry, CodedTensor] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def entries(self) -> Iterator[Entry]:
        """All tensors that are stored."""
        yield from self.plain
        yield from self.coded
        for group in self.groups:
            yield from group.members

    def to_bytes(self, header: int) -> bytes:
        """Sealed; ``header`` is the CRC32 of the outer file's header, which the seal covers too."""
        writer = FieldWriter()
        writer.data += MAGIC + bytes([VERSION])
        plan = b"" if self.plan is None else json.dumps(self.plan, separators=(",", ":")).encode()
        writer.number(len(plan))
        if plan:
            writer.block(deflate(plan, words=PLAN_WORDS))
        writer.block(self.class_name.encode())
        writer.number(len(self.groups))
        for group in self.groups:
            writer.number(len(group.members))
            for entry in group.members:
                _write_entry(writer, entry)
            _write_excess(writer, group.excess)
            writer.data += group.records
        writer.number(len(self.plain))
        for entry, checksum in self.plain.items():
            _write_entry(writer, entry)
            writer.number(checksum)
        writer.number(len(self.coded))
        for entry, coded in self.coded.items():
            _write_entry(writer, entry)
            writer.number(coded.length)
            _write_excess(writer, coded.excess)
        writer.number(len(self.aliases))
        for name, target in self.aliases.items():
            writer.name(name)
            writer.name(target)
        return seal(bytes(writer.data), header)

    @classmethod
    def from_bytes(cls, data: Data, header: int, where: str) -> Index:
        """What :meth:`to_bytes` wrote; every field is checked, nothing is decoded.

        Raises:
            FormatError: it did not, or a later release did.
        """
        if data[:2] != MAGIC or len(data) < 8:
            raise FormatError(f"{where} is no model file of this package.")
        if data[2] != VERSION:
            raise FormatError(f"{where} has version {data[2]}; this release reads version {VERSION}. Upgrade.")
        reader = FieldReader(unseal(data, where, header), where)
        reader.take(3)
        plan, class_name = _read_plan(reader), reader.text()
        groups = tuple(_read_group(reader) for _ in range(reader.number(MAX_TENSORS)))
        plain = {_read_entry(reader): reader.number(2**32 - 1) for _ in range(reader.number(MAX_TENSORS))}
        coded = {_read_entry(reader): _read_coded(reader) for _ in range(reader.number(MAX_TENSORS))}
        aliases = {reader.name(): reader.name() for _ in range(reader.number(MAX_TENSORS))}
        reader.finish()
        index = cls(plan, class_name, plain, coded, groups, aliases)
        index._check_names(where)
        return index

    def _check_names(self, where: str) -> None:
        names = [entry.name for entry in self.entries()]
        stored = set(names)
        if len(names) + len(self.aliases) > MAX_TENSORS or len(stored) != len(names) or stored & set(self.aliases):
            raise FormatError(f"{where}: there are two tensors of one name, or too many.")
        lost = [name for name, target in self.aliases.items() if target not in stored]
        if lost:
            raise FormatError(f"{where}: {lost[0]!r} is tied to a tensor that is not in the file.")


def _write_entry(writer: FieldWriter, entry: Entry) -> None:
    writer.name(entry.name)
    writer.number(DTYPES.index(entry.dtype) * (MAX_DIMENSIONS + 1) + len(entry.shape))
    for length in entry.shape:
        writer.number(length)


def _read_entry(reader: FieldReader) -> Entry:
    name = reader.name()
    dtype, dimensions = divmod(reader.number(len(DTYPES) * (MAX_DIMENSIONS + 1) - 1), MAX_DIMENSIONS + 1)
    shape = tuple(reader.number(MAX_DIMENSION) for _ in range(dimensions))
    if prod(max(length, 1) for length in shape) > MAX_DIMENSION:
        raise reader.refuse(f"{name!r} has the shape {shape}")
    return Entry(name, DTYPES[dtype], shape)


def _read_group(reader: FieldReader) -> Group:
    number = reader.number(MAX_TENSORS)
    members = tuple(_read_entry(reader) for _ in range(number))
    if not members or len({entry.dtype for entry in members}) != 1:
        raise reader.refuse("a group of tensors is empty or of two dtypes")
    group = Group(members, _read_excess(reader), b"")
    start = reader.position
    for _ in read_records(reader, group.shape, members[0].dtype):
        pass
    return replace(group, records=reader.since(start))


def _read_coded(reader: FieldReader) -> CodedTensor:
    return CodedTensor(reader.number(MAX_DIMENSION), _read_excess(reader))


def _write_excess(writer: FieldWriter, excess: int | None) -> None:
    writer.number(0 if excess is None else 1 + 2 * excess if excess >= 0 else -2 * excess)


def _read_excess(reader: FieldReader) -> int | None:
    number = reader.number(MAX_DIMENSION)
    return None if number == 0 else number // 2 if number % 2 else -number // 2


def _read_plan(reader: FieldReader) -> Any:
    size = reader.number(MAX_PLAN)
    if not size:
        return None
    coded = reader.block()
    if size > MAX_INFLATION * len(coded):
        raise reader.refuse(f"{len(coded)} bytes cannot be a Plan of {size}")
    return parse_json(inflate(coded, size, PLAN_WORDS), reader.where)


def parse_json(data: bytes, where: str) -> Any:
    """JSON in which no key stands twice.

    Raises:
        FormatError: it is none.

    >>> parse_json(b'{"a": 1}', "x")
    {'a': 1}
    """

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        return json.loads(data.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: the JSON in it cannot be read ({error}).") from None
