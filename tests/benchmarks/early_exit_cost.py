"""What early exits save on the clock (thread CPU time, interleaved, one thread), at about a quarter of the MACs.

    python tests/benchmarks/early_exit_cost.py [rounds]

Must be reached: at least 1.8 times faster than the plain network at batches of 128 and more, and never below 0.95 times
at batch 1, where each single sample leaves where its own threshold says. "Compaction" is `ExitInference.predict`, "all
exits" the same with thresholds at which nobody leaves: what asking the heads costs. Heads are untrained; thresholds are
set so that mean multiply-accumulates are about 25 %, which is all that a clock can see.
"""

import sys
from itertools import pairwise

import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_compress.dynamic import ExitInference, attach_exits, calibrate_exits, hang_on
from lightning_compress.measure import compare_latency
from lightning_compress.surgery import TracingInput

torch.set_num_threads(1)
BATCHES = (1, 8, 32, 128, 512)
SAMPLES, CLASSES, BUDGET = 512, 10, 0.25


class Stages(nn.Module):
    """Six 3x3 convolutions on 32x32 pictures."""

    def __init__(self, widths: tuple[int, ...] = (16, 16, 32, 32, 64, 64)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, stride=2 if number in (2, 4) else 1), nn.BatchNorm2d(b), nn.ReLU()
            )
            for number, (a, b) in enumerate(pairwise((3, *widths)))
        )
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = stage(images)
        return self.fc(images.mean(dim=(2, 3)))


def network_with_exits(images: Tensor) -> tuple[nn.Module, Tensor]:
    """The network, and what it says: labels with which no exit is ever better than the end."""
    torch.manual_seed(0)
    network = Stages().eval()
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    call = TracingInput("", (images[:8],), {})
    hang_on(network, "", attach_exits(network, call, ["stages.0", "stages.1", "stages.3"], pool=2))
    return network, labels


def main(rounds: int) -> None:
    images = torch.randn(SAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network, labels = network_with_exits(images)
    calibrate_exits(network, [(images, labels)], macs=BUDGET, confidence="margin")
    early = ExitInference(network)
    nobody = ExitInference(network, thresholds=[1e9] * 3)  # finite, so every head is asked
    console = Console()
    for batch in BATCHES:
        parts = images.split(batch)[: max(1, 64 // batch)]
        share = sum(early.predict(part).macs for part in parts) / sum(early.plain(part).macs for part in parts)

        def plain(parts: tuple[Tensor, ...] = parts) -> None:
            with torch.inference_mode():
                for part in parts:
                    network(part)

        def compaction(parts: tuple[Tensor, ...] = parts) -> None:
            for part in parts:
                early.predict(part)

        def all_exits(parts: tuple[Tensor, ...] = parts) -> None:
            for part in parts:
                nobody.predict(part)

        calls = {"plain": plain, "compaction": compaction, "all exits": all_exits}
        console.print(f"batch {batch}, {share:.1%} of the multiply-accumulates")
        console.print(compare_latency(calls, rounds=rounds, warmup=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
