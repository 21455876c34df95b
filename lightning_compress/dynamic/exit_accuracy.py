"""The accuracy of each exit in a validation."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor


class ExitAccuracy:
    """Right answers of each exit, and samples, of this process.

    Args:
        exits: how many there are.
    """

    def __init__(self, exits: int = 0) -> None:
        self._counts = torch.zeros(exits + 1, dtype=torch.float64)

    def count(self, calls: Sequence[Sequence[Tensor]], labels: Tensor | None) -> None:
        """Add a batch, if it has a label for each row.

        Args:
            calls: the logits of every exit and of the network, for each forward; the last one counts.
            labels: (N,).
        """
        if calls and labels is not None and labels.dim() == 1 and len(calls[-1][-1]) == len(labels):
            right = [float((one.argmax(dim=1) == labels).sum()) for one in calls[-1][:-1]]
            self._counts += torch.tensor([*right, float(len(labels))], dtype=torch.float64)

    def shares(self, trainer: L.Trainer, device: torch.device) -> list[float]:
        """Of right answers at each exit, over all processes; empty where no labels were seen."""
        counts = trainer.strategy.reduce(self._counts.to(device, torch.float32), reduce_op="sum").tolist()
        return [right / counts[-1] for right in counts[:-1]] if counts[-1] else []
