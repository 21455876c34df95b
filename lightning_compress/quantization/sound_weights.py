"""The weights that are meant, fit to be looked at before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_compress.errors import CompressionError
from lightning_compress.surgery import find_weights


def find_sound_weights(
    module: nn.Module, targets: Sequence[str] | None, exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Those of :func:`~lightning_compress.surgery.find_weights`, which have a shape and finite values.

    Raises:
        CompressionError: a lazy layer that has not run yet; a weight with NaN or infinite values.

    >>> list(find_sound_weights(nn.Sequential(nn.Linear(2, 2)), None))
    ['0.weight']
    """
    found = find_weights(module, targets, exclude)
    for name, weight in found.items():
        if is_lazy(weight):
            raise CompressionError(
                f"{name!r} has no shape yet: its layer is lazy. Run the network once, on a batch, before the fit."
            )
        if not bool(torch.isfinite(weight.detach()).all()):
            raise CompressionError(f"{name!r} holds NaN or infinite weights, which are on no grid and have no sign.")
    return found
