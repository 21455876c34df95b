"""The same share everywhere."""

from collections.abc import Mapping

from torch import Tensor

from lightning_compress.pruning.seats import share_out


def uniform(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """Each tensor gives the same share, to the nearest entry.

    >>> import torch
    >>> uniform({"a": torch.zeros(6), "b": torch.zeros(3)}, 4)
    {'a': 3, 'b': 1}
    """
    return share_out({name: score.numel() for name, score in scores.items()}, lambda name, level: level, drop)
