"""What a layer computes in one network, as a regression on what the same layer reads in another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.input_statistics import layer_weight
from lightning_compress.surgery.patches import CHUNK, input_rows, patches
from lightning_compress.surgery.tracing import TracingInput, evaluation_mode, exact_arithmetic, tensors_in


@dataclass
class PairedMoments:
    """Sums in float64, over all positions, of the vectors x that a layer's weight is multiplied with, and its outputs
    y; those of each group of channels by themselves.

    Attributes:
        rows: number of vectors.
        x: the sum of x, shape (groups, n).
        y: the sum of y, shape (groups, outputs of a group).
        xx: the sum of x xT, shape (groups, n, n).
        yx: the sum of y xT, shape (groups, outputs of a group, n).
        yy: the sum of the squares of y, shape (groups,).
    """

    rows: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @classmethod
    def empty(cls, layer: nn.Module) -> PairedMoments:
        """Of nothing seen yet."""
        weight, groups = layer_weight(layer), int(getattr(layer, "groups", 1))
        outputs, width = len(weight) // groups, weight[0].numel()
        zeros = weight.detach().new_zeros(groups, outputs, width, dtype=torch.float64)
        square = zeros.new_zeros(groups, width, width)
        return cls(0, zeros[:, 0].clone(), zeros[..., 0].clone(), square, zeros, zeros[:, 0, 0].clone())

    def add(self, layer: nn.Module, value: Tensor, output: Tensor) -> None:
        """Count one input, of any network, beside the output for the same data."""
        read, made = input_rows(layer, value), input_rows(layer, output)
        groups, width = self.x.shape
        samples = max(1, CHUNK // max(1, made[:1].numel() // len(layer_weight(layer)) * groups * width))
        for rows, outputs in zip(torch.split(read, samples), torch.split(made, samples), strict=True):
            x = patches(layer, rows).double().reshape(-1, groups, width).transpose(0, 1)
            y = outputs.movedim(1, -1).double().reshape(len(x[0]), groups, -1).transpose(0, 1)
            self.rows += x.shape[1]
            self.x += x.sum(1)
            self.y += y.sum(1)
            self.xx.baddbmm_(x.transpose(1, 2), x)
            self.yx.baddbmm_(y.transpose(1, 2), x)
            self.yy += y.square().sum((1, 2))

    def means(self) -> tuple[Tensor, Tensor]:
        """Of x and of y.

        Raises:
            CompressionError: the layer was not called.
        """
        if self.rows == 0:
            raise CompressionError("The layer has read nothing: its moments are unknown.")
        return self.x / self.rows, self.y / self.rows

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, of y with x, and the variances of y summed."""
        x, y = self.means()
        inner = self.xx / self.rows - x.unsqueeze(2) * x.unsqueeze(1)
        cross = self.yx / self.rows - y.unsqueeze(2) * x.unsqueeze(1)
        return inner, cross, (self.yy / self.rows - y.square().sum(1)).clamp_min(0)


class _Done(BaseException):
    """Ends a run once all has been seen; a BaseException, so that no ``except Exception`` swallows it."""


def call_order(network: nn.Module, names: Collection[str], call: TracingInput) -> dict[str, int]:
    """The layers that ``call`` runs, in the order of their first calls, with how often each of them is called."""
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        return lambda *_: counts.__setitem__(name, counts.get(name, 0) + 1)

    handles = [network.get_submodule(name).register_forward_pre_hook(count(name)) for name in names]
    _run(network, call)
    for handle in handles:
        handle.remove()
    return counts


def moments_of(network: nn.Module, names: Collection[str], calls: Sequence[TracingInput]) -> dict[str, PairedMoments]:
    """Of each layer's own inputs and outputs; one pass for all of them."""
    layers = {name: network.get_submodule(name) for name in names}
    found = {name: PairedMoments.empty(layer) for name, layer in layers.items()}

    def look(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            found[name].add(layer, next(tensors_in((args, kwargs))), output)

        return add

    handles = [layer.register_forward_hook(look(name), with_kwargs=True) for name, layer in layers.items()]
    for call in calls:
        _run(network, call)
    for handle in handles:
        handle.remove()
    return found


def paired_moments(
    original: nn.Module, changed: nn.Module, name: str, calls: Sequence[TracingInput], times: int = 1
) -> PairedMoments:
    """The layer's outputs in ``original`` with its inputs in ``changed``.

    What has been changed before the layer is in its inputs, so that a fit makes up for that, too.

    Args:
        original: the network whose outputs are the goal.
        changed: a copy, changed in front of the layer.
        name: of the layer; still itself in both.
        calls: run the network on calibration data.
        times: how often the layer is called in each.
    """
    layer = original.get_submodule(name)
    moments = PairedMoments.empty(layer)
    for call in calls:
        outputs = _seen(original, name, call, times, of_outputs=True)
        inputs = _seen(changed, name, call, times, of_outputs=False)
        for value, output in zip(inputs, outputs, strict=True):
            moments.add(layer, value, output)
    return moments


def _seen(network: nn.Module, name: str, call: TracingInput, times: int, *, of_outputs: bool) -> list[Tensor]:
    seen: list[Tensor] = []

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | None = None) -> None:
        seen.append(next(tensors_in((args, kwargs))) if output is None else output)
        if len(seen) == times:
            raise _Done

    layer = network.get_submodule(name)
    if of_outputs:
        handle = layer.register_forward_hook(look, with_kwargs=True)
    else:
        handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    with suppress(_Done):
        _run(network, call)
    handle.remove()
    return seen


def _run(network: nn.Module, call: TracingInput) -> None:
    with torch.no_grad(), isolated_random_states(), evaluation_mode(network), exact_arithmetic(network):
        call.run(network)
