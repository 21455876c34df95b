"""Small whole numbers as bits: codebook numbers, signs and ternary weights, exactly and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError

PIECE = 2**20


def pack_numbers(numbers: Tensor, width: int) -> Tensor:
    """Numbers from 0 to ``2**width - 1``, ``width`` bits each, highest bit first; zeros fill the last byte.

    Args:
        numbers: whole numbers, any shape.
        width: 1 to 16.

    Returns:
        uint8, shape (ceil(n * width / 8),).

    Raises:
        CompressionError: a number that does not fit.

    >>> pack_numbers(torch.tensor([1, 2, 3]), 2).tolist()
    [108]
    """
    flat = numbers.detach().flatten().cpu().numpy().astype(np.int64)
    if not 1 <= width <= 16 or (len(flat) and (flat.min() < 0 or flat.max() >> width)):
        raise CompressionError(f"Numbers from {flat.min(initial=0)} to {flat.max(initial=0)} do not fit {width} bits.")
    shifts = np.arange(width - 1, -1, -1)
    pieces = [
        np.packbits(((flat[start : start + PIECE, None] >> shifts) & 1).astype(np.uint8))
        for start in range(0, len(flat), PIECE)
    ]
    return torch.from_numpy(np.concatenate(pieces)) if pieces else torch.empty(0, dtype=torch.uint8)


def unpack_numbers(packed: Tensor, width: int, shape: Sequence[int]) -> Tensor:
    """Back from :func:`pack_numbers`; int16.

    Raises:
        CompressionError: too few or too many bytes.

    >>> unpack_numbers(pack_numbers(torch.tensor([[1, 2, 3]]), 2), 2, (1, 3)).tolist()
    [[1, 2, 3]]
    """
    count = prod(shape)
    if packed.numel() != -(-count * width // 8):
        raise CompressionError(f"{packed.numel()} bytes are not {count} numbers of {width} bits.")
    data = packed.cpu().numpy()
    numbers = np.zeros(count, np.int16)
    for start in range(0, count, PIECE):  # a piece begins at a whole byte
        stop = min(start + PIECE, count)
        bits = np.unpackbits(data[start * width // 8 : -(-stop * width // 8)], count=(stop - start) * width)
        for column in bits.reshape(-1, width).T:
            numbers[start:stop] = numbers[start:stop] << 1 | column
    return torch.from_numpy(numbers).view(*shape)


def pack_binary(weights: Tensor) -> tuple[Tensor, Tensor]:
    """One bit a weight, and one scale for each output neuron or for all.

    Args:
        weights: each entry plus or minus the scale of its row (first dimension); no zeros.

    Returns:
        uint8 bits (1 is plus), and the scales, shape (rows,) or (1,) where they are all equal.

    Raises:
        CompressionError: weights of more than two values.

    >>> bits, scales = pack_binary(torch.tensor([[0.5, -0.5], [0.5, 0.5]]))
    >>> bits.tolist(), scales.tolist()
    ([176], [0.5])
    """
    scales = _scales(weights, weights.abs())
    if not bool((weights.abs() == _per_row(scales, weights)).all()) or not bool((scales > 0).all()):
        raise CompressionError("These weights are not binary: plus or minus one scale in each row.")
    return pack_numbers(weights > 0, 1), scales


def unpack_binary(bits: Tensor, scales: Tensor, shape: Sequence[int]) -> Tensor:
    """Back from :func:`pack_binary`, bit for bit.

    >>> weights = torch.tensor([[0.5, -0.5], [0.25, 0.25]])
    >>> torch.equal(unpack_binary(*pack_binary(weights), (2, 2)), weights)
    True
    """
    signs = unpack_numbers(bits, 1, shape).to(scales.device, scales.dtype) * 2 - 1
    return signs * _per_row(scales, signs)


def pack_ternary(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Two bits a weight (0: zero, 1: plus, 2: minus), and the two values.

    Args:
        weights: zeros (+0.0), one positive and one negative value, both or either of them.

    Returns:
        uint8 bits, and the positive and the negative value, shape (2,); 0 where there is none.

    Raises:
        CompressionError: more values than that.

    >>> bits, values = pack_ternary(torch.tensor([0.5, 0.0, -0.25, 0.5]))
    >>> bits.tolist(), values.tolist()
    ([73], [0.5, -0.25])
    """
    positive, negative = torch.unique(weights[weights > 0]), torch.unique(weights[weights < 0])
    if len(positive) > 1 or len(negative) > 1 or bool(weights.isnan().any()):
        raise CompressionError("These weights are not ternary: zero, one positive and one negative value.")
    none = weights.new_zeros(1)
    values = torch.cat([positive if len(positive) else none, negative if len(negative) else none])
    return pack_numbers((weights > 0).int() + 2 * (weights < 0).int(), 2), values.detach()


def unpack_ternary(bits: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Back from :func:`pack_ternary`, bit for bit.

    >>> weights = torch.tensor([0.5, 0.0, -0.25, 0.5])
    >>> torch.equal(unpack_ternary(*pack_ternary(weights), (4,)), weights)
    True
    """
    numbers = unpack_numbers(bits, 2, shape).long()
    if bool((numbers > 2).any()):
        raise CompressionError("The bits 11 are no ternary weight.")
    return torch.cat([values.new_zeros(1), values])[numbers.to(values.device)]


def _scales(weights: Tensor, magnitudes: Tensor) -> Tensor:
    rows = magnitudes.detach().reshape(len(weights), -1)[:, 0] if weights.dim() else magnitudes.detach().reshape(1)
    return rows[:1].clone() if bool((rows == rows[:1]).all()) else rows.clone()


def _per_row(scales: Tensor, like: Tensor) -> Tensor:
    return scales.view(-1, *[1] * (like.dim() - 1)) if like.dim() else scales.view(())
