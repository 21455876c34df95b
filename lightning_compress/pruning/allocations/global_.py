"""One ranking over all."""

from collections.abc import Mapping

import torch
from torch import Tensor


def global_(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """Each tensor gives the entries that are among the ``drop`` lowest of all; ties fall to the earlier one.

    >>> global_({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([2.0, 3.0])}, 2)
    {'a': 1, 'b': 1}
    """
    owners = torch.cat([torch.full((s.numel(),), i) for i, s in enumerate(scores.values())])
    order = torch.cat([s.flatten().cpu() for s in scores.values()]).argsort(stable=True)[:drop]
    counts = torch.bincount(owners[order], minlength=len(scores))
    return dict(zip(scores, counts.tolist(), strict=True))
