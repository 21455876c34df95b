"""Sums over the gradients of the training steps: evidence for criteria, for free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Edit
from lightning_compress.pruning.evidence import GRADIENTS

LASTING = "movement"


class GradientSums:
    """Sums over training steps of what the gradients of some parameters say, in fp32; a follower of the module's edits.

    Under DDP gradients are averaged before they get here, so every process has the same sums.

    Args:
        module: whose parameters they are.
        names: of the parameters.
        kinds: which sums: of :data:`~lightning_compress.pruning.evidence.GRADIENTS`.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> sums = GradientSums(layer, ["weight"], {"gradient"})
    >>> layer.weight.grad = torch.tensor([[2.0]])
    >>> sums.add()
    >>> sums.evidence()["gradient"]["weight"].tolist()
    [[2.0]]
    """

    def __init__(self, module: nn.Module, names: Collection[str], kinds: Collection[str]) -> None:
        self._module = module
        self._names = list(names)
        self.steps = 0
        self._reached: set[str] = set()
        self._parameters = self._find()
        self._sums = {
            kind: {name: torch.zeros_like(one, dtype=torch.float32) for name, one in self._parameters.items()}
            for kind in sorted(GRADIENTS & set(kinds))
        }

    @torch.no_grad()
    def add(self, *, check: bool = False) -> None:
        """Count the present gradients: before each optimizer step, on weights that are not stepped yet.

        Args:
            check: leave out a step with gradients that are not finite, as a gradient scaler will.
        """
        found = {name: parameter for name, parameter in self._parameters.items() if parameter.grad is not None}
        gradients = [p.grad.float() for p in found.values() if p.grad is not None]
        if not gradients or (check and not bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())):
            return
        self.steps += 1
        self._reached.update(found)
        weights = [p.float() for p in found.values()]
        for kind, sums in self._sums.items():
            into = [self._on_device(sums, name, p) for name, p in found.items()]
            _ADD[kind](into, weights, gradients)

    def evidence(self) -> dict[str, dict[str, Tensor]]:
        """Kind -> parameter -> mean over the steps; the movement is a sum.

        Raises:
            CompressionError: no step has been counted, or none in which some parameter had a gradient.
        """
        if self.steps == 0:
            raise CompressionError("No gradients have been gathered yet: the criterion needs training steps first.")
        without = [name for name in self._parameters if name not in self._reached]
        if without:
            layers = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in without))
            raise CompressionError(
                f"No gradient has reached {', '.join(map(repr, without))} (frozen, or not used in training), so the "
                f"criterion would take it for worthless. Use criterion='magnitude', or exclude={layers!r}."
            )
        return {
            kind: {name: one if kind == LASTING else one / self.steps for name, one in sums.items()}
            for kind, sums in self._sums.items()
        }

    def reset(self) -> None:
        """Begin anew, after a cut; the movement goes on."""
        self.steps = 0
        self._reached.clear()
        for kind, sums in self._sums.items():
            if kind != LASTING:
                for one in sums.values():
                    one.zero_()

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Shrink with the network; what comes back begins at zero, a parameter that is gone is no longer counted."""
        before, former, steps, reached = dict(self._sums), self._parameters, self.steps, set(self._reached)
        self._parameters = self._find()
        for kind, sums in self._sums.items():
            self._sums[kind] = {
                name: self._carried(edit, name, sums.get(name), one) for name, one in self._parameters.items()
            }

        if not former.keys() >= self._parameters.keys():  # of a new module nothing is known yet
            self.reset()

        def back() -> None:
            self._sums, self._parameters, self.steps, self._reached = before, self._find(), steps, reached

        return back

    def state_dict(self) -> dict[str, Any]:
        """Numbers and copies of tensors."""
        sums = {kind: {name: one.clone() for name, one in own.items()} for kind, own in self._sums.items()}
        return {"steps": self.steps, "reached": sorted(self._reached), "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CompressionError: of other parameters or other sums.
        """
        for kind, sums in self._sums.items():
            other = state["sums"].get(kind, {})
            if {n: s.shape for n, s in sums.items()} != {n: s.shape for n, s in other.items()}:
                raise CompressionError(f"The checkpoint's sums of gradients ({kind}) are of other parameters.")
            self._sums[kind] = {name: other[name].to(one.device, copy=True) for name, one in sums.items()}
        self.steps, self._reached = state["steps"], set(state["reached"])

    def _find(self) -> dict[str, nn.Parameter]:
        parameters = dict(self._module.named_parameters())
        return {name: parameters[name] for name in self._names if name in parameters}

    @staticmethod
    def _on_device(sums: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
        if sums[name].device != parameter.device:
            sums[name] = sums[name].to(parameter.device)
        return sums[name]

    @staticmethod
    def _carried(edit: Edit, name: str, own: Tensor | None, parameter: Tensor) -> Tensor:
        carried = None if own is None else edit.carry(name, own)
        fits = carried is not None and carried.shape == parameter.shape
        return carried if fits and carried is not None else torch.zeros_like(parameter, dtype=torch.float32)


def _add_gradient(into: list[Tensor], _: list[Tensor], gradients: list[Tensor]) -> None:
    torch._foreach_add_(into, gradients)


def _add_square(into: list[Tensor], _: list[Tensor], gradients: list[Tensor]) -> None:
    torch._foreach_addcmul_(into, gradients, gradients)


def _add_product(into: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
    products = torch._foreach_mul(weights, gradients)
    torch._foreach_abs_(products)
    torch._foreach_add_(into, products)


def _add_movement(into: list[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
    torch._foreach_addcmul_(into, weights, gradients, -1.0)


_ADD = {
    "gradient": _add_gradient,
    "squared_gradient": _add_square,
    "product": _add_product,
    "movement": _add_movement,
}
