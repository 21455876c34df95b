"""The outer file: safetensors, read through that library, after checks of our own that are stricter."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_compress.artifact.dtypes import SAFETENSORS
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.index import MAX_DIMENSION, MAX_DIMENSIONS, MAX_TENSORS, NAME, parse_json

MAX_HEADER = 2**24
_DTYPES = {name: dtype for dtype, name in SAFETENSORS.items()}


@dataclass(frozen=True)
class OuterTensor:
    """A tensor as the outer file sees it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class OuterFile:
    """A safetensors file whose header has been checked.

    Attributes:
        path: where it is.
        tensors: by name.
        metadata: strings.
        header_bytes: size of the header, its length included.
        header_crc: CRC32 of it.
    """

    path: Path
    tensors: dict[str, OuterTensor]
    metadata: dict[str, str]
    header_bytes: int
    header_crc: int

    @classmethod
    def open(cls, path: Path) -> OuterFile:
        """Read and check the header; no tensor is looked at.

        Raises:
            FormatError: no sound safetensors file, or larger in number than allowed.
            OSError: the file cannot be read.
        """
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
                raise FormatError(f"{path} is no model file: its header would be {length:,} bytes.")
            raw = file.read(length)
        header = parse_json(raw, str(path))
        if not isinstance(header, dict) or len(header) > MAX_TENSORS:
            raise FormatError(f"{path}: the header is no mapping, or has more than {MAX_TENSORS} tensors.")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError(f"{path}: the metadata are not strings.")
        tensors = _check_tensors(header, size - 8 - length, str(path))
        return cls(path, tensors, metadata, 8 + length, zlib.crc32(prefix + raw))

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            FormatError: the safetensors library refuses it.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
            raise FormatError(f"{self.path}: {name!r} cannot be read ({error}).") from None
        return tensor

    def read_bytes(self, name: str) -> memoryview:
        """One tensor of bytes; no copy.

        Raises:
            FormatError: it has another dtype.
        """
        if self.tensors[name].dtype is not torch.uint8:
            raise FormatError(f"{self.path}: {name!r} is not of bytes.")
        return self.read(name).numpy().data


def outer_header(sizes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header, its length included, of a file that holds these tensors in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape) in sizes.items():
        stop = start + prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if set(sizes) != {NAME}:
        raw += b" " * (-len(raw) % 8)  # plain tensors begin where their numbers may begin in memory
    if len(raw) > MAX_HEADER:
        raise FormatError(f"The names and metadata would take {len(raw):,} bytes; {MAX_HEADER:,} are allowed.")
    return len(raw).to_bytes(8, "little") + raw


def _check_tensors(header: Mapping[str, Any], size: int, where: str) -> dict[str, OuterTensor]:
    """No holes, no overlaps, nothing behind the last one, and each as long as its shape says."""
    spans, tensors = [], {}
    for name, fields in header.items():
        if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{where}: {name!r} has not the fields of a tensor.")
        shape, offsets = fields["shape"], fields["data_offsets"]
        if not _are_numbers(shape, MAX_DIMENSIONS) or not _are_numbers(offsets, 2) or len(offsets) != 2:
            raise FormatError(f"{where}: {name!r} has a shape or place that is none.")
        if prod(max(length, 1) for length in shape) > MAX_DIMENSION:
            raise FormatError(f"{where}: {name!r} has the shape {shape}.")
        if not isinstance(fields["dtype"], str) or fields["dtype"] not in _DTYPES:
            raise FormatError(f"{where}: {name!r} has the unknown dtype {str(fields['dtype'])[:20]!r}.")
        dtype = _DTYPES[fields["dtype"]]
        tensors[name] = OuterTensor(dtype, tuple(shape), prod(shape) * dtype.itemsize)
        if offsets[1] - offsets[0] != tensors[name].bytes:
            raise FormatError(f"{where}: {name!r} is not as long as its shape.")
        spans.append((offsets[0], offsets[1]))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise FormatError(f"{where}: the tensors overlap or leave a hole.")
        end = stop
    if end != size:
        raise FormatError(f"{where} has {size:,} bytes of tensors where the header says {end:,}.")
    return tensors


def _are_numbers(values: object, most: int) -> bool:
    if not isinstance(values, list) or len(values) > most:
        return False
    return all(type(value) is int and 0 <= value < MAX_DIMENSION for value in values)
