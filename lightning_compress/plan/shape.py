"""What a module consists of at a moment, to go back to exactly."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_compress.plan.edits import ATTRIBUTES
from lightning_compress.plan.fewer_heads import settle_

_REMEMBERED = ATTRIBUTES | {"training"}


class Shape:
    """The very Parameters, buffers and submodules of a module, and its shape attributes, by reference.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> shape, weight = Shape(net), net[0].weight
    >>> net[0] = nn.Linear(2, 5)
    >>> shape.restore()
    >>> net[0].weight is weight
    True
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners = [(owner, _slots(owner)) for owner in module.modules()]

    def restore(self) -> None:
        """Put everything back."""
        for owner, slots in self._owners:
            present = _slots(owner)
            for key in [key for key in owner._modules if key not in slots]:
                delattr(owner, key)
            for key, value in slots.items():
                if present.get(key) is not value:
                    setattr(owner, key, value)
            settle_(owner)


def _slots(owner: nn.Module) -> dict[str, Any]:
    attributes = {key: value for key, value in vars(owner).items() if key in _REMEMBERED}
    return {**attributes, **owner._parameters, **owner._buffers, **owner._modules}
