"""Masks that lie outside the module: plain parameters stay plain, and exact zeros stay zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Edit

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


class Masks:
    """Which entries of which parameters are zero for good; a follower, so they shrink with the network.

    Applied by an AND on the bits: the cost of a multiplication, always +0.0, and NaN does not survive it.

    Attributes:
        reshaped: an edit has changed their shapes; whoever has seen to it sets it back.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> masks = Masks(layer)
    >>> masks.set({"weight": torch.tensor([[True, False]])})
    >>> layer.weight[0, 1].item(), masks.zeros
    (0.0, 1)
    """

    def __init__(self, module: nn.Module) -> None:
        self.reshaped = False
        self._module = module
        self._keep: dict[str, Tensor] = {}
        self._aliases: dict[str, str] = {}
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def module(self) -> nn.Module:
        """Whose parameters are masked."""
        return self._module

    @property
    def zeros(self) -> int:
        """Number of entries that are masked."""
        return self.zeros_in(self._keep)

    def zeros_in(self, names: Iterable[str]) -> int:
        """Number of entries of the parameters ``names`` that are masked."""
        masks = [self._keep[name] for name in names if name in self._keep]
        return sum(int(keep.numel() - keep.sum()) for keep in masks)

    def keep(self, name: str, like: Tensor) -> Tensor:
        """Boolean mask of a parameter, True where the entry is alive; all True where it has none yet."""
        return self._keep[name].to(like.device) if name in self._keep else torch.ones_like(like, dtype=torch.bool)

    def set(self, keep: Mapping[str, Tensor]) -> None:
        """Take these masks for the parameters named and apply them."""
        self._take({**self._keep, **keep})
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Set the masked entries to zero, in place."""
        if any(parameter.device != bits.device for parameter, bits in self._pairs):
            self._take(self._keep)  # the module has moved since
        for parameter, bits in self._pairs:
            parameter.view(bits.dtype).bitwise_and_(bits)

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``, shaped like the parameter ``name``, with the masked entries zero.

        ``name`` may be any name of a tied parameter; ``tensor`` itself is returned where there is no mask.
        """
        keep = self._keep.get(self._aliases.get(name, name))
        if keep is None:
            return tensor
        return torch.where(keep.to(tensor.device), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Shrink with the network; what comes back is alive; a parameter that is gone or new has no mask."""
        before, names = self._keep, dict(self._module.named_parameters())
        replaced = tuple(name.removesuffix("*") for name in edit.touched if name.endswith("*"))
        stay = {name: keep for name, keep in before.items() if name in names and not name.startswith(replaced)}
        self._take({name: ~edit.carry(name, ~keep) for name, keep in stay.items()})
        self.reshaped = True
        return lambda: self._take(before)

    def to_state(self) -> dict[str, Any]:
        """One bit an entry, for a checkpoint."""
        return {name: [list(keep.shape), _pack(keep)] for name, keep in self._keep.items()}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint, and apply them.

        Raises:
            CompressionError: they do not fit the module as it is; the present ones stay.
        """
        self._take({name: _unpack(bits, shape) for name, (shape, bits) in state.items()})
        self.apply_()

    def _take(self, keep: dict[str, Tensor]) -> None:
        parameters = dict(self._module.named_parameters())
        pairs = []
        for name, mask in keep.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != mask.shape:
                raise CompressionError(
                    f"The mask of {name!r} has shape {tuple(mask.shape)}; the module has no such parameter."
                )
            bits = mask.to(parameter.device).to(_INTEGERS[parameter.element_size()]).neg_()
            pairs.append((parameter, bits))
        first = {id(parameter): name for name, parameter in parameters.items()}
        every = self._module.named_parameters(remove_duplicate=False)
        self._aliases = {name: first[id(parameter)] for name, parameter in every}
        self._keep, self._pairs = keep, pairs


def _pack(keep: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(keep.cpu().numpy().reshape(-1)))


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).view(shape)
