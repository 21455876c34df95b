"""Dynamic depth: blocks passed by in a forward, and networks with fewer of them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record, ReplaceModule
from lightning_compress.surgery import TracingInput, private_copy
from lightning_compress.surgery.blocks import find_blocks
from lightning_compress.values import is_whole

_BLOCKS: weakref.WeakKeyDictionary[nn.Module, list[str]] = weakref.WeakKeyDictionary()
Skip = Callable[[nn.Module, Tensor], "bool | Tensor"]
"""Whether a block is passed by: for the whole batch (True), for none (False), or (N,) bool for each row."""


class SkippableForward:
    """Stands on a block in the place of its forward; in a copy of the block it is the block's own."""

    def __init__(self, block: nn.Module, skip: Skip | None = None, former: Any = None) -> None:
        self._block, self._former, self.skip = block, former, skip

    def __call__(self, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The block's output, or what it gets."""
        own = self._former or type(self._block).forward.__get__(self._block)
        passed = False if self.skip is None else self.skip(self._block, value)
        if passed is True:
            return value
        output = own(value, *args, **kwargs)
        if passed is False:
            return output
        mask = passed.view(-1, *[1] * (value.dim() - 1))
        return torch.where(mask, value, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> SkippableForward:
        return SkippableForward(memo.get(id(self._block), self._block), None, copy.deepcopy(self._former, memo))

    def __reduce__(self) -> tuple[type[SkippableForward], tuple[Any, ...]]:
        return SkippableForward, (self._block, None, self._former)

    def put_on(self) -> None:
        """Stand there."""
        self._block.__dict__["forward"] = self

    def take_off(self) -> None:
        """Go; what the user had set on the instance comes back."""
        if self._block.__dict__.get("forward") is self:
            del self._block.__dict__["forward"]
            if self._former is not None:
                self._block.__dict__["forward"] = self._former


def skippable(block: nn.Module, skip: Skip) -> SkippableForward:
    """Let ``block`` be passed by where ``skip`` says so; :meth:`SkippableForward.take_off` ends it."""
    forward = SkippableForward(block, skip, block.__dict__.get("forward"))
    forward.put_on()
    return forward


def survival(blocks: int, drop: float, *, linear: bool = True) -> list[float]:
    """How probable it is that each block is used in training: falling linearly with depth, or the same for all.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.

    >>> survival(4, 0.2)
    [0.95, 0.9, 0.85, 0.8]
    """
    return [1 - drop * ((place + 1) / blocks if linear else 1.0) for place in range(blocks)]


def remember_blocks(module: nn.Module, blocks: Sequence[str]) -> None:
    """Let :func:`set_depth` and the like find the blocks of ``module`` again."""
    _BLOCKS[module] = list(blocks)


def blocks_of(module: nn.Module, tracing: TracingInput | None = None) -> list[str]:
    """The blocks of a module, as they were remembered, or found by a call.

    Raises:
        CompressionError: neither; or there are none.
    """
    names = {name for name, _ in module.named_modules()}
    known = [name for name in _BLOCKS.get(module, []) if name in names]
    found = known or (find_blocks(module, tracing) if tracing is not None else [])
    if not found:
        raise CompressionError(
            f"{type(module).__name__} has no blocks that are known. Fit it with StochasticDepth(...), or give "
            "tracing=TracingInput(...), a call from which residual blocks can be found."
        )
    return found


def kept_blocks(blocks: Sequence[str], depth: int) -> list[str]:
    """``depth`` blocks, spread evenly: what LayerDrop leaves (Fan et al., ICLR 2020, arXiv:1909.11556).

    Raises:
        CompressionError: fewer than none, or more than there are.

    >>> kept_blocks(["a", "b", "c", "d"], 2)
    ['a', 'c']
    """
    if not 0 <= depth <= len(blocks):
        raise CompressionError(f"A depth of {depth}: between 0 and the {len(blocks)} blocks that there are.")
    return [blocks[place * len(blocks) // depth] for place in range(depth)] if depth else []


def set_depth(
    module: nn.Module, depth: int | Sequence[str] | None, *, tracing: TracingInput | None = None
) -> list[str]:
    """Use only some blocks of a network from now on; its tensors stay, and any other depth can follow.

    Args:
        module: a network with residual blocks, or what contains it.
        depth: how many blocks, spread evenly; names of those that are used; or None for all.
        tracing: a call from which the blocks are found, where no :class:`StochasticDepth` has found them.

    Returns:
        The blocks that are used. A copy of the module uses all.

    Raises:
        CompressionError: no blocks, or a depth or a name that is not there.
    """
    blocks = blocks_of(module, tracing)
    remember_blocks(module, blocks)
    kept = _chosen(blocks, depth)
    for name in blocks:
        block = module.get_submodule(name)
        forward = block.__dict__.get("forward")
        if isinstance(forward, SkippableForward):
            forward.take_off()
        if name not in kept:
            skippable(block, _always)
    return kept


def export_depth(module: nn.Module, depth: int | Sequence[str], *, tracing: TracingInput | None = None) -> nn.Module:
    """An ordinary network without the other blocks: a copy, whose Plan says what was taken out.

    Args:
        module: see :func:`set_depth`; not touched.
        depth: likewise.
        tracing: likewise.
    """
    blocks = blocks_of(module, tracing)
    duplicate = private_copy(module)
    for name in blocks:
        forward = duplicate.get_submodule(name).__dict__.get("forward")
        if isinstance(forward, SkippableForward):
            forward.take_off()
    prune_depth_(duplicate, depth, blocks=blocks)
    return duplicate


def prune_depth_(module: nn.Module, depth: int | Sequence[str], *, blocks: Sequence[str]) -> list[str]:
    """Take blocks out for good, in place: each is replaced by one that passes on what it gets, by edits of the Plan.

    Args:
        module: what contains the blocks.
        depth: see :func:`set_depth`.
        blocks: all blocks, in order.

    Returns:
        The blocks that are left.
    """
    kept = _chosen(blocks, depth)
    gone = [name for name in blocks if name not in kept]
    edits = [ReplaceModule(name, {"type": "PassThrough"}, f"block {name!r} is passed by") for name in gone]
    if edits:
        Record.of(module).change(0, edits)
    remember_blocks(module, kept)
    return kept


def _chosen(blocks: Sequence[str], depth: int | Sequence[str] | None) -> list[str]:
    if depth is None:
        return list(blocks)
    if isinstance(depth, str) or not (is_whole(depth) or isinstance(depth, Sequence)):
        raise CompressionError(f"depth={depth!r}: how many blocks, or a list of their names.")
    if isinstance(depth, int):
        return kept_blocks(blocks, depth)
    unknown = [name for name in depth if name not in blocks]
    if unknown:
        raise CompressionError(f"{unknown[0]!r} is no block of this network; those are {', '.join(map(repr, blocks))}.")
    return [name for name in blocks if name in depth]


def _always(block: nn.Module, value: Tensor) -> bool:
    return True
