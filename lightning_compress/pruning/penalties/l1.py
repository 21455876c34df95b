"""L1 on single weights."""

from collections.abc import Iterable

from torch import Tensor, nn

from lightning_compress.surgery import Group, find_weights


def l1(module: nn.Module, groups: Iterable[Group]) -> dict[str, Tensor]:
    """The sign of each weight of Linear, convolution, attention and recurrent layers (Tibshirani 1996, "lasso").

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, -4.0]]))
    >>> l1(net, [])["0.weight"].tolist()
    [[1.0, -1.0]]
    """
    return {name: weight.detach().sign() for name, weight in find_weights(module, None).items()}
