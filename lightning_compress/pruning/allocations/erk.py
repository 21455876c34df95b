"""Narrow layers stay denser."""

from collections.abc import Mapping

from torch import Tensor

from lightning_compress.pruning.seats import share_out


def erk(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """What stays of a weight is in proportion to the sum of its dimensions over their product (Erdős-Rényi-Kernel).

    Mocanu et al. 2018, arXiv:1707.04780; with kernels, Evci et al. 2020 ("RigL", arXiv:1911.11134). No more stays than
    there is.

    >>> import torch
    >>> erk({"wide": torch.zeros(100, 100), "narrow": torch.zeros(10, 100)}, 9500)
    {'wide': 9032, 'narrow': 468}
    """
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    sizes = {name: score.numel() for name, score in scores.items()}
    density = {name: sum(shape) / max(1, sizes[name]) for name, shape in shapes.items()}
    scale = max(1.0, 1 / min(density.values()))

    def share(name: str, level: float) -> float:
        return 1 - min(1.0, (1 - level) * scale * density[name])

    return share_out(sizes, share, drop)
