"""Cross-layer equalisation: channels of neighbouring layers get ranges of the same size, outputs stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import evaluation_mode, private_copy
from lightning_compress.surgery.ports import CONVOLUTIONS
from lightning_compress.surgery.tracing import tensors_in

_KEEPS_FACTORS = {
    torch.relu,
    torch.relu_,
    nn.functional.relu,
    Tensor.relu,
    Tensor.relu_,
    nn.functional.max_pool1d,
    nn.functional.max_pool2d,
    nn.functional.avg_pool2d,
    nn.functional.adaptive_avg_pool2d,
    nn.functional.dropout,
    nn.functional.dropout2d,
    torch.flatten,
    Tensor.flatten,
}
_LAYERS = (nn.Linear, *CONVOLUTIONS)
TOLERANCE = 1e-4


def equalize_(root: nn.Module, run: Callable[[nn.Module], object], *, rounds: int = 3) -> list[tuple[str, str]]:
    """Scale the output channels of one layer down and the inputs of the next up, where only a ReLU stands between.

    Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019. Fold BatchNorms
    first. A pair that would change the outputs is left as it is.

    Args:
        root: in evaluation mode its outputs stay the same.
        run: runs the module that it is given, and returns its outputs.
        rounds: passes over all pairs.

    Returns:
        The pairs that were equalised.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> equalize_(net, lambda copy: copy(torch.ones(1, 2)))
    [('0', '2')]
    """
    pairs = _pairs(root, run)
    expected = _outputs(root, run)
    done = []
    for pair in pairs:
        layers = [root.get_submodule(name) for name in pair]
        kept = [{key: p.detach().clone() for key, p in layer.named_parameters()} for layer in layers]
        for _ in range(rounds):
            _equalize(*layers)
        if all(torch.allclose(a, b, TOLERANCE, TOLERANCE) for a, b in zip(_outputs(root, run), expected, strict=True)):
            done.append(pair)
            continue
        with torch.no_grad():
            for layer, former in zip(layers, kept, strict=True):
                for key, parameter in layer.named_parameters():
                    parameter.copy_(former[key])
    return done


@torch.no_grad()
def _equalize(first: Any, second: Any) -> None:
    largest = [_largest(first.weight, 0), _largest(second.weight, 1)]
    factor = (largest[0] / largest[1]).sqrt()
    factor = torch.where((largest[0] > 0) & (largest[1] > 0), factor, torch.ones_like(factor))
    first.weight.div_(_along(factor, first.weight, 0))
    if first.bias is not None:
        first.bias.div_(factor)
    second.weight.mul_(_along(factor, second.weight, 1))


def _along(values: Tensor, weight: Tensor, dim: int) -> Tensor:
    return values.view([-1 if d == dim else 1 for d in range(weight.dim())])


def _largest(weight: Tensor, dim: int) -> Tensor:
    return weight.abs().amax([d for d in range(weight.dim()) if d != dim])


@torch.no_grad()
def _outputs(root: nn.Module, run: Callable[[nn.Module], object]) -> Sequence[Tensor]:
    with isolated_random_states(), evaluation_mode(root):
        return [value.clone() for value in tensors_in(run(root))]


class _Follow(TorchFunctionMode):
    """Which layer's channels a tensor has, through functions that let positive factors pass."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, str] = {}
        self.reads: dict[int, int] = {}
        self.alive: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = [value for value in tensors_in((args, kwargs or {})) if id(value) in self.made]
        for value in known:
            self.reads[id(value)] = self.reads.get(id(value), 0) + 1
        result = function(*args, **(kwargs or {}))
        if known and function in _KEEPS_FACTORS and isinstance(result, Tensor) and result is not known[0]:
            self.alive.append(result)
            self.made[id(result)] = self.made[id(known[0])]
        return result


def _pairs(root: nn.Module, run: Callable[[nn.Module], object]) -> list[tuple[str, str]]:
    duplicate, follow = private_copy(root), _Follow()
    found: list[tuple[str, str, int]] = []
    calls: list[str] = []

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, args: Any) -> None:
            calls.append(name)
            if args and id(args[0]) in follow.made:
                found.append((follow.made[id(args[0])], name, id(args[0])))

        return note

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            follow.alive.append(output)
            follow.made[id(output)] = name

        return note

    for name, layer in duplicate.named_modules():
        if isinstance(layer, _LAYERS):
            layer.register_forward_pre_hook(before(name))
            layer.register_forward_hook(after(name))
    with torch.no_grad(), isolated_random_states(), evaluation_mode(duplicate), follow:
        run(duplicate)
    readers: dict[str, int] = {}
    for one, _, _ in found:
        readers[one] = readers.get(one, 0) + 1
    return [
        (one, two)
        for one, two, _ in found
        if readers[one] == 1 and calls.count(one) == calls.count(two) == 1 and _fits(duplicate, one, two)
    ]


def _fits(root: nn.Module, one: str, two: str) -> bool:
    layers = [root.get_submodule(name) for name in (one, two)]
    plain = all(not isinstance(layer, _ConvTransposeNd) and getattr(layer, "groups", 1) == 1 for layer in layers)
    weights = [layer._parameters.get("weight") for layer in layers]
    return plain and weights[0] is not None and weights[1] is not None and len(weights[0]) == weights[1].shape[1]
