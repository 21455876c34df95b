"""Compensation of what is taken out: what is left of a layer's inputs stands in for what is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.plan.edits import KeepIndices, first_names, named_tensors
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.batch_norm import recalibrate_batchnorm_
from lightning_compress.surgery.patches import input_rows
from lightning_compress.surgery.ports import CONVOLUTIONS, input_dim
from lightning_compress.surgery.tracing import evaluation_mode, private_copy, tensors_in
from lightning_compress.surgery.verification import mask_removed_

RIDGE = 1e-3
"""Of the mean variance of the inputs that are left: keeps the fit tame where they hang together."""

Run = Callable[[nn.Module], object]
"""Runs a network, or a copy of it, on some data."""


def compensation(module: nn.Module, edit: KeepIndices, runs: Sequence[Run]) -> dict[str, Tensor]:
    """Weights, biases and BatchNorm statistics with which the layers make up for the inputs that ``edit`` takes out.

    Layer by layer, in the order in which they run: with x what the layer reads in the uncut network and x' what is
    left for it behind the cut and the layers repaired so far, A and b minimise ``|x - A x' - b|`` over the data, and
    the layer gets the weight ``W A`` and the bias ``bias + W b``. After each layer the BatchNorms' statistics are
    estimated anew, which takes in the constants of layers without a bias. (After He, Zhang, Sun, "Channel Pruning for
    Accelerating Very Deep Neural Networks", ICCV 2017, in the closed form of second moments.)

    Args:
        module: the uncut network; not changed.
        edit: what is about to be taken out.
        runs: run the network on calibration data; each layer takes two or three passes over them.

    Returns:
        Tensor's name -> values of its uncut shape, for :func:`write_`, before the edit is made.

    >>> net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))  # two neurons that are always alike
    >>> _ = [nn.init.ones_(parameter) for parameter in net.parameters()]
    >>> from lightning_compress.plan import Slice
    >>> cut = KeepIndices((Slice("1.weight", 1, 2, torch.tensor([0])),))
    >>> values = compensation(net, cut, [lambda net: net(torch.randn(9, 1))])
    >>> round(values["1.weight"][0, 0].item(), 1)
    2.0
    """
    whole, repaired = private_copy(module), private_copy(module)
    mask_removed_(repaired, edit)
    names, changed = first_names(repaired), dict[str, Tensor]()
    stay = readers(repaired, edit)
    norms = [m for m in repaired.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad(), isolated_random_states(), evaluation_mode(whole), evaluation_mode(repaired):
        for name in _in_order(whole, list(stay), runs):
            layer: Any = repaired.get_submodule(name)
            if names[id(layer.weight)] in changed:  # one weight of two layers: the first one's inputs decide
                continue
            moments = _moments(whole, repaired, name, stay[name], runs)
            if moments.count:
                changed[names[id(layer.weight)]] = layer.weight
                _refit_(layer, whole.get_submodule(name), stay[name], moments)
                if layer.bias is not None:
                    changed[names[id(layer.bias)]] = layer.bias
                if norms:
                    recalibrate_batchnorm_(repaired, runs, lambda root, run: run(root))
        changed |= {names[id(b)]: b for m in norms for b in m.buffers() if b.is_floating_point()}
    return {name: tensor.detach() for name, tensor in changed.items()}


def readers(module: nn.Module, edit: KeepIndices) -> dict[str, Tensor]:
    """Linear layers and convolutions without groups of which ``edit`` takes out inputs -> the inputs that stay."""
    names, cuts = first_names(module), {(part.tensor, part.dim): part.kept for part in edit.slices}
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and getattr(layer, "groups", 1) == 1:
            kept = cuts.get((names.get(id(layer.weight), ""), input_dim(layer)))
            if kept is not None:
                found[name] = kept
    return found


@torch.no_grad()
def write_(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put ``values`` into the parameters and buffers of those names, in place."""
    tensors = named_tensors(module)
    for name, value in values.items():
        tensors[name].copy_(value)


class _Reached(BaseException):
    """Ends a run at the layer that is looked at; a BaseException, so that no ``except Exception`` swallows it."""


@dataclass
class _Moments:
    """Sums over all positions, in float64, of x and x', of x' x'T and of x x'T."""

    count: int
    whole: Tensor
    left: Tensor
    inner: Tensor
    cross: Tensor


def _in_order(network: nn.Module, layers: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The layers in the order of their first calls; those that are not called are left out."""
    seen: dict[str, None] = {}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name))
        for name in layers
    ]
    for run in runs[:1]:
        run(network)
    for handle in handles:
        handle.remove()
    return list(seen)


def _moments(whole: nn.Module, repaired: nn.Module, name: str, kept: Tensor, runs: Sequence[Run]) -> _Moments:
    moments: _Moments | None = None
    for run in runs:
        pair = [_input_of(network, name, run) for network in (whole, repaired)]
        if pair[0] is None or pair[1] is None:
            continue
        x, left = pair[0], pair[1][:, kept.to(pair[1].device)]
        parts = (x.sum(0), left.sum(0), left.T @ left, x.T @ left)
        if moments is None:
            moments = _Moments(len(x), *parts)
        else:
            moments.count += len(x)
            for own, part in zip((moments.whole, moments.left, moments.inner, moments.cross), parts, strict=True):
                own += part
    return moments or _Moments(0, *[torch.zeros(0)] * 4)


def _input_of(network: nn.Module, name: str, run: Run) -> Tensor | None:
    """What a layer reads, as rows of its features or channels, in float64."""
    found: list[Tensor] = []
    layer = network.get_submodule(name)

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(input_rows(module, next(tensors_in((args, kwargs)))))
        raise _Reached

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    with suppress(_Reached), isolated_random_states():  # both networks see the same augmentation
        run(network)
    handle.remove()
    return found[0].movedim(1, -1).flatten(0, -2).double() if found else None


def _refit_(layer: Any, whole: Any, kept: Tensor, moments: _Moments) -> None:
    """Give ``layer`` the weight W A and the bias plus W b, where W is that of ``whole``."""
    mean, left = moments.whole / moments.count, moments.left / moments.count
    inner = moments.inner / moments.count - torch.outer(left, left)
    cross = moments.cross / moments.count - torch.outer(mean, left)
    # towards what the inputs that stay have been, not towards zero
    start = torch.zeros_like(cross)
    start[kept, torch.arange(len(kept))] = 1
    ridge = RIDGE * inner.diagonal().mean().clamp_min(torch.finfo(inner.dtype).tiny)
    eye = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    fit = torch.linalg.solve(inner + ridge * eye, (cross + ridge * start).T).T
    dim = input_dim(layer)
    rows = whole.weight.double().movedim(dim, 0)
    weight = torch.zeros_like(rows)
    weight[kept.to(rows.device)] = torch.einsum("xk,x...->k...", fit, rows)
    layer.weight.copy_(weight.movedim(0, dim))
    if layer.bias is not None:
        constant = mean - fit @ left
        added = rows.flatten(2).sum(2) if rows.dim() > 2 else rows  # over the kernel
        layer.bias.copy_(whole.bias.double() + constant @ added)
