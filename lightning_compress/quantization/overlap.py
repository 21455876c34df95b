"""No weight is quantized twice."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.transparent import _ENTRIES


def refuse_overlap(module: nn.Module, names: Iterable[str], who: str) -> None:
    """Refuse weights that somebody else shows through a transform: both would decide what they are.

    Args:
        module: the network.
        names: of the parameters that ``who`` is about to take.
        who: for the message.

    Raises:
        CompressionError: one of them is fake-quantized or binary already; nothing has been touched.
    """
    for name in names:
        path, _, key = name.rpartition(".")
        entry = module.get_submodule(path).__dict__.get(_ENTRIES, {}).get(key)
        if entry is not None and entry.owner != who:
            raise CompressionError(
                f"{who} and {entry.owner} would both decide the values of {name!r}. Leave it out of one of them: "
                f"exclude=({path or name!r},)."
            )
