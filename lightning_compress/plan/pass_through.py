"""What stands in the place of a block that has been taken out."""

from __future__ import annotations

from typing import Any

from torch import nn


class PassThrough(nn.Module):
    """Returns its first argument, whatever else it is given: an Identity for blocks that take masks and the like.

    >>> PassThrough()(3, mask=None)
    3
    """

    def forward(self, value: Any, *_: Any, **__: Any) -> Any:
        """``value``."""
        return value
