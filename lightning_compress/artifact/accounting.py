"""Where the bytes of a compressed layer go, as Deep Compression counts them, beside what they really are.

Han, Mao and Dally, "Deep Compression", ICLR 2016: a kept weight is a number of fixed width and the gap before it, of
fixed width too; a gap that is too long for its field takes entries of its own ("fillers"). Huffman coding comes last.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_compress.artifact.dtypes import bits_of
from lightning_compress.artifact.entropy import CoderName
from lightning_compress.artifact.fields import FieldWriter
from lightning_compress.artifact.tensor_codec import encode_tensor

PLAIN_BITS = 32
MOST_SHARED = 256
"""With more distinct values than that a tensor is not clustered, and a value takes 32 bits."""


@dataclass(frozen=True)
class TensorAccount:
    """One tensor, counted and coded by itself; in a file, small ones share tables.

    Attributes:
        name: of the parameter.
        weights: its entries.
        kept: those that are not exactly zero.
        value_bits: width of a kept value before entropy coding.
        index_bits: width of a gap before entropy coding, the best one; 0 where nothing is zero.
        counted_bytes: what values, gaps and codebook take in fields of these widths, fillers included.
        coded_value_bits: bits of a kept value after entropy coding, on average.
        coded_index_bits: bits of a gap after entropy coding, on average.
        coded_bytes: what the tensor takes by itself, tables and headers included.
    """

    name: str
    weights: int
    kept: int
    value_bits: int
    index_bits: int
    counted_bytes: int
    coded_value_bits: float
    coded_index_bits: float
    coded_bytes: int


def account(module: nn.Module, coder: CoderName = "auto") -> tuple[TensorAccount, ...]:
    """The account of each parameter of ``module``, in its order.

    >>> import torch
    >>> layer = nn.Linear(100, 10, bias=False)
    >>> _ = layer.weight.data.copy_((torch.arange(1000) % 10 == 9).float().view(10, 100))
    >>> row, = account(layer)
    >>> row.kept, row.value_bits, row.index_bits, row.counted_bytes
    (100, 0, 4, 54)
    """
    return tuple(account_tensor(name, parameter.detach().cpu(), coder) for name, parameter in module.named_parameters())


def account_tensor(name: str, tensor: Tensor, coder: CoderName = "auto") -> TensorAccount:
    """The account of one tensor on the CPU."""
    bits = bits_of(tensor)
    places = np.flatnonzero(bits)
    distinct = len(np.unique(bits[places]))
    clustered = 0 < distinct <= MOST_SHARED
    value_bits = ceil(log2(distinct)) if clustered else PLAIN_BITS
    index_bits, entries = best_gap_width(places, value_bits) if len(places) < len(bits) else (0, len(places))
    codebook = distinct * PLAIN_BITS * clustered
    records, writer = encode_tensor(tensor, coder), FieldWriter()
    for record in records:
        record.write(writer)
    values = sum(record.values.size for record in records if record.values is not None)
    mask = sum(record.mask.size for record in records if record.mask is not None)
    kept = max(len(places), 1)
    return TensorAccount(
        name=name,
        weights=len(bits),
        kept=len(places),
        value_bits=value_bits,
        index_bits=index_bits,
        counted_bytes=ceil((entries * (value_bits + index_bits) + codebook) / 8),
        coded_value_bits=8 * values / kept,
        coded_index_bits=8 * mask / kept,
        coded_bytes=len(writer.data),
    )


def best_gap_width(places: NDArray[np.int64], value_bits: int) -> tuple[int, int]:
    """The width of the gaps with which entries of value and gap are smallest, and their number, fillers included.

    Args:
        places: positions of the entries that are not zero, rising.
        value_bits: width of a value; a filler has one too.

    >>> best_gap_width(np.array([3, 7, 100]), 4)
    (7, 3)
    """
    gaps = np.diff(places, prepend=-1) - 1
    sizes = []
    for width in range(1, 17):
        entries = len(gaps) + int((gaps >> width).sum())
        sizes.append((entries * (value_bits + width), width, entries))
    _, width, entries = min(sizes)
    return width, entries
