"""L1 on the scales of BatchNorm."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_compress.surgery import Group

_NORMS = (nn.modules.batchnorm._NormBase,)


def batch_norm(module: nn.Module, groups: Iterable[Group]) -> dict[str, Tensor]:
    """The sign of each BatchNorm's weight: channels that matter little fade out (Liu et al. 2017, arXiv:1708.06519).

    >>> net = nn.Sequential(nn.BatchNorm1d(2))
    >>> batch_norm(net, [])["0.weight"].tolist()
    [1.0, 1.0]
    """
    scales = {
        f"{name}.weight".removeprefix("."): layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, _NORMS) and isinstance(layer.weight, Tensor)
    }
    return {name: torch.sign(weight.detach()) for name, weight in scales.items()}
