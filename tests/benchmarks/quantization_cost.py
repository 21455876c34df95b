"""What fake quantization costs a training step, as ratios to the plain one (interleaved, one thread).

    python tests/benchmarks/quantization_cost.py [rounds]

Rows: the plain step, the plain step again (A/A), observed ranges, frozen ranges, LSQ; on a conv net and a perceptron in
eager mode, and on the perceptron compiled, against the compiled plain one.
"""

import copy
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_compress.measure import compare_latency
from lightning_compress.quantization.network import FakeQuantization
from lightning_compress.quantization.scale_training import ScaleTraining
from lightning_compress.quantization.settings import Settings

torch.set_num_threads(1)


def conv_net() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise((3, 32, 64, 64, 128, 128))):
        stride = 1 + place % 2
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return net, torch.randn(32, 3, 32, 32)


def perceptron() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return net, torch.randn(128, 784)


class Root(nn.Module):
    """Around the network, so that a compiled one is a part as in a LightningModule."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Class scores."""
        return self.network(inputs)


def step(
    net: nn.Module, inputs: Tensor, scale: str | None, *, compiled: bool = False, frozen: bool = False
) -> Callable[[], None]:
    root = Root(copy.deepcopy(net))
    optimizer = torch.optim.SGD(root.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.randint(10, (len(inputs),))
    if compiled:
        root.network = torch.compile(root.network)  # type: ignore[assignment]
    if scale is not None:
        quantization = FakeQuantization(root, Settings(8, 8, scale=scale))
        quantization.attach()
        quantization.enable()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            root(inputs)
        if frozen:
            quantization.freeze()
        if quantization.learned:
            training = ScaleTraining(quantization.learned, 2e-3, quantization.keep_in_range)
            training.attach([optimizer], None)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(root(inputs), labels).backward()
        optimizer.step()

    return run


def variants(build: Callable[[], tuple[nn.Module, Tensor]], *, compiled: bool) -> dict[str, Callable[[], None]]:
    net, inputs = build()
    rows = {
        "plain step": step(net, inputs, None, compiled=compiled),
        "observed": step(net, inputs, "observed", compiled=compiled),
        "observed, frozen": step(net, inputs, "observed", compiled=compiled, frozen=True),
        "lsq": step(net, inputs, "lsq", compiled=compiled),
    }
    for run in rows.values():
        run()
    return rows


def main(rounds: int) -> None:
    console = Console()
    for title, build, compiled in (
        ("conv net 3-32-64-64-128-128, every second stride 2, 32x32, batch 32, eager", conv_net, False),
        ("perceptron 784-512-512, batch 128, eager", perceptron, False),
        ("perceptron 784-512-512, batch 128, compiled", perceptron, True),
    ):
        console.rule(title)
        console.print(compare_latency(variants(build, compiled=compiled), rounds=rounds, warmup=5))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
