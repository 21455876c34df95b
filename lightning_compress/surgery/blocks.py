"""Residual blocks: the modules that can be passed by, since what they do is added to what they get."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan.pass_through import PassThrough
from lightning_compress.surgery.tracing import (
    TracingInput,
    evaluation_mode,
    exact_arithmetic,
    float32,
    private_copy,
    tensors_in,
)
from lightning_compress.surgery.verification import evaluate

ALIKE = 1e-3
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def find_blocks(root: nn.Module, tracing: TracingInput, blocks: Sequence[str] = ()) -> list[str]:
    """Names of the blocks that can be passed by, in the order in which they run; ``root`` is not touched.

    A block is a module that runs once, returns a tensor of the shape that it gets, and gives back what it gets when all
    its weights are zero (up to a normalisation behind the sum): a residual block with an identity shortcut, or a layer
    of a transformer. What holds several such modules is a stack of blocks and no block. Each is tried out: with it
    passed by, the network still runs.

    Args:
        root: the network or the LightningModule around it.
        tracing: a call that runs it.
        blocks: names, where they are known; then only whether the network runs without each is seen to.

    Raises:
        CompressionError: an unknown name, or a block that the network does not run without.

    >>> layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True, norm_first=True)
    >>> net = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    >>> find_blocks(net, TracingInput("", (torch.randn(2, 3, 4),), {}))
    ['1']
    """
    network, tracing = private_copy(root).float(), tracing.map(float32)
    calls = _calls(network, tracing)
    if blocks:
        return _named(network, tracing, calls, blocks)
    residual = [
        name
        for name, (value, output, runs) in calls.items()
        if runs == 1
        and value.shape == output.shape
        and _is_residual(network, tracing, name)
        and any(True for _ in network.get_submodule(name).children())  # a normalisation alone is no block
    ]
    inside = {name: [one for one in residual if one.startswith(f"{name}.")] for name in residual}
    found: list[str] = []
    for name in residual:  # outer ones first; what is a stack of blocks is no block
        if len(inside[name]) < 2 and not any(name in inside[outer] for outer in found):
            found.append(name)
    return [name for name in found if _runs_without(network, tracing, name)]


def _calls(network: nn.Module, tracing: TracingInput) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Of each module with weights that gets and returns a tensor: both, and how often it ran; in order of starting."""
    calls: dict[str, tuple[Tensor, Tensor, int]] = {}
    order: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if not name or name == tracing.module or next(module.parameters(), None) is None:
            continue

        def before(_: nn.Module, args: tuple[object, ...], name: str = name) -> None:
            order.append(name)

        def after(_: nn.Module, args: tuple[object, ...], output: object, name: str = name) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls[name] = args[0], output, order.count(name)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        evaluate(network, tracing)
    finally:
        for handle in handles:
            handle.remove()
    return {name: calls[name] for name in dict.fromkeys(order) if name in calls}


def _named(
    network: nn.Module, tracing: TracingInput, calls: dict[str, tuple[Tensor, Tensor, int]], blocks: Sequence[str]
) -> list[str]:
    known = {name for name, _ in network.named_modules() if name}
    for name in blocks:
        if name not in known:
            raise CompressionError(f"No module is called {name!r}. {did_you_mean(name, known)}")
        if name not in calls or not _runs_without(network, tracing, name):
            raise CompressionError(f"The network does not run without {name!r}. Leave it out of blocks=.")
    return [name for name in calls if name in {*blocks}]


@torch.no_grad()
def _is_residual(network: nn.Module, tracing: TracingInput, name: str) -> bool:
    duplicate = private_copy(network)
    block = duplicate.get_submodule(name)
    for part in block.modules():
        for tensor in part._parameters.values():
            if tensor is not None:
                tensor.zero_()
        if isinstance(part, _BatchNorm) and part.running_mean is not None:
            part.running_mean.zero_()
        if isinstance(part, NORMS) and part.weight is not None:
            part.weight.fill_(1.0)
    seen: list[tuple[Tensor, Tensor]] = []
    block.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        with evaluation_mode(duplicate), exact_arithmetic(duplicate):
            tracing.run(duplicate)
    except Exception:
        return False
    value, output = seen[0]
    if float(value.abs().max()) == 0 or float(output.abs().max()) == 0:
        return False
    return _alike(value, output) or _alike(_normalised(value), _normalised(output))


def _alike(one: Tensor, two: Tensor) -> bool:
    return float((one - two).abs().max()) <= ALIKE * float(one.abs().max())


def _normalised(value: Tensor) -> Tensor:
    centred = value - value.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def _runs_without(network: nn.Module, tracing: TracingInput, name: str) -> bool:
    duplicate = private_copy(network)
    duplicate.set_submodule(name, PassThrough().train(False))
    try:
        outputs = evaluate(duplicate, tracing)
    except CompressionError:
        return False
    return all(bool(one.isfinite().all()) for one in tensors_in(outputs) if one.is_floating_point())
