"""Taps: features of student and teacher compared amid the networks, with adapters that follow the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.distillation.adapters import Adapter, Fusion, Shape, adapter_of, channels_of
from lightning_compress.distillation.fields import built
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve

FEATURES = "lightning_compress.distillation.features"
Source = tuple[str, int]
"""A parameter and its dimension that gives a feature its channels."""


@dataclass(frozen=True)
class Tap:
    """Two layers whose outputs are compared.

    Attributes:
        student: name of the student's layer in the LightningModule, or several for a loss over stages.
        teacher: name of the teacher's layer in the teacher; None: the same name.
        loss: name of a function in ``distillation/features``, or any callable of two tensors.
        weight: of this loss beside the others.
        member: which teacher of an ensemble, counted from 0.

    Raises:
        CompressionError: an unknown loss, or another number of layers than the loss takes.

    >>> Tap("network.fc1", "network.fc1", loss="similarity", weight=100.0).teachers
    ('network.fc1',)
    """

    student: str | Sequence[str]
    teacher: str | Sequence[str] | None = None
    loss: str | Callable[..., Tensor] = "hint"
    weight: float = 1.0
    member: int = 0

    def __post_init__(self) -> None:
        adapter = adapter_of(self.function)
        self._check_kinds((*self.students, *self.teachers), self.weight, self.member)
        if len(self.students) != len(self.teachers):
            raise CompressionError(
                f"Tap: {len(self.students)} layers of the student, {len(self.teachers)} of the teacher."
            )
        if len(self.students) > 1 and adapter is not Fusion:
            raise CompressionError(f"Tap(loss={self.loss!r}) compares one layer with one: make a Tap for each.")

    @staticmethod
    def _check_kinds(names: Sequence[Any], weight: Any, member: Any) -> None:
        for name in names:
            if not isinstance(name, str):
                raise CompressionError(f"Tap: {name!r} is no name of a layer.")
        if not isinstance(weight, Real) or not isinstance(member, int):
            raise CompressionError(f"Tap(weight={weight!r}, member={member!r}): a number, and a whole one.")

    @property
    def students(self) -> tuple[str, ...]:
        """The student's layers."""
        return _as_tuple(self.student)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teacher's layers."""
        return _as_tuple(self.student if self.teacher is None else self.teacher)

    @property
    def function(self) -> Callable[..., Tensor]:
        """The loss itself."""
        return resolve(self.loss, FEATURES)


def _as_tuple(names: Any) -> tuple[str, ...]:
    return tuple(names) if isinstance(names, list | tuple) else (names,)


def as_taps(taps: Sequence[Tap | Mapping[str, Any]] | Tap | Mapping[str, Any]) -> tuple[Tap, ...]:
    """One tap or several, given as such or as mappings of their fields.

    Raises:
        CompressionError: something else, or an unknown field.

    >>> as_taps([{"student": "fc1", "loss": "pkt"}])[0].loss
    'pkt'
    """
    found = []
    for tap in [taps] if isinstance(taps, Tap | Mapping | str) else taps:
        if not isinstance(tap, Tap | Mapping):
            raise CompressionError(f"taps: {tap!r} is no Tap. Name both layers: taps=[Tap(student=..., teacher=...)].")
        found.append(tap if isinstance(tap, Tap) else built(Tap, tap))
    return tuple(found)


class TapSet(nn.Module):
    """The taps of one student with their adapters; never a part of the student.

    Args:
        taps: at least one.
        students: the student's features by layer, of one batch.
        teachers: the features of each teacher by layer, of the same batch.
        sources: for layers of the student, the parameter that gives their channels.

    Raises:
        CompressionError: features that a loss cannot compare.
    """

    def __init__(
        self,
        taps: Sequence[Tap],
        students: Mapping[str, Tensor],
        teachers: Sequence[Mapping[str, Tensor]],
        sources: Mapping[str, Source],
    ) -> None:
        super().__init__()
        self.taps, self.sources = tuple(taps), dict(sources)
        with isolated_random_states():
            torch.manual_seed(0)  # the same adapters in all processes
            adapters = [self._build(tap, students, teachers[tap.member]) for tap in taps]
        self.adapters = nn.ModuleList(adapters)
        self.to(next(iter(students.values())).device)
        with torch.no_grad():
            self(students, teachers)

    @staticmethod
    def _build(tap: Tap, students: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Adapter:
        shapes: list[list[Shape]] = [
            [tuple(features[name].shape[1:]) for name in names]
            for features, names in ((students, tap.students), (teacher, tap.teachers))
        ]
        return adapter_of(tap.function)(*shapes)

    def forward(self, students: Mapping[str, Tensor], teachers: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Weighted sum of the taps' losses, in single precision.

        Raises:
            CompressionError: the student's channels are not those that an adapter reads.
        """
        total = torch.zeros((), device=next(iter(students.values())).device)
        with torch.autocast(total.device.type, enabled=False):
            for tap, adapter in zip(self.taps, self.adapters, strict=True):
                assert isinstance(adapter, Adapter)
                found = tuple(students[name].float() for name in tap.students)
                expected = tuple(teachers[tap.member][name].detach().float() for name in tap.teachers)
                self._check(tap, adapter, found)
                total = total + tap.weight * tap.function(*adapter(found, expected))
        return total

    @staticmethod
    def _check(tap: Tap, adapter: Adapter, found: Sequence[Tensor]) -> None:
        for name, position in adapter.inputs():
            layer = adapter.get_submodule(name)
            channels = channels_of(tuple(found[position].shape[1:]))
            if isinstance(layer, nn.Linear) and layer.in_features != channels:
                raise CompressionError(
                    f"The tapped layer {tap.students[position]!r} has {channels} channels now and had "
                    f"{layer.in_features}: its adapter could not follow. Tap the convolution or Linear itself, or use "
                    'a loss without an adapter ("similarity", "rkd", "pkt").'
                )

    def inputs(self) -> list[tuple[str, str, Source]]:
        """For each adapter input that can follow: its Linear layer's name, the student's layer, and the source."""
        found = []
        for number, (tap, adapter) in enumerate(zip(self.taps, self.adapters, strict=True)):
            assert isinstance(adapter, Adapter)
            for name, position in adapter.inputs():
                layer = tap.students[position]
                if layer in self.sources:
                    found.append((f"adapters.{number}.{name}", layer, self.sources[layer]))
        return found
