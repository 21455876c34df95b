"""From calls of the student to a loss: the teachers asked, their outputs compared, features too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.distillation.bank import TeacherBank
from lightning_compress.distillation.cache import TeacherCache
from lightning_compress.distillation.fidelity import Fidelity
from lightning_compress.distillation.output_shapes import refuse_shape
from lightning_compress.distillation.precision import accepted, name_of, parameters_of
from lightning_compress.distillation.recorder import Call, Recorder
from lightning_compress.distillation.taps import Source, Tap, TapSet
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states


class Engine:
    """Soft targets of a bank of teachers, and the taps.

    Args:
        bank: the teachers.
        loss: a function like those in ``distillation/losses``.
        taps: layers to compare.

    Attributes:
        cache: where the teachers' outputs are read; None asks them.
        tap_set: the taps with their adapters, once :meth:`prepare` has seen features.
    """

    def __init__(self, bank: TeacherBank, loss: Callable[..., Tensor], taps: Sequence[Tap] = ()) -> None:
        self.bank, self.loss, self.taps = bank, loss, tuple(taps)
        self.cache: TeacherCache | None = None
        self.tap_set: TapSet | None = None
        self._recorders: dict[int, Recorder] = {}
        self._wants = frozenset(accepted(loss, temperature=None, labels=None))
        self._needs_labels = "labels" in self._wants & _required(loss)
        for tap in self.taps:
            if not 0 <= tap.member < len(bank.teachers):
                raise CompressionError(f"Tap(member={tap.member}): there are {len(bank.teachers)} teachers.")

    def prepare(
        self, call: Call, sources: Mapping[str, Source], device: torch.device, labels: Tensor | None = None
    ) -> None:
        """Put teachers and adapters in place for calls like this one, and try the loss on it.

        Args:
            call: of the student.
            sources: for tapped layers, what gives their channels.
            device: of the student.
            labels: of the call's samples, where there are some.

        Raises:
            CompressionError: outputs that do not fit, a loss that cannot compare them, or a teacher without a tapped
                layer.
        """
        refuse_shape(self.loss, call.logits.shape)
        members = self.bank.prepare(device, call.tracing, call.logits)
        self._try_loss(call.logits.detach(), members, labels)
        self._tap_teachers()
        if self.taps:
            with torch.no_grad():
                _, features = self.ask(call.args, call.kwargs, step=0)
            students = {name: value.detach() for name, value in call.features.items()}
            self.tap_set = TapSet(self.taps, students, features, sources)

    def _try_loss(self, student: Tensor, members: Tensor, labels: Tensor | None) -> None:
        members = members[:1] if self.bank.draws else members
        with isolated_random_states(), torch.no_grad():
            try:
                loss = self.compare(student, members, 1.0, labels)
            except CompressionError:
                raise
            except Exception as error:
                raise CompressionError(
                    f"The loss {name_of(self.loss)} fails on outputs (student, teacher) of shape "
                    f"{tuple(student.shape)}: {error}"
                ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise CompressionError(
                f"The loss {name_of(self.loss)} returns {found}, not one number: let it return the mean over the batch."
            )

    def release(self) -> None:
        """Take the hooks off the teachers."""
        for recorder in self._recorders.values():
            recorder.detach()
        self._recorders = {}

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The members' outputs for a call of the student, and each teacher's tapped features."""
        for recorder in self._recorders.values():
            recorder.start()
        try:
            members = self.bank.ask(args, kwargs, step)
        finally:
            found = {number: recorder.stop() for number, recorder in self._recorders.items()}
        features = [
            found[number][-1].features if found.get(number) else {} for number in range(len(self.bank.teachers))
        ]
        return members, features

    def distillation_loss(
        self,
        calls: Sequence[Call],
        *,
        temperature: float,
        labels: Tensor | None,
        rows: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """The mean over ``calls`` of the loss on outputs and of those on features.

        Args:
            calls: of the student, with gradients.
            temperature: T.
            labels: of the batch, for losses that want them.
            rows: of the batch in the cache.
            step: number of the step, by which a random member is drawn.
        """
        losses = []
        for call in calls:
            features: list[dict[str, Tensor]] = []
            if self.cache is not None:
                members = self.cache.read(rows, call.inputs)
                members = members[self.bank.numbers(step)] if self.bank.draws else members
            else:
                members, features = call.answer or self.ask(call.args, call.kwargs, step)
            loss = self.compare(call.logits, members, temperature, labels)
            losses.append(loss if self.tap_set is None else loss + self.tap_set(call.features, features))
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def compare(self, student: Tensor, members: Tensor, temperature: float, labels: Tensor | None) -> Tensor:
        """The loss between the student's logits and the members' (members, ...), classes last."""
        teacher = self.bank.pooled(members, temperature)
        pixels = self.bank.outputs == "pixels"
        if any(one.classes is not None for one in self.bank.teachers):
            student = student.movedim(1, -1) if pixels else student
            labels = labels_among_known(labels, teacher)
            if self._needs_labels and labels is not None and bool((labels < 0).any()):
                raise CompressionError(
                    f"The loss {name_of(self.loss)} reads labels, and some of this batch are of classes that no "
                    'teacher knows. Use loss="kd", which reads none.'
                )
            student, teacher = among_known(student, teacher)
            student = student.movedim(-1, 1) if pixels else student
        if pixels:
            teacher = teacher.movedim(-1, 1)
        if labels is None and self._needs_labels:
            raise CompressionError(
                f"The loss {name_of(self.loss)} needs labels, and the batch has none: make it a tuple (inputs, labels) "
                'or a mapping with "labels".'
            )
        available = {"temperature": temperature, "labels": labels}
        return self.loss(student, teacher, **{name: available[name] for name in self._wants})

    def measure(self, call: Call, labels: Tensor | None, fidelity: Fidelity) -> None:
        """Add a call of the student to ``fidelity``, if its outputs and the teachers' are distributions over classes.

        Labels of tokens are left out: a language model's are those of the next token, another's are not.
        """
        outputs = self.bank.outputs
        student = call.logits.movedim(1, -1) if outputs == "pixels" else call.logits
        if student.dim() < 2 or student.shape[-1] < 2 or (outputs == "any" and student.dim() > 2):
            return
        teacher = self.bank.pooled(self.bank.ask(call.args, call.kwargs), 1.0)
        if teacher.shape == student.shape:
            labels = None if outputs == "tokens" else labels_among_known(labels, teacher)
            student, teacher = among_known(student, teacher)
            if student.shape[-1] > 1:
                fidelity.update(student, teacher, labels)

    def _tap_teachers(self) -> None:
        self.release()
        for number in {tap.member for tap in self.taps}:
            teacher = self.bank.teachers[number]
            if not isinstance(teacher.network, nn.Module):
                raise CompressionError(f"The teacher {teacher.name} is no module: it has no layer to tap.")
            names = [name for tap in self.taps if tap.member == number for name in tap.teachers]
            self._recorders[number] = Recorder(teacher.running, "", names)
            self._recorders[number].attach()


def among_known(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits, classes last, of those classes that some teacher knows.

    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> among_known(logits, torch.tensor([[0.0, -torch.inf, 1.0]]))[0].tolist()
    [[1.0, 3.0]]
    """
    known = teacher.isfinite().flatten(0, -2).all(dim=0)
    return student[..., known], teacher[..., known]


def labels_among_known(labels: Tensor | None, teacher: Tensor) -> Tensor | None:
    """Labels as :func:`among_known` counts the classes; -1 for a class that no teacher knows.

    >>> labels_among_known(torch.tensor([0, 1, 2]), torch.tensor([[0.0, -torch.inf, 1.0]])).tolist()
    [0, -1, 1]
    """
    known = teacher.isfinite().flatten(0, -2).all(dim=0)
    if labels is None or labels.is_floating_point() or bool(known.all()):
        return labels
    places = (known.cumsum(0) - 1).masked_fill(~known, -1)
    inside = (labels >= 0) & (labels < len(places))
    return torch.where(inside, places[labels.clamp(0, len(places) - 1)], -1)


def _required(loss: Callable[..., Tensor]) -> set[str]:
    return {name for name, one in parameters_of(loss).items() if one.default is Parameter.empty}
