"""How much an error of each weight costs: its mean squared gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.plan import Edit

STEPS = 20
FLOOR = 0.1
"""Of the mean: no weight is free of charge, however flat the loss was around it."""


class GradientImportance:
    """Squared gradients, summed over training steps: the diagonal of the empirical Fisher information.

    An error of a weight changes the loss by about half its square times the curvature, which the squared gradient
    stands for (LeCun, Denker and Solla, "Optimal Brain Damage", 1989). A follower.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> importance = GradientImportance()
    >>> (layer.weight * torch.tensor([1.0, 3.0])).sum().backward()
    >>> importance.gather(layer, ["weight"], layer.parameters())
    >>> importance.settle()
    >>> importance.of("weight", layer.weight)
    tensor([[0.2727, 1.7273]])
    """

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Forget what has been seen."""
        self._steps = 0
        self._sums: dict[str, Tensor] = {}
        self._mean = 0.0
        self._names: dict[int, str] | None = None

    @property
    def ready(self) -> bool:
        """Whether enough steps have been seen."""
        return self._steps >= STEPS

    @torch.no_grad()
    def gather(
        self, module: nn.Module, names: Collection[str], stepped: Iterable[nn.Parameter], scale: float = 1.0
    ) -> None:
        """Add the squares of the present gradients.

        Args:
            module: the network.
            names: of its parameters that are of interest.
            stepped: those that have gradients now.
            scale: what the gradients are still multiplied by.
        """
        if self._names is None:
            self._names = {id(parameter): name for name, parameter in module.named_parameters() if name in names}
        self._steps += 1
        for weight in stepped:
            name = self._names.get(id(weight))
            if name is not None and weight.grad is not None:
                square = (weight.grad.float() / scale).square()
                self._sums[name] = self._sums[name] + square if name in self._sums else square

    def settle(self) -> None:
        """Fix the mean, the first time: what is asked from here on is measured by it."""
        if not self._mean:
            entries = sum(total.numel() for total in self._sums.values())
            self._mean = sum(float(total.double().sum()) for total in self._sums.values()) / max(entries, 1)

    def of(self, name: str, weight: Tensor) -> Tensor:
        """What a squared error of each weight costs: mean 1 over all weights that have been seen, above 0."""
        if name not in self._sums or not self._mean:
            return torch.ones_like(weight)
        return (self._sums[name].to(weight.device) / self._mean + FLOOR) / (1 + FLOOR)

    def forget(self, keep: Collection[str]) -> None:
        """Keep the sums of these parameters alone."""
        self._sums = {name: total for name, total in self._sums.items() if name in keep}

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Cut with the network; a module that is replaced is forgotten."""
        former = self._sums
        replaced = tuple(name.removesuffix("*") for name in edit.touched if name.endswith("*"))
        stay = {name: total for name, total in former.items() if not (replaced and name.startswith(replaced))}
        self._sums, self._names = {name: edit.carry(name, total) for name, total in stay.items()}, None
        return partial(self._back, former)

    def _back(self, sums: dict[str, Tensor]) -> None:
        self._sums, self._names = sums, None

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self._steps, "mean": self._mean, "sums": dict(self._sums)}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`to_state`."""
        self._steps, self._mean, self._sums = state["steps"], state["mean"], dict(state["sums"])
