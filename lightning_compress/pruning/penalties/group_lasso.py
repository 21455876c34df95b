"""L2 norm of all that goes with a neuron."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_compress.surgery import Group


def group_lasso(module: nn.Module, groups: Iterable[Group]) -> dict[str, Tensor]:
    """The gradient of each neuron's L2 norm over its whole dependency group (Fang et al. 2023, arXiv:2301.12900).

    What makes the neuron, what reads it and the norms between are one vector: it fades out together, so that its
    removal changes little. Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables".

    >>> from lightning_compress.surgery import Coupled
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> net[0].weight.data.fill_(3.0), net[1].weight.data.fill_(-4.0)
    (tensor([[3.]]), tensor([[-4.]]))
    >>> unit = torch.tensor([0])
    >>> group = Group("0", 1, ("0",), ("1",), (Coupled("0.weight", 0, unit), Coupled("1.weight", 1, unit)), ())
    >>> {name: round(value.item(), 3) for name, value in group_lasso(net, [group]).items()}
    {'0.weight': 0.6, '1.weight': -0.8}
    """
    parameters = dict(module.named_parameters())
    found: dict[str, Tensor] = {}
    for group in groups:
        parts = [(part, parameters[part.tensor].detach()) for part in group.coupled if part.tensor in parameters]
        parts = [(part, one) for part, one in parts if one.is_floating_point()]
        if not parts:
            continue
        squares = torch.zeros(group.size + 1, device=parts[0][1].device)  # the last is of no unit of the group
        for part, one in parts:
            over = [dim for dim in range(one.dim()) if dim != part.dim]
            own = one.float().square().sum(over) if over else one.float().square()
            squares.index_add_(0, part.units.to(one.device) % (group.size + 1), own)
        factors = squares.sqrt().clamp_min(1e-12).reciprocal()
        factors[-1] = 0
        for part, one in parts:
            shape = [-1 if dim == part.dim else 1 for dim in range(one.dim())]
            value = one * factors[part.units.to(one.device) % (group.size + 1)].view(shape).to(one.dtype)
            found[part.tensor] = found[part.tensor] + value if part.tensor in found else value
    return found
