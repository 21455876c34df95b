"""BatchNorm: folded into the layer before it, or its running statistics estimated anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.ports import CONVOLUTIONS
from lightning_compress.surgery.tracing import TracingInput, call_with_batch, evaluation_mode, float32, private_copy
from lightning_compress.surgery.verification import accepted, difference, evaluate

FOLDABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TOLERANCE = 1e-5
Pair = tuple[str, str]


@torch.no_grad()
def fold_batchnorm_(root: nn.Module, tracing: TracingInput | None = None) -> list[str]:
    """Fold each BatchNorm that directly follows a convolution or Linear into it, in place; evaluation stays the same.

    The weight keeps its Parameter; a layer without bias gets one (not in any optimizer); the BatchNorm becomes
    ``nn.Identity``. With ``tracing`` the pairs are found by running a copy (the BatchNorm's input is the very tensor
    that the layer returned) and the folded copy is compared with the network: a pair that would change the outputs,
    since something else reads the layer's output, is left. Without it, neighbours in an ``nn.Sequential`` are folded.
    Also left are shared or parametrized layers and BatchNorms without running statistics.

    Returns:
        Names of the BatchNorms folded, in the order of ``named_modules``.

    Raises:
        CompressionError: the call of ``tracing`` fails; nothing was touched.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
    >>> fold_batchnorm_(net), net[1]
    (['1'], Identity())
    """
    if tracing is None:
        pairs = _foldable(root, _neighbours(root))
    else:
        network, tracing = private_copy(root).float(), tracing.map(float32)
        expected = evaluate(network, tracing)
        found = _foldable(network, _pairs_in_run(network, tracing))
        pairs, _ = accepted(found, lambda some: _changes(network, some, tracing, expected))
    for layer, norm in pairs:
        _fold(root, layer, norm)
    return [norm for _, norm in pairs]


def _neighbours(root: nn.Module) -> list[Pair]:
    names = {module: name for name, module in root.named_modules()}
    chains = [module for module in root.modules() if isinstance(module, nn.Sequential)]
    return [(names[one], names[two]) for chain in chains for one, two in pairwise(chain) if isinstance(two, FOLDABLE)]


def _pairs_in_run(network: nn.Module, tracing: TracingInput) -> list[Pair]:
    """Pairs of layers called once each, where the first one's output is the second one's input."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: list[str] = []
    pairs: list[Pair] = []

    def observe(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.append(name)
            if isinstance(module, FOLDABLE):
                layer, tensor = made.get(id(args[0]) if args else 0, ("", None))
                # behind a Linear, BatchNorm1d counts the features only where they are dimension 1
                wrong = tensor is None or (tensor.dim() != 2 and isinstance(network.get_submodule(layer), nn.Linear))
                if not wrong:
                    pairs.append((layer, name))
            else:
                made[id(output)] = name, output  # kept alive, so that the id stays its own

        return after

    kinds = (nn.Linear, *CONVOLUTIONS, *FOLDABLE)
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(observe(name)) for name, module in layers]
    evaluate(network, tracing)
    for handle in handles:
        handle.remove()
    return [pair for pair in pairs if all(calls.count(name) == 1 for name in pair)]


def _foldable(root: nn.Module, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose tensors are their own and that fit each other, in the order of the network."""
    modules: dict[nn.Module, int] = {}
    owners: dict[Tensor, int] = {}
    for _, module in root.named_modules(remove_duplicate=False):
        modules[module] = modules.get(module, 0) + 1
    for module in modules:
        for tensor in module._parameters.values():
            if tensor is not None:
                owners[tensor] = owners.get(tensor, 0) + 1

    def fits(layer: nn.Module, norm: nn.Module) -> bool:
        if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)) or not isinstance(norm, _BatchNorm):
            return False
        tensors = [layer._parameters.get("weight"), *(t for t in layer._parameters.values() if t is not None)]
        own = all(tensor is not None and owners[tensor] == 1 for tensor in tensors)
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        alone = modules[layer] == 1 and modules[norm] == 1
        return own and alone and norm.running_var is not None and norm.num_features == width

    places = {name: place for place, (name, _) in enumerate(root.named_modules())}
    good = [pair for pair in pairs if all(pair) and fits(*(root.get_submodule(name) for name in pair))]
    return sorted(good, key=lambda pair: places[pair[1]])


def _changes(
    network: nn.Module, pairs: Sequence[Pair], tracing: TracingInput, expected: Sequence[Tensor]
) -> str | None:
    folded = private_copy(network)
    for layer, norm in pairs:
        _fold(folded, layer, norm)
    found = difference(expected, evaluate(folded, tracing))
    return None if found <= TOLERANCE else f"outputs change by {found:.2g}"


@torch.no_grad()
def _fold(root: nn.Module, layer_name: str, norm_name: str) -> None:
    layer: Any = root.get_submodule(layer_name)
    norm: Any = root.get_submodule(norm_name)
    variance, mean = norm.running_var.double(), norm.running_mean.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    scale = gamma / (variance + norm.eps).sqrt()
    bias = beta - mean * scale
    weight = layer.weight.double()
    if getattr(layer, "transposed", False):
        grouped = weight.unflatten(0, (layer.groups, -1))
        trailing = [1] * (weight.dim() - 2)
        scaled = (grouped * scale.view(layer.groups, 1, -1, *trailing)).flatten(0, 1)
    else:
        scaled = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    layer.weight.copy_(scaled)
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.copy_(layer.bias.double() * scale + bias)
    identity = nn.Identity()
    identity.training = norm.training
    root.set_submodule(norm_name, identity)


def recalibrate_batchnorm_(
    root: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] | None = None,
    *,
    reset: bool = True,
) -> None:
    """Estimate the running statistics of every BatchNorm anew, in place: plain averages over ``batches``.

    Only the BatchNorms train in this pass: no gradients, dropout off, random states isolated; flags and momenta are
    restored. If anything fails, the statistics are what they were.

    Args:
        root: the network.
        batches: what ``forward`` takes, on the network's device.
        forward: runs the network on a batch; by default calls it with the batch, or with the first element of a tuple
            or list.
        reset: forget the present statistics; otherwise the average goes on, each batch seen so far with its weight
            (``num_batches_tracked``).

    Raises:
        CompressionError: there are no batches.

    >>> net = nn.BatchNorm1d(1)
    >>> recalibrate_batchnorm_(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[4.0], [8.0]])])
    >>> net.running_mean.item(), net.running_var.item(), net.momentum
    (4.0, 5.0, 0.1)
    """
    norms = [module for module in root.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    before = [{key: buffer.clone() for key, buffer in norm.named_buffers()} for norm in norms]
    try:
        with torch.no_grad(), isolated_random_states(), evaluation_mode(root):
            for norm in norms:
                norm.training = True
                norm.momentum = None  # a cumulative average
                if reset:
                    norm.reset_running_stats()
            _run(root, batches, forward or call_with_batch)
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for key, buffer in buffers.items():
                norm.get_buffer(key).copy_(buffer)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def recalibrate_if_better_(
    root: nn.Module,
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], object] | None = None,
    *,
    loss: Callable[[nn.Module], float],
    always: bool = False,
) -> tuple[bool, float, float]:
    """Estimate the running statistics of every BatchNorm anew, and keep those with which ``loss`` is lower.

    After a change that was fitted to weights alone that helps much; after one that was fitted to data it can ruin the
    network, since a fit shrinks outputs on purpose where they are noise, and new statistics blow them up again.

    Args:
        root: the network.
        batches: see :func:`recalibrate_batchnorm_`.
        forward: likewise.
        loss: of the network on calibration data.
        always: keep the new ones whatever the loss.

    Returns:
        Whether the new ones are kept, the loss without and with them.

    >>> net = nn.BatchNorm1d(1).eval()
    >>> recalibrate_if_better_(net, [torch.tensor([[1.0], [3.0]])], loss=lambda net: 1 - net.running_mean.item())
    (True, 1.0, -1.0)
    """
    norms = [module for module in root.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    before = loss(root)
    if not norms:
        return False, before, before
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    recalibrate_batchnorm_(root, batches, forward)
    after = loss(root)
    if always or after < before:
        return True, before, after
    for buffer, value in kept:
        buffer.copy_(value)
    return False, before, after


def _run(root: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object]) -> None:
    count = 0
    for batch in batches:
        forward(root, batch)
        count += 1
    if count == 0:
        raise CompressionError("There are no batches to estimate the BatchNorm statistics from.")
