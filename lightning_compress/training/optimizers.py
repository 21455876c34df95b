"""Optimizers through an edit: the new parameter takes the old one's place in its group, its state is cut along with
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Edit

OptimizerState: TypeAlias = list[dict[str, dict[str, Any]]]
"""For each optimizer: parameter name -> what it keeps for it (tensors and numbers)."""


class OptimizerBinding:
    """Follows a module's edits with the optimizers that train it: moments, step counts, groups and schedulers all go
    on.

    Args:
        module: the module whose parameters the optimizers hold.
        optimizers: any of ``torch.optim``, with any number of parameter groups.
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._module = module
        self._optimizers = list(optimizers)
        self._names = _names_of(module)

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Put the module's present parameters where the former ones were; cut their state as ``edit`` cut them.

        Returns:
            What puts groups and state back as they were.

        Raises:
            CompressionError: state that is not shaped like its parameter (a factored second moment); nothing is
                touched.
        """
        for parameter, names in self._names.items():
            if not edit.touched.isdisjoint(names):
                for optimizer in self._optimizers:
                    _check_state(optimizer, names[0], parameter)
        former, back = self._names, self._back()
        self._names = _names_of(self._module)
        present = {name: parameter for parameter, names in self._names.items() for name in names}
        successors = {old: _successor(names, present) for old, names in former.items()}
        added = [parameter for parameter in self._names if parameter not in {*former, *successors.values()}]
        for optimizer in self._optimizers:
            _replace_in_groups(optimizer, successors, self._homes(optimizer, former, successors, added))
            for old, names in former.items():
                new = successors[old]
                if new is not old and old in optimizer.state:
                    name = next((name for name in names if name in edit.touched), names[0])
                    state = optimizer.state.pop(old)
                    if new is not None:
                        optimizer.state[new] = _carry_state(edit, name, old, state)
        return back

    def _homes(
        self,
        optimizer: Optimizer,
        former: Mapping[nn.Parameter, list[str]],
        successors: Mapping[nn.Parameter, nn.Parameter | None],
        added: Sequence[nn.Parameter],
    ) -> dict[int, list[nn.Parameter]]:
        """Number of a group -> the new module's parameters that go there: those called ``bias`` to where a replaced
        bias was, or where other biases are, as a rule by name or dimension in ``configure_optimizers`` has it.
        """
        homes: dict[int, list[nn.Parameter]] = {}
        groups = [[p for p in group["params"] if p in former] for group in optimizer.param_groups]
        leaving = [[p for p in group if successors.get(p, p) is None] for group in groups]
        if not any(leaving):
            return homes
        for parameter in added:
            leaf = _leaf(self._names[parameter])
            alike = [[p for p in group if _leaf(former[p]) == leaf and p.dim() == parameter.dim()] for group in groups]
            gone = [[p for p in group if _leaf(former[p]) == leaf] for group in leaving]
            places = range(len(groups))
            home = next((k for k in places if gone[k]), None)
            if home is None:
                home = max(places, key=lambda k: (len(alike[k]), bool(leaving[k])))
            if not alike[home] and not gone[home]:
                home = next(k for k in places if leaving[k])
            homes.setdefault(home, []).append(parameter)
        return homes

    def _back(self) -> Callable[[], None]:
        names = self._names
        kept = [([list(g["params"]) for g in opt.param_groups], dict(opt.state)) for opt in self._optimizers]

        def back() -> None:
            self._names = names
            for optimizer, (groups, state) in zip(self._optimizers, kept, strict=True):
                optimizer.state.clear()
                optimizer.state.update(state)
                for group, parameters in zip(optimizer.param_groups, groups, strict=True):
                    group["params"] = parameters

        return back

    def get_state(self) -> OptimizerState:
        """Copies of what the optimizers keep, by parameter name; learning rates and schedules are not part of it."""
        return [
            {names[0]: _clone(optimizer.state[p]) for p, names in self._names.items() if p in optimizer.state}
            for optimizer in self._optimizers
        ]

    def set_state(self, states: OptimizerState) -> None:
        """Go back to what :meth:`get_state` returned; the module has the shape it had then."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            for parameter, names in self._names.items():
                optimizer.state.pop(parameter, None)
                if names[0] in state:
                    kept = _clone(state[names[0]])
                    optimizer.state[parameter] = {
                        key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
                        for key, value in kept.items()
                    }


def _names_of(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _successor(names: list[str], present: Mapping[str, nn.Parameter]) -> nn.Parameter | None:
    return next((present[name] for name in names if name in present), None)


def _check_state(optimizer: Optimizer, name: str, parameter: nn.Parameter) -> None:
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
            raise CompressionError(
                f"{name!r} cannot shrink under {type(optimizer).__name__}: its state {key!r} has shape "
                f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}. Use an optimizer whose state is shaped "
                "like its parameters (Adam, SGD), start its state anew (NeuronPruning(optimizer='reset')), or exclude "
                "the layer."
            )


def _carry_state(edit: Edit, name: str, old: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: edit.carry(name, value) if isinstance(value, Tensor) and value.shape == old.shape else value
        for key, value in state.items()
    }


def _replace_in_groups(
    optimizer: Optimizer,
    successors: Mapping[nn.Parameter, nn.Parameter | None],
    homes: Mapping[int, Sequence[nn.Parameter]],
) -> None:
    """Same places for the successors; parameters of a new module go where the first of the replaced module's was."""
    for number, group in enumerate(optimizer.param_groups):
        parameters: list[nn.Parameter] = []
        to_come = list(homes.get(number, ()))
        for old in group["params"]:
            new = successors.get(old, old)
            if new is not None:
                parameters.append(new)
            else:
                parameters.extend(to_come)
                to_come.clear()
        group["params"] = parameters + to_come


def _leaf(names: Sequence[str]) -> str:
    return names[0].rpartition(".")[2]


def _clone(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in state.items()}


class AuxiliaryOptimizer:
    """Trains parameters of our own (learned scales, centroids, adapters, exit heads) next to the user's optimizers.

    They are never added to those: ``add_param_group`` breaks OneCycle and LambdaLR, and a resume without the callback.
    This optimizer steps whenever one of the user's does, on gradients that are averaged over the processes, unscaled
    and clipped.

    Args:
        parameters: by name; they live outside the module.
        build: makes the optimizer, ``torch.optim.Adam`` or a partial of it.
        clip_norm: largest total norm of the gradients; None does not clip.

    >>> scale = nn.Parameter(torch.ones(()))
    >>> auxiliary = AuxiliaryOptimizer({"scale": scale}, lambda p: torch.optim.SGD(p, lr=0.5))
    >>> scale.square().backward()
    >>> auxiliary.step()
    >>> scale.item()
    0.0
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        build: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        clip_norm: float | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.optimizer = build(list(self.parameters.values()))
        self.clip_norm = clip_norm
        self._scale: Callable[[], float] = lambda: 1.0
        self._handles: list[Any] = []

    def attach(self, optimizers: Sequence[Optimizer], scale: Callable[[], float] | None = None) -> None:
        """Step after each step of ``optimizers``; ``scale`` returns the present loss scale of a gradient scaler."""
        self.detach()
        self._scale = scale or self._scale
        self._handles = [optimizer.register_step_post_hook(lambda *_: self.step()) for optimizer in optimizers]

    def detach(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def step(self) -> None:
        """Average, unscale, clip and apply the gradients, then clear them; gradients that are not finite are
        dropped.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        _average(self.parameters.values())
        if gradients:
            if (scale := self._scale()) != 1:
                torch._foreach_mul_(gradients, 1.0 / scale)
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            if bool(torch.isfinite(norm)):
                if self.clip_norm is not None and norm > self.clip_norm:
                    torch._foreach_mul_(gradients, float(self.clip_norm / norm))
                self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients (call it where the user's optimizer clears its own)."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Values and optimizer state, loadable with ``weights_only=True``."""
        values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        return {"values": values, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["values"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _average(parameters: Iterable[nn.Parameter]) -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
