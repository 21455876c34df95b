"""A step on a copy before the first one: who is the student, what its features look like, what gives their channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.distillation.adapters import channels_of
from lightning_compress.distillation.outputs import logits_in, loss_in
from lightning_compress.distillation.recorder import Call, Recorder, find_part, the_one_student
from lightning_compress.distillation.taps import Source
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import TracingInput, evaluation_mode, private_copy
from lightning_compress.training import private

_SPEAKS_TO_TRAINER = (
    "log",
    "log_dict",
    "toggle_optimizer",
    "untoggle_optimizer",
    "manual_backward",
    "clip_gradients",
    "optimizers",
    "lr_schedulers",
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rehearse(
    root: nn.Module, step: Callable[[nn.Module], object], *, student: str | None, taps: Sequence[str]
) -> tuple[Call, dict[str, Source]]:
    """Run ``step`` on a copy of ``root`` in evaluation mode; ``root`` and the random states stay as they are.

    Args:
        root: the LightningModule.
        step: a whole training step of the copy that it is given.
        student: name of the student, None to find it.
        taps: names of tapped modules.

    Returns:
        The student's call, and for each tapped module the parameter and dimension that gives its channels.

    Raises:
        CompressionError: no such module, no call of the student, or a tapped module that it does not run.
    """
    duplicate = private_copy(root)
    recorder, sources = Recorder(duplicate, student, taps), _Sources(duplicate, taps)
    recorder.attach()
    sources.attach()
    with isolated_random_states(), evaluation_mode(duplicate), recorder.recording(), torch.enable_grad():
        step(duplicate)
    call = the_one_student(recorder.take())
    for name in taps:
        if name not in call.features:
            raise CompressionError(f"The student's call of {call.module!r} does not run the tapped module {name!r}.")
    return call, sources.found


def calls_in(trainer: L.Trainer, module: L.LightningModule, student: str, name: str) -> Callable[[Any], list[Call]]:
    """A function from a batch to the calls of the student that a step makes with it, on a copy in evaluation mode.

    Args:
        trainer: that fits ``module``.
        module: the LightningModule.
        student: name of the student in it.
        name: of the step, "training_step" or "validation_step".
    """
    duplicate = private_copy(module)
    recorder = Recorder(duplicate, student)
    recorder.attach()

    def calls(batch: Any) -> list[Call]:
        with isolated_random_states(), evaluation_mode(duplicate), recorder.recording(), torch.enable_grad():
            training_step_of(trainer, batch, name)(duplicate)
        return recorder.take()

    return calls


def training_step_of(trainer: L.Trainer, batch: Any, name: str = "training_step") -> Callable[[nn.Module], None]:
    """A step of a copy that logs nothing and steps no optimizer, whatever LightningModules it is made of.

    Raises:
        CompressionError: by that step, where its loss is not one number.
    """
    batch = TracingInput("", (batch,), {}).map(torch.clone).args[0]  # a step may work in place

    def step(duplicate: nn.Module) -> None:
        for part in duplicate.modules():
            if isinstance(part, L.LightningModule) and part is not duplicate:
                for method in _SPEAKS_TO_TRAINER:
                    part.__dict__[method] = _Same(duplicate, method)
        output = private.rehearse_training_step(duplicate, trainer, batch, name)
        if name == "training_step":
            loss_in(output)

    return step


class _Same:
    """A method of a part that does what the root's does."""

    def __init__(self, root: nn.Module, name: str) -> None:
        self._root, self._name = root, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._root, self._name)(*args, **kwargs)


class _Sources:
    """The last layer before a tap's output whose weight has as many rows as the output has channels."""

    def __init__(self, root: nn.Module, taps: Sequence[str]) -> None:
        self._root, self._taps = root, taps
        self._order: list[tuple[str, int, int]] = []
        self.found: dict[str, Source] = {}

    def attach(self) -> None:
        for name, module in self._root.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None:
                module.register_forward_hook(self._note(name, 1 if isinstance(module, _TRANSPOSED) else 0, weight))
        for tap in self._taps:
            find_part(self._root, tap, "tapped").register_forward_hook(self._look(tap))

    def _note(self, name: str, dim: int, weight: Tensor) -> Callable[..., None]:
        return lambda *_: self._order.append((f"{name}.weight", dim, weight.shape[dim]))

    def _look(self, tap: str) -> Callable[..., None]:
        def look(module: nn.Module, args: object, output: object) -> None:
            channels = channels_of(tuple(logits_in(output).shape[1:]))
            for name, dim, width in reversed(self._order):
                if width == channels:
                    self.found[tap] = name, dim
                    break

        return look
