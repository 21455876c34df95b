"""One ranking over all."""

from collections.abc import Mapping

from torch import Tensor

from lightning_compress.pruning.threshold import count_below, find_threshold


def global_(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """Each tensor gives the entries that are among the ``drop`` lowest of all; ties fall to the earlier one.

    Linear in the number of entries; scores that are worked out when asked for are never all in memory.

    >>> import torch
    >>> global_({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([2.0, 3.0])}, 2)
    {'a': 1, 'b': 1}
    """
    if drop == 0:
        return dict.fromkeys(scores, 0)
    return count_below(scores, find_threshold(scores.values(), drop))
