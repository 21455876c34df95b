"""Exact global magnitude thresholds over many weights: time for each weight, and memory beyond the weights themselves.

    python tests/benchmarks/threshold.py [1e7 1e8 1e9]

1e9 weights are 4 GB, and 1 GB more for the masks of the comparison with a full sort, which is made up to 1e7.
"""

import resource
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from lightning_compress.pruning.allocations.global_ import global_
from lightning_compress.pruning.weights import Scores

torch.set_num_threads(1)
SPARSITY, TENSORS = 0.9, 20


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(sizes: list[int]) -> None:
    table = Table("weights", "seconds", "ns a weight", "weights, MB", "peak beyond them, MB", "exact")
    global_({"warm": torch.rand(10**5)}, 10**4)
    base = peak()
    for size in sizes:
        weights = {str(k): torch.randn(size // TENSORS) for k in range(TENSORS)}
        drop = round(SPARSITY * size)
        start = time.process_time()
        counts = global_(Scores(weights, lambda name, weights=weights: weights[name].abs()), drop)
        seconds = time.process_time() - start
        megabytes = 4 * size / 2**20
        beyond = peak() - base - megabytes
        exact = sum(counts.values()) == drop
        if size <= 10**7:
            order = torch.cat([weight.abs() for weight in weights.values()]).argsort(stable=True)[:drop]
            owners = torch.bincount(order // (size // TENSORS), minlength=TENSORS)
            exact = exact and counts == {str(k): count for k, count in enumerate(owners.tolist())}
        table.add_row(
            f"{size:.0e}",
            f"{seconds:.2f}",
            f"{1e9 * seconds / size:.1f}",
            f"{megabytes:.0f}",
            f"{beyond:.0f}",
            str(exact),
        )
        del weights
    Console().print(table)


if __name__ == "__main__":
    main([int(float(size)) for size in sys.argv[1:]] or [10**7, 10**8])
