"""Masks that lie outside the module: plain parameters stay plain, and exact zeros stay zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Edit

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def keep_top(scores: Tensor, drop: int) -> Tensor:
    """Boolean mask that keeps the largest scores; exactly ``drop`` entries are dropped.

    Ties fall to the earlier index, so the mask is a function of its input alone.

    Args:
        scores: any shape.
        drop: number of entries to drop, at most all.

    >>> keep_top(torch.tensor([3.0, 1.0, 2.0]), 1).tolist()
    [True, False, True]
    """
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[scores.flatten().argsort(stable=True)[:drop]] = False
    return keep.view_as(scores)


class Masks:
    """Which entries of which parameters are zero for good; a follower, so they shrink with the network.

    Applied by an AND on the bits: the cost of a multiplication, always +0.0, and NaN does not survive it.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> masks = Masks(layer)
    >>> masks.set({"weight": torch.tensor([[True, False]])})
    >>> layer.weight[0, 1].item(), masks.zeros
    (0.0, 1)
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._keep: dict[str, Tensor] = {}
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def zeros(self) -> int:
        """Number of entries that are masked."""
        return sum(int(keep.numel() - keep.sum()) for keep in self._keep.values())

    def keep(self, name: str, like: Tensor) -> Tensor:
        """Boolean mask of a parameter, True where the entry is alive; all True where it has none yet."""
        return self._keep[name].to(like.device) if name in self._keep else torch.ones_like(like, dtype=torch.bool)

    def set(self, keep: Mapping[str, Tensor]) -> None:
        """Take these masks for the parameters named and apply them."""
        self._keep = {**self._keep, **keep}
        self._bind()
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Set the masked entries to zero, in place."""
        for parameter, bits in self._pairs:
            parameter.view(bits.dtype).bitwise_and_(bits)

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``, shaped like the parameter ``name``, with the masked entries zero."""
        if name not in self._keep:
            return tensor
        return torch.where(
            self._keep[name].to(tensor.device), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)
        )

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Shrink with the network; a parameter that is gone loses its mask. Returns what takes that back."""
        former, names = self._keep, dict(self._module.named_parameters())
        self._keep = {name: edit.carry(name, keep) for name, keep in former.items() if name in names}
        self._bind()

        def back() -> None:
            self._keep = former
            self._bind()

        return back

    def to_state(self) -> dict[str, Any]:
        """One bit an entry, for a checkpoint."""
        return {name: [list(keep.shape), _pack(keep)] for name, keep in self._keep.items()}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint, and apply those that fit the module as it is."""
        self._keep = {name: _unpack(bits, shape) for name, (shape, bits) in state.items()}
        self._bind()
        self.apply_()

    def _bind(self) -> None:
        parameters = dict(self._module.named_parameters())
        self._pairs = []
        for name, keep in self._keep.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != keep.shape:
                raise CompressionError(
                    f"The mask of {name!r} has shape {tuple(keep.shape)}; the module has no such parameter."
                )
            bits = keep.to(parameter.device).to(_INTEGERS[parameter.element_size()]).neg_()
            self._pairs.append((parameter, bits))


def _pack(keep: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(keep.cpu().numpy().reshape(-1)))


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).view(shape)
