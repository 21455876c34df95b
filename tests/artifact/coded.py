"""Tensors and files to try the model file on."""

import json
import zlib

import numpy as np
import torch
from torch import nn

from lightning_compress.artifact.index import NAME

BENCH = ("iid90", "rows", "dense5", "small", "conv")
NNCODEC_BYTES = {"iid90": 177259, "rows": 127546, "dense5": 478970, "small": 1017, "conv": 10288}
ZERO_ORDER_BYTES = {"iid90": 174333, "rows": 137040, "dense5": 456882, "small": 983, "conv": 10151}


def bench_tensor(name):
    """Five clustered tensors on which nncodec 2.1.3 (lossless stage, its best setting) was measured."""
    rng = np.random.Generator(np.random.PCG64(100 + BENCH.index(name)))
    rows, columns, density, top, decay = {
        "iid90": (1536, 1024, 0.10, 15, 0.25),
        "rows": (1024, 1536, None, 15, 0.3),
        "dense5": (768, 1024, 1.0, 15, 0.15),
        "small": (300, 64, 0.05, 3, 0.5),
        "conv": (128, 576, 0.15, 7, 0.4),
    }[name]
    density = np.clip(rng.gamma(0.8, 0.1, rows), 0.002, 0.9) if density is None else np.full(rows, density)
    magnitude = np.minimum(rng.geometric(decay, (rows, columns)), top)
    sign = rng.integers(0, 2, (rows, columns)) * 2 - 1
    keep = rng.random((rows, columns)) < density[:, None]
    return torch.from_numpy((magnitude * sign * keep).astype(np.float32) * np.float32(0.03125))


def pruned(rows, columns, sparsity, values=31, seed=0, dtype=torch.float32):
    """Levels of a Laplacian on a grid, some of them taken away."""
    rng = np.random.default_rng(seed)
    levels = np.round(rng.laplace(0, values / 8, (rows, columns))).clip(-(values // 2), values // 2)
    levels[levels == 0] = 1
    return torch.from_numpy(np.where(rng.random((rows, columns)) >= sparsity, levels / 32, 0.0)).to(dtype)


def bits(tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


class Everything(nn.Module):
    """All that can stand in a state_dict, without a random number."""

    def __init__(self, filled=True):
        super().__init__()
        count = torch.arange(64 * 48)
        self.pruned = nn.Parameter(torch.where(count % 11 == 0, (count * 7919 % 7 - 3.0) / 16, 0.0).view(64, 48))
        self.tied = nn.Linear(48, 64, bias=False)
        self.tied.weight = self.pruned
        self.rows = nn.Parameter(
            torch.where(count % (2 + count // 96) == 0, count * 31 % 5 + 0.3, 0.0).view(64, 1, 6, 8)
        )
        self.dense = nn.Parameter((count * 7919 % 3001).float().sqrt())
        self.codebook = nn.Parameter(torch.tensor([0.11, -0.7, 3e-9])[count % 3].double())
        self.bias = nn.Parameter((count[:40] * 37 % 101 / 64).half().float())
        self.bias2 = nn.Parameter((count[:30] * 37 % 103 / 64).half().float())
        self.register_buffer("half_", torch.where(count[:200] % 3 == 0, count[:200] / 8, 0).half())
        self.register_buffer("brain", (count[:99] / 3).bfloat16())
        self.register_buffer("odd", torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-42]))
        self.register_buffer("flags", count[:77] % 5 == 0)
        self.register_buffer("count", torch.tensor(2**40))
        self.register_buffer("bytes_", (count[:300] % 251).to(torch.uint8))
        self.register_buffer("negative", -count[:9])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("zeros", torch.zeros(1000))
        self.register_buffer("complex_", torch.complex(count[:5].float(), -count[:5].float()))
        if not filled:
            with torch.no_grad():
                for tensor in self.state_dict().values():
                    tensor.zero_()


def split(data):
    """The header, the tensors as bytes, of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    spans = {name: fields["data_offsets"] for name, fields in header.items() if name != "__metadata__"}
    return header, {name: body[start:stop] for name, (start, stop) in spans.items()}


def join(header, tensors, *, seal=True):
    """A file again; every checksum is put right, as a forger would."""
    start, parts = 0, []
    for name, data in tensors.items():
        if name != NAME and seal and data[:2] == b"LC":
            data = data[:-4] + zlib.crc32(data[:-4], zlib.crc32(name.encode())).to_bytes(4, "little")
        header[name] = {**header[name], "data_offsets": [start, start + len(data)]}
        if header[name]["dtype"] == "U8" and len(header[name]["shape"]) == 1:
            header[name]["shape"] = [len(data)]
        parts.append(data)
        start += len(data)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw = len(raw).to_bytes(8, "little") + raw
    body = b"".join(parts)
    return reseal(raw + body) if seal else raw + body


def reseal(data):
    """The index's checksum put right; it is the last tensor of the file."""
    length = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + length])[NAME]["data_offsets"][0] + 8 + length
    crc = zlib.crc32(data[start:-4], zlib.crc32(data[: 8 + length]))
    return data[:-4] + crc.to_bytes(4, "little")


def quantized(rows, columns, bits, sparsity=0.0, seed=0):
    """Rows rounded to a scale of their own, as quantization by channel leaves them."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator).add(0.1)
    scale = matrix.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    kept = torch.rand(rows, columns, generator=generator) >= sparsity
    return torch.where(kept, (matrix / scale).round() * scale, 0.0) + 0.0


class Quantized(nn.Module):
    """Matrices of 8, 4 and 2 bits with a scale for each row, dense and pruned."""

    def __init__(self, filled=True):
        super().__init__()
        for number, (bits, sparsity) in enumerate(((8, 0.0), (4, 0.0), (4, 0.9), (2, 0.3))):
            values = quantized(20, 60, bits, sparsity, number) if filled else torch.zeros(20, 60)
            self.register_buffer(f"weight{number}", values)
