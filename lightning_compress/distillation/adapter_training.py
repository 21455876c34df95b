"""Adapters trained beside the student, through the edits that shrink it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_compress.distillation.taps import Source, TapSet
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Attribute, Edit, KeepIndices, RegrowIndices, Slice
from lightning_compress.plan.shape import Shape
from lightning_compress.training import AuxiliaryOptimizer, OptimizerBinding


class AdapterTraining:
    """The auxiliary optimizer of a :class:`TapSet`; a follower of the student.

    Where neurons of a tapped layer are taken out, the adapter's columns that read them go too, with their moments.

    Args:
        taps: the taps with their adapters.
        learning_rate: of Adam.
    """

    def __init__(self, taps: TapSet, learning_rate: float) -> None:
        self.taps = taps
        self._auxiliary: AuxiliaryOptimizer | None = None
        if next(taps.parameters(), None) is not None:
            build = lambda parameters: torch.optim.Adam(parameters, lr=learning_rate)  # noqa: E731
            self._auxiliary = AuxiliaryOptimizer(dict(taps.named_parameters()), build)
            self._binding = OptimizerBinding(taps, [self._auxiliary.optimizer])

    def attach(self, optimizers: Sequence[Optimizer], scale: Callable[[], float] | None) -> None:
        """Step whenever one of ``optimizers`` does."""
        if self._auxiliary is not None:
            self._auxiliary.attach(optimizers, scale)

    def zero_grad(self) -> None:
        """Where the user's optimizer clears its own gradients."""
        if self._auxiliary is not None:
            self._auxiliary.zero_grad()

    def detach(self) -> None:
        """Step no more."""
        if self._auxiliary is not None:
            self._auxiliary.detach()

    def follow(self, edit: Edit) -> Callable[[], None] | None:
        """Cut, or regrow, what reads the channels that an edit of the student takes out or brings back."""
        mine = self._translate(edit)
        if mine is None or self._auxiliary is None:
            return None
        shape, auxiliary = Shape(self.taps), self._auxiliary
        mine.apply(self.taps)
        back = self._binding.follow(mine)
        auxiliary.parameters = dict(self.taps.named_parameters())

        def restore() -> None:
            shape.restore()
            back()
            auxiliary.parameters = dict(self.taps.named_parameters())

        return restore

    def _translate(self, edit: Edit) -> KeepIndices | RegrowIndices | None:
        of = edit.of if isinstance(edit, RegrowIndices) else edit
        if not isinstance(of, KeepIndices):
            return None
        slices, attributes = [], []
        for layer, _, source in self.taps.inputs():
            part = _slice_of(of, source)
            if part is not None:
                slices.append(Slice(f"{layer}.weight", 1, part.size, part.kept))
                attributes.append(Attribute(layer, "in_features", part.size, part.kept.numel()))
        if not slices:
            return None
        mine = KeepIndices(tuple(slices), tuple(attributes), "adapters")
        return RegrowIndices(mine) if isinstance(edit, RegrowIndices) else mine

    def state_dict(self) -> dict[str, Any] | None:
        """Weights and moments; None without adapters that learn."""
        return None if self._auxiliary is None else self._auxiliary.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CompressionError: it is of other taps.
        """
        if self._auxiliary is not None and state is not None:
            if state["values"].keys() != dict(self.taps.named_parameters()).keys():
                raise CompressionError(
                    "The checkpoint has adapters of other taps than this Distillation. Resume with the same taps, or "
                    "take the adapters out of it: lightning_compress.distillation.strip(path)."
                )
            self._auxiliary.load_state_dict(state)


def _slice_of(edit: KeepIndices, source: Source) -> Slice | None:
    return next((part for part in edit.slices if (part.tensor, part.dim) == source), None)
