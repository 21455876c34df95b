"""The closed set of number formats in a file, and tensors as the bits that they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.errors import CompressionError

Bits = NDArray[Any]
"""Unsigned integers as wide as the tensor's entries."""

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.uint16, torch.uint32, torch.uint64),
)
"""A dtype's place is its number in a file; part of the format."""

_NAMES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F8_E5M2")
SAFETENSORS = dict(zip(DTYPES, (*_NAMES, "U16", "U32", "U64"), strict=True))
"""What the dtypes are called in the outer file."""

STORAGES = (None, torch.float32, torch.float16, torch.bfloat16)
"""Narrower formats in which values are stored where that loses nothing; None is their own."""

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Refuse what a file cannot hold.

    Raises:
        CompressionError: complex128 or a quantized dtype.
    """
    if dtype not in DTYPES:
        raise CompressionError(f"{name!r} has the dtype {dtype}, which no file holds. Convert it before saving.")


def bits_of(tensor: Tensor) -> Bits:
    """The entries of a tensor on the CPU as unsigned integers, shape (n,); shares its memory where it is contiguous.

    >>> bits_of(torch.tensor([1.0, -0.0])).tolist()
    [1065353216, 2147483648]
    """
    whole = tensor.detach().contiguous()
    flat: Bits = whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy()
    return flat.view(_UNSIGNED[tensor.element_size()])


def from_bits(bits: Bits, dtype: torch.dtype) -> Tensor:
    """The tensor of shape (n,) whose bits these are."""
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.uint8)).view(dtype)


def narrow(bits: Bits, dtype: torch.dtype) -> tuple[int, Bits]:
    """The narrowest of :data:`STORAGES` that holds finite values exactly, by its number, and their bits in it.

    >>> narrow(bits_of(torch.tensor([1.0, -0.5])), torch.float32)[0]
    2
    """
    values = from_bits(bits, dtype)
    if dtype in (torch.float32, torch.float64) and bool(values.isfinite().all()):
        for number in (2, 3, 1):
            storage = STORAGES[number]
            if storage is not None and storage != dtype:
                small = values.to(storage)
                if np.array_equal(bits_of(small.to(dtype)), bits):
                    return number, bits_of(small)
    return 0, bits


def widen(bits: Bits, storage: int, dtype: torch.dtype) -> Bits:
    """Back from :func:`narrow`."""
    small = STORAGES[storage]
    return bits if small is None else bits_of(from_bits(bits, small).to(dtype))


def storage_type(storage: int, dtype: torch.dtype) -> np.dtype[Any]:
    """Little-endian unsigned integers as wide as a stored value."""
    size = (STORAGES[storage] or dtype).itemsize
    return np.dtype(_UNSIGNED[size]).newbyteorder("<")
