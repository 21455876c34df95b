"""What each layer costs at each number of bits, the others left as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.batches import batches_of
from lightning_compress.quantization.grid import check_bits
from lightning_compress.quantization.network import FakeQuantization
from lightning_compress.quantization.observation import Observer
from lightning_compress.quantization.settings import Settings
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import evaluation_mode
from lightning_compress.surgery.tracing import call_with_batch, tensors_in


@dataclass(frozen=True)
class Sensitivity:
    """Cost of each layer at each number of bits.

    Attributes:
        costs: layer -> bits -> cost, 0 where nothing changes.
        sizes: layer -> number of weights.
    """

    costs: Mapping[str, Mapping[int, float]]
    sizes: Mapping[str, int]


@torch.no_grad()
def sensitivity(
    module: nn.Module,
    data: Iterable[Any],
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    *,
    forward: Callable[[nn.Module, Any], object] | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    weight_observer: str | Observer = "mse",
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Sensitivity:
    """Round the weights of one layer at a time; the module is left as it was.

    Args:
        module: the network.
        data: batches of what ``forward`` takes.
        bits: to try, each 2 to 8.
        forward: runs the network on a batch; by default calls it with the batch, or with the first element of a tuple
            or list.
        loss: a scalar of module and batch whose increase is the cost; None: the mean squared change of the outputs,
            relative to their mean square.
        weight_observer: the range of weights.
        targets: patterns for names of layers.
        exclude: patterns of what to leave out.

    Raises:
        CompressionError: no data, bits out of range, costs that are not finite.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = sensitivity(net, [torch.rand(16, 4)], bits=(2, 8))
    >>> found.sizes, found.costs["0"][8] < found.costs["0"][2]
    ({'0': 32, '2': 16}, True)
    """
    batches, run = batches_of(data, "measure sensitivity on"), forward or call_with_batch
    if not isinstance(bits, Iterable):
        raise CompressionError(f"bits={bits!r}: give several to choose from, such as (2, 4, 8).")
    levels = sorted({check_bits(level) for level in bits})
    if not levels:
        raise CompressionError("bits=() leaves nothing to try; give some, such as (2, 4, 8).")
    costs: dict[str, dict[int, float]] = {}
    sizes: dict[str, int] = {}
    with isolated_random_states(), evaluation_mode(module):
        reference = _outputs(module, batches, run) if loss is None else []
        base = 0.0 if loss is None else _mean_loss(module, batches, loss)
        for level in levels:
            asked = Settings(level, None, "minmax", weight_observer, edge_bits=None, targets=targets, exclude=exclude)
            quantization = FakeQuantization(module, asked, "sensitivity")
            quantization.attach()
            try:
                for layer, names in _by_layer(quantization).items():
                    for name in names:
                        quantization.weights[name].enabled = True
                    if loss is None:
                        cost = _relative(_outputs(module, batches, run), reference)
                    else:
                        cost = max(0.0, _mean_loss(module, batches, loss) - base)
                    for name in names:
                        quantization.weights[name].enabled = False
                    costs.setdefault(layer, {})[level] = cost
                    sizes[layer] = sum(quantization.raw(name).numel() for name in names)
            finally:
                quantization.detach()
    broken = next((layer for layer, own in costs.items() if not all(map(_is_number, own.values()))), None)
    if broken is not None:
        raise CompressionError(f"The cost of {broken!r} is not finite. Look for NaN or infinite values in the data.")
    return Sensitivity(costs, sizes)


def _by_layer(quantization: FakeQuantization) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name in quantization.weights:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _outputs(module: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], object]) -> list[Tensor]:
    return [value.float().clone() for batch in batches for value in tensors_in(run(module, batch))]


def _relative(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    change = sum(float((a - b).square().sum()) for a, b in zip(values, reference, strict=True))
    return change / max(sum(float(b.square().sum()) for b in reference), 1e-30)


def _mean_loss(module: nn.Module, batches: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]) -> float:
    return sum(float(loss(module, batch)) for batch in batches) / len(batches)


def _is_number(value: float) -> bool:
    return value == value and abs(value) != float("inf")
