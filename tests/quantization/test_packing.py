"""Bits and back, exactly."""

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.quantization import pack_binary, pack_ternary, packing, unpack_binary, unpack_ternary
from lightning_compress.quantization.packing import pack_numbers, unpack_numbers

SHAPES = [(1,), (7,), (3, 5), (4, 3, 3, 3), (0,), (9, 1), (0, 4)]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 9, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_come_back_in_as_many_bytes_as_they_need(shape, width):
    numbers = torch.randint(0, min(2**width, 2**15), shape, dtype=torch.int32)
    packed = pack_numbers(numbers, width)
    assert packed.numel() == -(-numbers.numel() * width // 8)
    assert torch.equal(unpack_numbers(packed, width, shape).int(), numbers)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_long_tensors_are_packed_in_pieces(width, monkeypatch):
    numbers = torch.randint(0, 2**width, (1003,))
    whole = pack_numbers(numbers, width)
    monkeypatch.setattr(packing, "PIECE", 64)
    assert torch.equal(pack_numbers(numbers, width), whole)
    assert torch.equal(unpack_numbers(whole, width, (1003,)).long(), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
@pytest.mark.parametrize("rows", [False, True])
def test_binary_weights_come_back_bit_for_bit(shape, dtype, rows):
    scales = (
        torch.rand(shape[0], dtype=torch.float64).to(dtype) + 0.1 if rows else torch.full((shape[0],), 0.3, dtype=dtype)
    )
    weights = torch.where(torch.rand(shape) < 0.5, 1, -1).to(dtype) * scales.view(-1, *[1] * (len(shape) - 1))
    bits, kept = pack_binary(weights)
    assert bits.numel() == -(-weights.numel() // 8)
    assert rows or kept.numel() == 1
    back = unpack_binary(bits, kept, shape)
    assert back.dtype == dtype
    assert torch.equal(back, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kinds", [(-0.3, 0.0, 0.7), (0.0,), (0.5,), (-0.25, 0.0)], ids=str)
def test_ternary_weights_come_back_bit_for_bit(shape, dtype, kinds):
    weights = torch.tensor(kinds, dtype=dtype)[torch.randint(0, len(kinds), shape)]
    bits, values = pack_ternary(weights)
    assert bits.numel() == -(-weights.numel() * 2 // 8)
    back = unpack_ternary(bits, values, shape)
    assert back.dtype == dtype
    assert torch.equal(back, weights)


@pytest.mark.parametrize(
    "weights", [torch.tensor([0.5, -0.4]).view(1, 2), torch.tensor([0.5, 0.0]), torch.tensor([1.0, float("nan")])]
)
def test_weights_that_are_not_binary_are_refused(weights):
    with pytest.raises(CompressionError, match="not binary"):
        pack_binary(weights.view(1, -1))


def test_weights_that_are_not_ternary_are_refused():
    for weights in (torch.tensor([0.5, 0.4]), torch.tensor([-0.5, -0.4, 0.0]), torch.tensor([float("nan")])):
        with pytest.raises(CompressionError, match="not ternary"):
            pack_ternary(weights)


def test_bits_that_are_too_few_or_mean_nothing_are_refused():
    with pytest.raises(CompressionError, match="3 bytes are not 17 numbers of 2 bits"):
        unpack_numbers(torch.zeros(3, dtype=torch.uint8), 2, (17,))
    with pytest.raises(CompressionError, match="do not fit 2 bits"):
        pack_numbers(torch.tensor([4]), 2)
    with pytest.raises(CompressionError, match="bits 11"):
        unpack_ternary(torch.tensor([255], dtype=torch.uint8), torch.tensor([1.0, -1.0]), (4,))
