"""The teachers of a student together: asked, brought to the student's classes, pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.distillation.output_shapes import width
from lightning_compress.distillation.pools.random import random
from lightning_compress.distillation.teacher import Teacher
from lightning_compress.errors import CompressionError
from lightning_compress.registry import resolve
from lightning_compress.surgery import TracingInput
from lightning_compress.surgery.tracing import tensors_in

Pool = Callable[[Tensor, Tensor, float], Tensor]
POOLS = "lightning_compress.distillation.pools"
FOR_ANY_OUTPUT = ("mean_logits", "random")


class TeacherBank:
    """Teachers outside of every module tree, and the pool that makes one voice of them.

    Args:
        teachers: at least one.
        pool: name of a function in ``distillation/pools``, or any callable like those.
        outputs: what the loss reads, as :func:`~lightning_compress.distillation.precision.reads` says it.

    Raises:
        CompressionError: an unknown pool, or one of class distributions for outputs that are none.
    """

    def __init__(self, teachers: Sequence[Teacher], pool: str | Pool, outputs: str = "classes") -> None:
        self.teachers = list(teachers)
        self.pool: Pool = resolve(pool, POOLS)
        self.outputs = outputs
        self._over_classes = pool if isinstance(pool, str) and pool not in FOR_ANY_OUTPUT else None
        if outputs in ("labels", "values"):
            self._refuse_pool(outputs)
        self.weights = normalised([teacher.weight for teacher in teachers])
        self._fingerprints: list[str] = []
        self._width: int | None = None

    def _refuse_pool(self, outputs: str) -> None:
        if self._over_classes is not None:
            raise CompressionError(
                f"pool={self._over_classes!r} pools distributions over classes, and the loss reads {outputs}. "
                f"Use one of {', '.join(FOR_ANY_OUTPUT)}."
            )

    def set_weights(self, weights: Any) -> None:
        """Weigh the teachers by these numbers.

        Raises:
            CompressionError: not one number above 0 for each.
        """
        given = weights.tolist() if hasattr(weights, "tolist") else weights
        numbers: list[Any] = [given] if isinstance(given, Real) else list(given)
        if len(numbers) != len(self.teachers) or not all(isinstance(one, Real) and float(one) > 0 for one in numbers):
            raise CompressionError(
                f"Distillation(weights={numbers}): one number above 0 for each of the {len(self.teachers)} teachers."
            )
        self.weights = normalised(numbers)

    def load(self, module: L.LightningModule) -> None:
        """Read checkpoints; note what each teacher consists of."""
        for teacher in self.teachers:
            teacher.load(type(module))
        self._fingerprints = [_fingerprint(teacher) for teacher in self.teachers]

    @property
    def fingerprint(self) -> str:
        """One for all of them, with what is made of their outputs before they are kept."""
        return "+".join(
            f"{teacher.fingerprint()}{'' if teacher.classes is None else list(teacher.classes)}{teacher.treatment}"
            for teacher in self.teachers
        )

    def refuse_trained(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Raise if a teacher's parameters are among those that are trained."""
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        for teacher in self.teachers:
            network = teacher.network
            if isinstance(network, nn.Module) and any(id(parameter) in held for parameter in network.parameters()):
                raise CompressionError(
                    f"The teacher {teacher.name} would be trained: its parameters are in the student's optimizer. "
                    "Pass a copy: copy.deepcopy(network)."
                )

    def check_unchanged(self) -> None:
        """Raise if a teacher is not what it was."""
        for teacher, before in zip(self.teachers, self._fingerprints, strict=True):
            if before != _fingerprint(teacher):
                raise CompressionError(
                    f"The teacher {teacher.name} changed during the fit: something else trains it, or runs it in train "
                    "mode. The student learnt from a moving target; pass a copy: copy.deepcopy(network)."
                )

    def prepare(self, device: torch.device, call: TracingInput, student: Tensor) -> Tensor:
        """Put the teachers where they run, and see that they fit the student's output.

        Returns:
            All members' logits for the call, as :meth:`ask_all` would give them.

        Raises:
            CompressionError: a teacher that cannot take the student's arguments, or numbers of classes that differ
                without a class map.
        """
        self._width = width(student.shape, self.outputs)
        if self.outputs == "any" and (student.dim() != 2 or self._width == 1):
            self._refuse_pool(f"outputs {tuple(student.shape)}")
        found = []
        for teacher in self.teachers:
            logits = self._first_answer(teacher, device, call)
            self._check(teacher, logits, student)
            found.append(self._known(teacher, logits))
            if found[-1].shape != found[0].shape:
                raise CompressionError(
                    f"The teachers {self.teachers[0].name} and {teacher.name} give {tuple(found[0].shape[1:])} and "
                    f"{tuple(found[-1].shape[1:])} (classes last); one voice needs the same of all."
                )
        return torch.stack(found)

    @staticmethod
    def _first_answer(teacher: Teacher, device: torch.device, call: TracingInput) -> Tensor:
        copied = call.map(torch.clone)  # one that works in place shall not change the student's batch
        before = _versions(copied)
        try:
            teacher.prepare(device, call)
            logits = teacher.ask(copied.args, copied.kwargs)
        except CompressionError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in((call.args, call.kwargs)))
            raise CompressionError(
                f"The teacher {teacher.name} gets what the student's {call.module!r} gets, {shapes}, and fails: "
                f'{str(error).rstrip(".")}. Name another part of the student with student="...", or pass a function of '
                "these arguments that asks the teacher in its way."
            ) from error
        if logits.isnan().any() or logits.isposinf().any():
            raise CompressionError(f"The teacher {teacher.name} answers with numbers that are not finite.")
        teacher.in_place = _versions(copied) != before
        return logits

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], step: int = 0) -> Tensor:
        """The members' logits (members, ...), classes last, in the student's classes; -inf where one is unknown."""
        return self._stacked(self.members(step), args, kwargs)

    def ask_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The same of every member, also where only one is asked at a step."""
        return self._stacked(self.teachers, args, kwargs)

    def _stacked(self, members: Sequence[Teacher], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return torch.stack([self._known(teacher, teacher.ask(args, kwargs)) for teacher in members])

    @property
    def draws(self) -> bool:
        """Whether one member is drawn at each step."""
        return self.pool is random and len(self.teachers) > 1

    def members(self, step: int) -> list[Teacher]:
        """Those that are asked at a step: all, or the one that is drawn."""
        return [self.teachers[number] for number in self.numbers(step)]

    def numbers(self, step: int) -> list[int]:
        """Their places among all."""
        if not self.draws:
            return list(range(len(self.teachers)))
        generator = torch.Generator().manual_seed(step)
        return [int(torch.multinomial(self.weights, 1, generator=generator))]

    def pooled(self, logits: Tensor, temperature: float) -> Tensor:
        """One voice of the members' logits (members, ...), classes last."""
        weights = self.weights if len(logits) == len(self.teachers) else torch.ones(1)
        return self.pool(logits, weights.to(logits.device, logits.dtype), temperature)

    def _known(self, teacher: Teacher, logits: Tensor) -> Tensor:
        if self.outputs == "pixels":
            logits = logits.movedim(1, -1)
        if teacher.classes is None or self._width is None or logits.dim() < 2:
            return logits
        labels = torch.tensor(list(teacher.classes), device=logits.device)
        known = labels >= 0
        full = logits.new_full((*logits.shape[:-1], self._width), -torch.inf)
        full[..., labels[known]] = logits[..., known]
        return full

    def _check(self, teacher: Teacher, logits: Tensor, student: Tensor) -> None:
        strict = self.outputs not in ("pixels", "any")  # those losses may bring positions to each other
        places = slice(0, -1) if strict else slice(0, 1)
        if logits.dim() != student.dim() or logits.shape[places] != student.shape[places]:
            raise CompressionError(
                f"The teacher {teacher.name} returns {tuple(logits.shape)}, the student {tuple(student.shape)}. Pass a "
                "function that asks the teacher and brings its outputs to that shape."
            )
        count = width(logits.shape, self.outputs)
        if teacher.classes is not None:
            if len(teacher.classes) != count:
                raise CompressionError(
                    f"The teacher {teacher.name} has {count} outputs and its class map names {len(teacher.classes)}."
                )
            if max(teacher.classes) >= (self._width or 0):
                raise CompressionError(
                    f"The class map of {teacher.name} names class {max(teacher.classes)}; the student has "
                    f"{self._width} classes, counted from 0."
                )
        elif count != self._width and (self.outputs != "any" or logits.dim() == 2):
            raise CompressionError(
                f"The teacher {teacher.name} has {count} outputs, the student {self._width}. Say which of the "
                "student's classes each of them means: Teacher(source, classes=[...])."
            )


def normalised(weights: Sequence[float]) -> Tensor:
    """Weights that sum to 1.

    >>> normalised([1.0, 3.0]).tolist()
    [0.25, 0.75]
    """
    values = torch.tensor(list(weights), dtype=torch.float32)
    return values / values.sum()


def _versions(call: TracingInput) -> list[int]:
    return [tensor._version for tensor in tensors_in((call.args, call.kwargs))]


def _fingerprint(teacher: Teacher) -> str:
    return teacher.fingerprint() if isinstance(teacher.network, nn.Module) else ""
