"""What our per-step work costs, as ratios to the plain training step (thread CPU time, interleaved, one thread).

    python tests/benchmarks/step_cost.py

Rows: the plain step, the plain step again (A/A), masks after the step, torch's own pruning (as Lightning's ModelPruning
does), and what each criterion gathers that needs data, as it is gathered in a fit: activations of some batches,
gradients of all.
"""

import copy
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_compress.measure import compare_latency
from lightning_compress.pruning import Masks
from lightning_compress.pruning.evidence import CURVATURE, OUTPUTS, needs_of
from lightning_compress.pruning.gathering import Gathering
from lightning_compress.registry import names, resolve

torch.set_num_threads(1)
SPARSITY = 0.9


def conv_net() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((1, 16, 32, 48, 80)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 10)), torch.randn(64, 1, 8, 8)


def mlp() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return net, torch.randn(64, 784)


CASES = {
    "conv net, 59 K, SGD with momentum": (conv_net, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),
    "MLP 784-300-100, 266 K, Adam": (mlp, lambda p: torch.optim.Adam(p, lr=1e-4)),
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> Callable[[], None]:
    labels = torch.randint(10, (len(inputs),))

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()

    return run


def variants(build: Callable[[], tuple[nn.Module, Tensor]], optimizer_of: Callable) -> dict[str, Callable[[], None]]:
    net, inputs = build()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        duplicate = copy.deepcopy(net)
        return duplicate, optimizer_of(duplicate.parameters())

    plain = step(*fresh(), inputs)

    masked, optimizer = fresh()
    masks = Masks(masked)
    masks.set({name: torch.rand_like(p) > SPARSITY for name, p in masked.named_parameters() if p.dim() > 1})
    optimizer.register_step_post_hook(lambda *_: masks.apply_())

    pruned, _ = fresh()
    for layer in pruned.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            prune.random_unstructured(layer, "weight", SPARSITY)

    return {
        "plain step": plain,
        "masks": step(masked, optimizer, inputs),
        "torch.nn.utils.prune": step(pruned, optimizer_of(pruned.parameters()), inputs),
        **{name: gathering_step(*fresh(), inputs, needs) for name, needs in gathered().items()},
    }


def gathered() -> dict[str, frozenset[str]]:
    """The criteria that gather data from the training passes, and what they need; one of those that need the same."""
    package = "lightning_compress.pruning.criteria"
    found: dict[frozenset[str], str] = {}
    for name in names(package):
        needs = needs_of(resolve(name, package)) - CURVATURE - {"scale", "of_neurons"}
        if needs:
            found.setdefault(needs, name)
    return {name: needs for needs, name in found.items()}


def gathering_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, needs: frozenset[str]
) -> Callable[[], None]:
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    observed = layers[1:] if needs & OUTPUTS else layers
    gathering = Gathering(net, needs, observed, [f"{name}.weight" for name in layers])
    gathering.attach()
    labels, count = torch.randint(10, (len(inputs),)), [0]

    def run() -> None:
        gathering.begin_batch(count[0])
        count[0] += 1
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        gathering.before_step()
        optimizer.step()

    return run


def main(rounds: int) -> None:
    console = Console()
    for title, (build, optimizer_of) in CASES.items():
        console.rule(title)
        console.print(compare_latency(variants(build, optimizer_of), rounds=rounds, warmup=20))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
