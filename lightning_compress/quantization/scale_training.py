"""Learned scales beside the user's optimizers: steps relative to their size, through the edits of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.training import AuxiliaryOptimizer

BETAS = (0.9, 0.999)


class RelativeAdam(Optimizer):
    """Adam whose steps are shares of a parameter's own size, as befits scales that span orders of magnitude.

    Args:
        params: as for any optimizer; a group with ``absolute=True`` takes plain steps.
        lr: share by which a parameter changes in one step.

    >>> scale = nn.Parameter(torch.tensor([100.0, 0.01]))
    >>> optimizer = RelativeAdam([scale], lr=0.1)
    >>> scale.grad = torch.tensor([3.0, 3.0])
    >>> optimizer.step()
    >>> [round(x, 4) for x in scale.tolist()]
    [90.0, 0.009]
    """

    def __init__(self, params: Iterable[Any], lr: float = 2e-3) -> None:
        super().__init__(params, {"lr": lr, "absolute": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
                    self.state[parameter] = {"step": 0, "exp_avg": mean, "exp_avg_sq": square}
                self.state[parameter]["step"] += 1
            states = [self.state[p] for p in parameters]
            gradients = [p.grad for p in parameters]
            means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
            torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
            torch._foreach_mul_(squares, BETAS[1])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, 1e-12)
            steps = means if group["absolute"] else torch._foreach_mul(means, parameters)
            rates = [-group["lr"] * _unbiased(state["step"]) for state in states]
            torch._foreach_addcdiv_(parameters, steps, roots, rates)


def _unbiased(step: int) -> float:
    """What corrects the averages for having begun at zero."""
    return float((1 - BETAS[1] ** step) ** 0.5 / (1 - BETAS[0] ** step))


class ScaleTraining:
    """The auxiliary optimizer of learned scales.

    Args:
        parameters: by name; those called ``zero`` are zero points, in codes.
        rate: share of a scale that one step changes; of the levels for a zero point.
        keep_in_range: called after each step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float, keep_in_range: Callable[[], None]) -> None:
        def build(given: Iterable[nn.Parameter]) -> Optimizer:
            scales = [p for name, p in parameters.items() if not name.endswith("/zero")]
            zeros = [p for name, p in parameters.items() if name.endswith("/zero")]
            groups: list[dict[str, Any]] = [{"params": scales}] if scales else []
            groups += [{"params": zeros, "lr": 16 * rate, "absolute": True}] if zeros else []
            return RelativeAdam(groups, lr=rate)

        self.auxiliary = AuxiliaryOptimizer(parameters, build)
        self._keep_in_range = keep_in_range
        self.auxiliary.optimizer.register_step_post_hook(lambda *_: self._keep_in_range())

    def attach(self, optimizers: Sequence[Optimizer], scale: Callable[[], float] | None) -> None:
        """Step whenever one of ``optimizers`` does."""
        self.auxiliary.attach(optimizers, scale)

    def detach(self) -> None:
        """Step no more."""
        self.auxiliary.detach()

    def swap(self, name: str, new: nn.Parameter, carry: Callable[[Tensor], Tensor]) -> None:
        """A parameter has another shape: its moments are carried."""
        old, optimizer = self.auxiliary.parameters[name], self.auxiliary.optimizer
        self.auxiliary.parameters[name] = new
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[new] = {
                key: carry(value) if isinstance(value, Tensor) and value.shape == old.shape else value
                for key, value in state.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Values and moments."""
        return self.auxiliary.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.auxiliary.load_state_dict(state)
