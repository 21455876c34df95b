"""The proof of an edit: the smaller network computes what the network with those neurons set to zero computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.errors import CompressionError
from lightning_compress.plan.edits import KeepIndices, first_names, named_tensors
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.tracing import TracingInput, evaluation_mode, exact_arithmetic, float32, private_copy

Item = TypeVar("Item")
SHOWN = 6


def verify_edit(
    root: nn.Module,
    edit: KeepIndices,
    tracing: TracingInput,
    *,
    tolerance: float = 1e-5,
    norms: Collection[str] = (),
) -> None:
    """Prove on a copy that ``edit`` only takes out what it says; ``root`` stays as it is.

    The copy evaluates in float32. It is masked first: every entry that the edit takes out, in every tensor, is set
    to zero. Then the edit is applied to it. The outputs must have the same shapes as before, be finite where they were,
    and differ by at most ``tolerance`` times the largest masked output.

    Args:
        root: the network or the LightningModule around it.
        edit: what is to be taken out.
        tracing: a call that runs the network.
        tolerance: relative, of each floating-point output.
        norms: LayerNorms, RMSNorms and GroupNorms of one group that take their statistics over what is left in the
            masked network too: the approximation that the caller has accepted, and no other.

    Raises:
        CompressionError: the edit does not fit, the smaller network does not run, or it computes something else; the
            message has the layers, the difference and the way out.

    >>> from lightning_compress.plan import Slice
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> kept = torch.tensor([0, 2])
    >>> slices = [Slice(name, dim, 3, kept) for name, dim in [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]]
    >>> verify_edit(net, KeepIndices(tuple(slices)), TracingInput("", (torch.randn(5, 4),), {}))
    """
    edit.check(root)
    network = private_copy(root).float()
    tracing = tracing.map(float32)
    mask_removed_(network, edit)
    average_over_kept_(network, edit, norms)
    masked = evaluate(network, tracing)
    for name in norms:
        network.get_submodule(name).__dict__.pop("forward", None)
    edit.apply(network)
    try:
        cut = evaluate(network, tracing)
    except CompressionError as error:
        raise CompressionError(f"After cutting {_layers(edit)}: {error} {_way_out(edit)}") from error
    _compare(network, edit, masked, cut, tolerance)


@torch.no_grad()
def mask_removed_(module: nn.Module, edit: KeepIndices) -> None:
    """Set to zero, in place, every entry that ``edit`` would take out; shapes stay.

    >>> from lightning_compress.plan import Slice
    >>> net = nn.Linear(2, 3)
    >>> mask_removed_(net, KeepIndices((Slice("bias", 0, 3, torch.tensor([1])),)))
    >>> net.bias.nonzero().flatten().tolist()
    [1]
    """
    tensors = named_tensors(module)
    for part in edit.slices:
        gone = torch.ones(part.size, dtype=torch.bool)
        gone[part.kept] = False
        tensor = tensors[part.tensor]
        tensor.index_fill_(part.dim, torch.nonzero(gone).flatten().to(tensor.device), 0)


def average_over_kept_(module: nn.Module, edit: KeepIndices, norms: Collection[str]) -> None:
    """Let ``norms`` of a masked copy take their statistics over what ``edit`` keeps, and give zeros elsewhere."""
    names = first_names(module)
    cuts = {(part.tensor, part.dim): part.kept for part in edit.slices}
    for name in norms:
        norm: Any = module.get_submodule(name)
        kept = cuts.get((names.get(id(norm.weight), ""), 0)) if norm.weight is not None else None
        if kept is not None:
            norm.__dict__["forward"] = partial(_over_kept, norm, kept)


def _over_kept(norm: Any, kept: Tensor, value: Tensor) -> Tensor:
    dim = 1 if isinstance(norm, nn.GroupNorm) else -1
    kept = kept.to(value.device)
    part, weight = value.index_select(dim, kept), norm.weight[kept]
    bias = norm.bias[kept] if getattr(norm, "bias", None) is not None else None
    if isinstance(norm, nn.GroupNorm):
        result = functional.group_norm(part, 1, weight, bias, norm.eps)
    elif isinstance(norm, nn.RMSNorm):
        result = functional.rms_norm(part, (len(kept),), weight, norm.eps)
    else:
        result = functional.layer_norm(part, (len(kept),), weight, bias, norm.eps)
    return torch.zeros_like(value).index_copy(dim, kept, result)


def evaluate(module: nn.Module, tracing: TracingInput) -> tuple[Tensor, ...]:
    """The outputs of the call in evaluation mode: no gradients, no autocast, no TF32, random states isolated.

    Raises:
        CompressionError: the call fails.
    """
    try:
        with torch.no_grad(), evaluation_mode(module), isolated_random_states(), exact_arithmetic(module):
            return tuple(output.detach().clone() for output in tracing.outputs(module))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CompressionError(f"The network does not run ({type(error).__name__}: {reason}).") from error


def accepted(
    items: Sequence[Item], proves: Callable[[Sequence[Item]], str | None]
) -> tuple[list[Item], dict[int, str]]:
    """The items that pass a proof of many at once, found by halving; and for each other one, by position, why not.

    Args:
        items: anything.
        proves: None if these items together are right, else the reason why not.

    >>> accepted([2, 4, 5, 6], lambda some: None if all(number % 2 == 0 for number in some) else "odd")
    ([2, 4, 6], {2: 'odd'})
    """
    reason = proves(items) if items else None
    if reason is None:
        return list(items), {}
    if len(items) == 1:
        return [], {0: reason}
    half = len(items) // 2
    left, left_reasons = accepted(items[:half], proves)
    right, right_reasons = accepted(items[half:], proves)
    return left + right, left_reasons | {position + half: why for position, why in right_reasons.items()}


def difference(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """The largest difference of floating-point outputs, relative to the largest value of ``one``; NaN if shapes differ.

    Entries that are not finite in ``one`` are left out; where ``two`` is not finite and ``one`` is, it is infinite.
    """
    if [output.shape for output in one] != [output.shape for output in two]:
        return float("nan")
    pairs = [(a.double(), b.double()) for a, b in zip(one, two, strict=True) if a.is_floating_point()]
    return max((_difference(a, b) for a, b in pairs), default=0.0)


def _difference(one: Tensor, two: Tensor) -> float:
    finite = one.isfinite()
    one, two = one[finite], two[finite]
    if not bool(two.isfinite().all()):
        return float("inf")
    if one.numel() == 0 or torch.equal(one, two):
        return 0.0
    scale = float(one.abs().max())
    return float((one - two).abs().max()) / scale if scale else float("inf")


def _compare(
    network: nn.Module, edit: KeepIndices, masked: Sequence[Tensor], cut: Sequence[Tensor], tolerance: float
) -> None:
    shapes = [[tuple(output.shape) for output in outputs] for outputs in (masked, cut)]
    if shapes[0] != shapes[1]:
        raise CompressionError(
            f"Cutting {_layers(edit)} would change the outputs of the network from {shapes[0]} to {shapes[1]}. "
            f"{_way_out(edit)}"
        )
    found = difference(masked, cut)
    if found <= tolerance:
        return
    norms = _normalisations(network, edit)
    reason = (
        f" Normalisation over the cut channels ({', '.join(map(repr, norms))}) cannot be exact: its statistics "
        "would be taken over fewer channels."
        if norms
        else ""
    )
    what = "not finite" if found == float("inf") else f"off by {found:.2g} of the largest (tolerance {tolerance:.2g})"
    raise CompressionError(
        f"Cutting {_layers(edit)} is not the same as setting those neurons to zero: outputs are {what}.{reason} "
        f"{_way_out(edit)}"
    )


def _normalisations(network: nn.Module, edit: KeepIndices) -> list[str]:
    kinds = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return [name for name in _touched(edit) if isinstance(network.get_submodule(name), kinds)]


def _touched(edit: KeepIndices) -> list[str]:
    owners = [part.tensor.rpartition(".")[0] for part in edit.slices]
    return list(dict.fromkeys(owners + [change.module for change in edit.attributes]))


def _layers(edit: KeepIndices) -> str:
    names = _touched(edit)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _way_out(edit: KeepIndices) -> str:
    """The layers to exclude: those whose outputs the edit takes out."""
    producing = {part.module for part in edit.attributes if part.name in ("out_features", "out_channels")}
    names = [name for name in _touched(edit) if name in producing] or _touched(edit)
    dots = ", ..." if len(names) > SHOWN else ""
    inner = ", ".join(map(repr, names[:SHOWN])) + (dots or ("," if len(names) == 1 else ""))
    return f"Leave them alone: exclude=({inner})."
