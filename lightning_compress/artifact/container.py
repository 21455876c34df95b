"""Model files: tensors to the disk and back, one at a time, every byte under a checksum."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_compress.artifact.dtypes import bits_of
from lightning_compress.artifact.entropy import CoderName
from lightning_compress.artifact.fields import FieldReader, unseal
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.index import MAGIC, NAME, VERSION, CodedTensor, Entry, Group, Index
from lightning_compress.artifact.outer_file import OuterFile, outer_header
from lightning_compress.artifact.small_tensors import SmallTensors, code_tensor
from lightning_compress.artifact.tensor_codec import check_tensor, decode_tensor, read_records

SMALL_BYTES, INDEX_BYTES = 2**15, 2**20
"""Tensors that take no more bytes than that lie in the index, which takes so many in all."""

WORTH = 0.98
"""A tensor whose coded bytes are a larger share of its own stays an ordinary one, which anybody can read."""

FLOOR, FACTOR, CEILING = 2**26, 2**12, 2**33


class ModelFile:
    """A model file that has been opened: its header and index are checked, no tensor has been decoded.

    Attributes:
        outer: the safetensors file.
        index: what it holds.
        entries: the stored tensors by name.
    """

    def __init__(self, outer: OuterFile, index: Index) -> None:
        self.outer = outer
        self.index = index
        self.entries = {entry.name: entry for entry in index.entries()}
        self._groups = {entry.name: group for group in index.groups for entry in group.members}
        self._crc = {entry.name: crc for entry, crc in index.plain.items()}
        self._last: tuple[Group, Tensor] | None = None

    @classmethod
    def open(cls, path: str | Path, max_total_bytes: float | None = None) -> ModelFile:
        """Check the header and the index of a file.

        Args:
            path: of the file.
            max_total_bytes: what all tensors together may take in memory; None is 4096 times the file's size, at least
                64 MiB and at most 8 GiB.

        Raises:
            FormatError: not a sound model file, of a later version, or larger than allowed.
            OSError: it cannot be read.
        """
        path = Path(path)
        outer = OuterFile.open(path)
        if NAME not in outer.tensors:
            raise FormatError(f"{path} is no model file of this package: it has no index.")
        index = Index.from_bytes(outer.read_bytes(NAME), outer.header_crc, str(path))
        file = cls(outer, index)
        limit = max_total_bytes
        if limit is None:
            limit = min(max(FLOOR, FACTOR * os.path.getsize(path)), CEILING)
        if file.total_bytes > limit:
            raise FormatError(
                f"{path}: its tensors take {file.total_bytes:,} bytes in memory, more than max_total_bytes={limit:,}."
            )
        file._check_outer()
        return file

    @property
    def total_bytes(self) -> int:
        """What all tensors together take in memory."""
        return sum(entry.bytes for entry in self.entries.values())

    def tensor(self, name: str) -> Tensor:
        """One tensor by its name, an alias too.

        Raises:
            FormatError: it is damaged.
        """
        entry = self.entries[self.index.aliases.get(name, name)]
        with self._naming(name):
            if entry.name in self._groups:
                return self._grouped(entry)
            return self._plain(entry) if entry.name in self._crc else self._coded(entry)

    def check(self, name: str, like: Tensor | None = None) -> bool:
        """Decode a tensor without keeping it: whether it is ``like``, bit for bit.

        Raises:
            FormatError: it is damaged.
        """
        entry = self.entries[name]
        if entry.name in self._groups or entry.name in self._crc:
            back = self.tensor(name)
            return like is None or _same_bits(back, like)
        with self._naming(name):
            if like is not None and (like.dtype, tuple(like.shape)) != (entry.dtype, entry.shape):
                return False
            reader = self.coded_reader(name)
            same = check_tensor(read_records(reader, entry.shape, entry.dtype), entry.shape, entry.dtype, like)
            if same:
                reader.finish()
            return same

    def copy_into(self, name: str, target: Tensor) -> None:
        """Give ``target`` the values of a tensor of its shape and dtype, without another copy where it can be had.

        Raises:
            FormatError: it is damaged.
        """
        entry = self.entries[name]
        apart = entry.name not in self._groups and entry.name not in self._crc
        if not (apart and target.device.type == "cpu" and target.is_contiguous()):
            target.copy_(self.tensor(name))
            return
        with self._naming(name):
            reader = self.coded_reader(name)
            decode_tensor(read_records(reader, entry.shape, entry.dtype), target)
            reader.finish()

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            raise FormatError(f"{self.outer.path}: {name!r}: {error}") from None

    def coded_reader(self, name: str) -> FieldReader:
        """The records of a coded tensor, its checksum checked."""
        data = unseal(self.outer.read_bytes(name), name, zlib.crc32(name.encode()))
        if data[:3] != MAGIC + bytes([VERSION]):
            raise FormatError(f"no coded tensor of version {VERSION}")
        return FieldReader(data[3:], name)

    def _check_outer(self) -> None:
        """The outer file has the tensors that the index speaks of, and no others."""
        plain = {entry.name: (entry.dtype, entry.shape) for entry in self.index.plain}
        coded = {entry.name: (torch.uint8, (one.length,)) for entry, one in self.index.coded.items()}
        if set(self.outer.tensors) != {NAME, *plain, *coded}:
            raise FormatError(f"{self.outer.path}: the tensors in it are not those of its index.")
        for name, form in {**plain, **coded}.items():
            if (self.outer.tensors[name].dtype, self.outer.tensors[name].shape) != form:
                raise FormatError(f"{self.outer.path}: {name!r} has not the form that the index says.")

    def _plain(self, entry: Entry) -> Tensor:
        tensor = self.outer.read(entry.name)
        if _checksum(tensor) != self._crc[entry.name]:
            raise FormatError("the checksum is wrong; the file is damaged. Copy it again.")
        return tensor

    def _coded(self, entry: Entry) -> Tensor:
        return _decode(self.coded_reader(entry.name), entry.shape, entry.dtype)

    def _grouped(self, entry: Entry) -> Tensor:
        group = self._groups[entry.name]
        if self._last is None or self._last[0] is not group:
            reader = FieldReader(group.records, entry.name)
            self._last = group, _decode(reader, group.shape, entry.dtype)
        start = sum(one.size for one in group.members[: group.members.index(entry)])
        return self._last[1].reshape(-1)[start : start + entry.size].reshape(entry.shape)


def write_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    aliases: Mapping[str, str],
    plan: Any,
    class_name: str,
    metadata: Mapping[str, str],
    coder: CoderName,
) -> None:
    """Write a file beside ``path``, read it back, compare every bit, and rename it.

    Raises:
        FormatError: what was read back is not what was written; ``path`` is as it was.
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as body:
            index = _write_body(body, tensors, coder)
            index = replace(index, plan=plan, class_name=class_name, aliases=dict(aliases))
            _write_file(file, body, index, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
        verify_model(temporary, tensors)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def verify_model(path: Path, tensors: Mapping[str, Tensor] | None = None) -> ModelFile:
    """Decode every tensor of a file, and compare it with ``tensors`` bit by bit.

    Raises:
        FormatError: one is damaged, or another one.
    """
    file = ModelFile.open(path, float("inf") if tensors is not None else None)
    for name in file.entries:
        if not file.check(name, None if tensors is None else tensors[name].detach().cpu()):
            raise FormatError(f"{path}: {name!r} was not read back as it was written. The disk may be failing.")
    return file


def _write_body(body: BinaryIO, tensors: Mapping[str, Tensor], coder: CoderName) -> Index:
    """Write the coded tensors, one at a time, and say where every tensor is to be."""
    plain: dict[Entry, int] = {}
    coded: dict[Entry, CodedTensor] = {}
    small, room = SmallTensors(coder), INDEX_BYTES
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        entry = Entry(name, tensor.dtype, tuple(tensor.shape))
        one = code_tensor(tensor, coder)
        if len(one.records) <= min(SMALL_BYTES, room):
            room -= len(one.records)
            small.add(entry, tensor, one)
        elif len(one.records) < WORTH * entry.bytes:
            head = MAGIC + bytes([VERSION])
            checksum = zlib.crc32(one.records, zlib.crc32(head, zlib.crc32(name.encode())))
            length = sum(body.write(part) for part in (head, one.records, checksum.to_bytes(4, "little")))
            coded[entry] = CodedTensor(length, one.excess)
        else:
            plain[entry] = _checksum(tensor)
        del one  # before the next tensor is coded
    plain = dict(sorted(plain.items(), key=lambda item: (-item[0].dtype.itemsize, item[0].name)))
    return Index(plain=plain, coded=coded, groups=small.groups())


def _write_file(
    file: BinaryIO, body: BinaryIO, index: Index, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Header, plain tensors, coded ones, index."""
    outer = {entry.name: (entry.dtype, entry.shape) for entry in index.plain}
    outer |= {entry.name: (torch.uint8, (coded.length,)) for entry, coded in index.coded.items()}
    header = outer_header({**outer, NAME: (torch.uint8, (len(index.to_bytes(0)),))}, metadata)
    file.write(header)
    for entry in index.plain:
        file.write(bits_of(tensors[entry.name].detach().cpu()).view(np.uint8).data)
    body.seek(0)
    shutil.copyfileobj(body, file)
    file.write(index.to_bytes(zlib.crc32(header)))


def _decode(reader: FieldReader, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    out = torch.empty(shape, dtype=dtype)
    decode_tensor(read_records(reader, shape, dtype), out)
    reader.finish()
    return out


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(bits_of(tensor).view(np.uint8).data)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (torch.from_numpy(bits_of(tensor).view(np.uint8)) for tensor in (one, other))
    return torch.equal(first, second)
