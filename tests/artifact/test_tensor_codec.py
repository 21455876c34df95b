"""Tensors to records and back, and how small the records are."""

import numpy as np
import pytest
import torch
from artifact.coded import BENCH, NNCODEC_BYTES, ZERO_ORDER_BYTES, bench_tensor, bits, pruned, quantized, same_bits

from lightning_compress.artifact.dtypes import DTYPES, bits_of
from lightning_compress.artifact.entropy import Coder
from lightning_compress.artifact.fields import FieldReader, FieldWriter
from lightning_compress.artifact.mask_codec import GapMask
from lightning_compress.artifact.tensor_codec import (
    decode_tensor,
    encode_tensor,
    entropy_bound,
    pieces,
    read_records,
    write_records,
)
from lightning_compress.artifact.value_codec import Kind

CODERS = ["auto", "smallest", "deflate", "huffman", "rans"]


def written(tensor, coder="auto"):
    writer = FieldWriter()
    write_records(encode_tensor(tensor, coder), writer)
    return bytes(writer.data)


def round_trip(tensor, coder="auto"):
    reader = FieldReader(written(tensor, coder), "tensor")
    back = torch.empty(tensor.shape, dtype=tensor.dtype)
    decode_tensor(read_records(reader, tensor.shape, tensor.dtype), back)
    reader.finish()
    return back


@pytest.mark.parametrize("seed", range(120))
def test_any_tensor_comes_back_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(0, 14, rng.integers(0, 5)))
    dtype = DTYPES[seed % len(DTYPES)]
    size = int(np.prod(shape)) * dtype.itemsize
    raw = rng.integers(0, 2 if dtype is torch.bool else 256, size).astype(np.uint8)
    tensor = (
        torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype).reshape(shape)
        if size
        else torch.empty(shape, dtype=dtype)
    )
    if seed % 3:
        values = tensor.reshape(-1)[: 1 + seed % 40]
        if len(values):
            tensor = values[torch.from_numpy(rng.integers(0, len(values), int(np.prod(shape))))].reshape(shape)
    keep = torch.from_numpy(np.asarray(rng.random(shape) >= rng.choice([0, 0.2, 0.5, 0.9, 0.99, 1])))
    tensor = torch.where(keep, tensor, torch.zeros((), dtype=dtype)) if dtype.itemsize != 1 else tensor
    assert same_bits(round_trip(tensor, CODERS[seed % 3]), tensor)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("sparsity", [0, 0.01, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pruned_and_clustered_tensors_come_back(dtype, sparsity, coder):
    tensor = pruned(90, 70, sparsity, dtype=dtype)
    assert same_bits(round_trip(tensor, coder), tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4e38])
def test_odd_values_come_back(value):
    for tensor in (torch.full((40,), value), torch.tensor([0.0, value, 1.0, value, -0.0])):
        assert same_bits(round_trip(tensor), tensor)


def test_bits_of_a_nan_are_kept():
    tensor = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert same_bits(round_trip(tensor), tensor)


def test_tensors_of_several_pieces_come_back(monkeypatch):
    monkeypatch.setattr("lightning_compress.artifact.tensor_codec.PIECE", 1000)
    for shape in [(64, 70), (3, 2500), (4500,), (70, 8, 3, 3)]:
        tensor = pruned(shape[0], int(np.prod(shape[1:])), 0.8).reshape(shape)
        assert len(list(pieces(shape))) > 1
        assert same_bits(round_trip(tensor), tensor)


def test_a_tensor_that_is_not_contiguous_comes_back():
    tensor = pruned(40, 30, 0.5).T
    assert same_bits(round_trip(tensor), tensor)


def test_encoding_leaves_the_tensor_alone():
    tensor = pruned(40, 30, 0.5)
    before = bits(tensor).clone()
    written(tensor)
    assert torch.equal(bits(tensor), before)


@pytest.mark.parametrize(
    ("tensor", "kind", "masked"),
    [
        (pruned(64, 64, 0.9), Kind.GRID, True),
        (pruned(64, 64, 0.0), Kind.GRID, False),
        (torch.tensor([0.1, -0.73, 0.21])[torch.arange(3000) % 3], Kind.CODEBOOK, False),
        (torch.arange(1.0, 3001.0).sqrt(), Kind.PLANES, False),
        (torch.where(torch.arange(3000) % 9 == 0, torch.arange(1.0, 3001.0).sqrt(), 0.0), Kind.PLANES, True),
    ],
)
def test_the_values_say_what_a_tensor_is(tensor, kind, masked):
    (record,) = encode_tensor(tensor)
    assert (record.values.kind, record.mask is not None) == (kind, masked)


def test_rows_of_unlike_density_are_told_apart():
    rng = np.random.default_rng(0)
    density = np.repeat([0.01, 0.3], 100)[:, None]
    tensor = torch.from_numpy((rng.random((200, 500)) < density).astype(np.float32))
    (record,) = encode_tensor(tensor)
    assert isinstance(record.mask, GapMask)
    assert len(record.mask.classes) > 1


def test_columns_of_unlike_density_are_read_column_by_column():
    rng = np.random.default_rng(0)
    tensor = torch.from_numpy((rng.random((500, 200)) < np.repeat([0.005, 0.3], 100)).astype(np.float32))
    assert encode_tensor(tensor)[0].transposed
    assert same_bits(round_trip(tensor), tensor)


@pytest.mark.parametrize("name", BENCH)
def test_bytes_are_at_most_101_percent_of_nncodecs_with_deflate(name):
    assert len(written(bench_tensor(name), "deflate")) <= 1.01 * NNCODEC_BYTES[name]


@pytest.mark.parametrize("coder", ["auto", "smallest"])
@pytest.mark.parametrize("name", BENCH)
def test_bytes_are_at_most_nncodecs_with_the_best_coder(name, coder):
    tensor = bench_tensor(name)
    assert entropy_bound(bits_of(tensor)) == pytest.approx(ZERO_ORDER_BYTES[name], rel=0.001)
    assert len(written(tensor, coder)) <= NNCODEC_BYTES[name]
    assert same_bits(round_trip(tensor, coder), tensor)


@pytest.mark.parametrize("name", ["iid90", "rows", "dense5"])
def test_many_weights_are_read_fast_unless_the_last_hundredth_is_asked_for(name):
    tensor = bench_tensor(name)
    (record,) = encode_tensor(tensor, "auto")
    assert Coder.RANS not in {stream.coder for stream in record.values.streams}
    assert len(written(tensor, "smallest")) <= len(written(tensor, "auto")) <= 1.01 * len(written(tensor, "smallest"))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("values", [2, 4, 7, 15, 31])
def test_bytes_are_within_a_hundredth_of_the_zero_order_bound(values, sparsity):
    tensor = pruned(512, 512, sparsity, values)
    assert len(written(tensor, "smallest")) <= 1.01 * entropy_bound(bits_of(tensor))


@pytest.mark.parametrize("values", [2, 4, 7, 15, 31])
def test_at_99_percent_the_step_and_the_tables_are_forty_bytes_above_the_bound(values):
    tensor = pruned(512, 512, 0.99, values)
    assert len(written(tensor)) <= 45 + entropy_bound(bits_of(tensor))


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(("bits", "sparsity"), [(2, 0.0), (4, 0.0), (8, 0.0), (8, 0.5), (4, 0.9)])
def test_rows_with_a_scale_each_come_back_and_take_their_bits(bits, sparsity, coder):
    tensor = quantized(64, 300, bits, sparsity)
    assert same_bits(round_trip(tensor, coder), tensor)
    (record,) = encode_tensor(tensor, coder)
    assert record.values.kind is Kind.ROWS
    assert len(written(tensor, coder)) <= 64 * 4 + 1.05 * tensor.numel() * bits / 8


def test_the_levels_of_fake_quantization_are_found():
    weight, scale = torch.randn(30, 9, generator=torch.Generator().manual_seed(1)), torch.rand(30) * 0.05 + 0.02
    zero = torch.zeros(30, dtype=torch.int32)
    tensor = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127) + 0.0
    assert encode_tensor(tensor)[0].values.kind is Kind.ROWS
    assert same_bits(round_trip(tensor), tensor)


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -0.0, 0.1234567])
def test_one_entry_off_the_grids_is_not_lost(damage):
    tensor = quantized(16, 100, 8)
    tensor[7, 50] = damage
    assert same_bits(round_trip(tensor), tensor)


def test_rows_that_are_zero_throughout_have_a_step_too():
    tensor = quantized(16, 100, 8)
    tensor[[0, 3, 15]] = 0.0
    assert encode_tensor(tensor)[0].values.kind is Kind.ROWS
    assert same_bits(round_trip(tensor), tensor)
