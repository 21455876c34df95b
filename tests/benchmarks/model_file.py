"""What the model file costs: bytes against the bound and nncodec, time against ``torch.load``, memory.

    python tests/benchmarks/model_file.py

Times are medians of interleaved rounds, CPU time of one thread, and shown as ``torch.load`` of the same tensor in fp32
over ours (1 is as fast). nncodec's are those measured in the same way with release 2.1.3, on another machine.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from artifact.coded import BENCH, NNCODEC_BYTES, bench_tensor

from lightning_compress.artifact import load_compressed, save_compressed
from lightning_compress.artifact.dtypes import bits_of
from lightning_compress.artifact.fields import FieldWriter
from lightning_compress.artifact.tensor_codec import decode_tensor, encode_tensor, entropy_bound, write_records
from lightning_compress.measure import compare_latency

torch.set_num_threads(1)
NNCODEC_DECODING = {"iid90": 0.0377, "rows": 0.0425, "dense5": 0.0113, "small": 0.5235, "conv": 0.1208}
CODERS = ("auto", "smallest", "deflate", "rans", "huffman")


def tensors(rounds: int) -> Table:
    table = Table("tensor", "coder", "bytes", "/ bound", "/ nncodec", "decode", "nncodec's", "encode", title="tensors")
    with tempfile.TemporaryDirectory() as folder:
        for name in BENCH:
            tensor, path = bench_tensor(name), Path(folder, name)
            torch.save(tensor, path)
            for coder in CODERS:
                records, out = encode_tensor(tensor, coder), torch.empty_like(tensor)
                writer = FieldWriter()
                write_records(records, writer)
                calls = {
                    "torch.load": lambda path=path: torch.load(path),
                    "decode": lambda records=records, out=out: decode_tensor(records, out),
                    "encode": lambda tensor=tensor, coder=coder: encode_tensor(tensor, coder),
                }
                result = compare_latency(calls, rounds=rounds, warmup=1)
                table.add_row(
                    name,
                    coder,
                    f"{len(writer.data):,}",
                    f"{len(writer.data) / entropy_bound(bits_of(tensor)):.3f}",
                    f"{len(writer.data) / NNCODEC_BYTES[name]:.3f}",
                    f"{1 / result['decode'].ratio.median:.4f}",
                    f"{NNCODEC_DECODING[name]:.4f}",
                    f"{1 / result['encode'].ratio.median:.4f}",
                )
    return table


def large_network() -> nn.Module:
    """The matrices of a ResNet-50, 90 % zeros, the rest on 5 bits."""
    generator = np.random.default_rng(0)
    shapes = [(64, 147)]
    for width, blocks, inner in ((256, 3, 64), (512, 4, 128), (1024, 6, 256), (2048, 3, 512)):
        for block in range(blocks):
            inputs = width if block else width // 2 if width > 256 else 64
            shapes += [(inner, inputs), (inner, inner * 9), (width, inner)] + ([] if block else [(width, inputs)])
    net = nn.Module()
    for number, shape in enumerate([*shapes, (1000, 2048)]):
        levels = np.clip(np.rint(generator.laplace(0, 4, shape)), -15, 15)
        levels[levels == 0] = 1
        values = np.where(generator.random(shape) < 0.1, levels * 0.01, 0.0).astype(np.float32)
        net.register_parameter(f"weight{number}", nn.Parameter(torch.from_numpy(values)))
    return net


def network() -> Table:
    table = Table("coder", "dense MB", "MB", "ratio", "save s", "load s", title="a network of ResNet-50's matrices")
    net = large_network()
    with tempfile.TemporaryDirectory() as folder:
        for coder in ("auto", "smallest", "deflate"):
            start = time.process_time()
            summary = save_compressed(net, Path(folder, "m.lcz"), coder=coder)
            saved = time.process_time()
            load_compressed(Path(folder, "m.lcz"), into=net)
            loaded = time.process_time()
            dense = 4 * sum(p.numel() for p in net.parameters())
            row = (dense / 1e6, summary.bytes / 1e6, summary.ratio, saved - start, loaded - saved)
            table.add_row(coder, *(f"{figure:.2f}" for figure in row))
    return table


def peak_memory() -> int:
    """Bytes, of Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory(action: str) -> None:
    """Prints by how much the peak of the memory grows, in multiples of the largest tensor."""
    net = nn.Module()
    for number in range(2):
        values = torch.randint(-3, 4, (8192, 8192)).to(torch.float32) * 0.01
        values[torch.rand(8192, 8192) < 0.9] = 0
        net.register_parameter(f"weight{number}", nn.Parameter(values))
    del values
    path = Path(tempfile.gettempdir(), f"memory_{action}.lcz")
    if action == "load":
        subprocess.run([sys.executable, __file__, "memory", "save"], check=True, stdout=subprocess.DEVNULL)
        path = path.with_name("memory_save.lcz")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_memory()
    if action == "save":
        save_compressed(net, path)
    else:
        load_compressed(path, into=net)
    largest = max(4 * weight.numel() for weight in net.parameters())
    print(f"{action}: {(peak_memory() - before) / largest:.2f} of the largest tensor")


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(sys.argv[2])
    else:
        console = Console()
        console.print(tensors(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
        console.print(network())
        for action in ("save", "load"):
            subprocess.run([sys.executable, __file__, "memory", action], check=True)
