"""Networks back from checkpoints, in the shape that they had when they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import lightning as L

from lightning_compress.plan import Journal, Plan, Record, read_checkpoint
from lightning_compress.training import private
from lightning_compress.training.callback import CompressionCallback

Module = TypeVar("Module", bound=L.LightningModule)


class Replay(CompressionCallback):
    """Compresses nothing: lets a Trainer read checkpoints of compressed networks, and makes its own resume exactly.

    Any other callback of this package does the same; use this one where there is no other.

    >>> trainer = L.Trainer(callbacks=[Replay()], logger=False, enable_checkpointing=False)
    """

    order = 0


def load_from_checkpoint(module_class: type[Module], path: str | Path, **arguments: Any) -> Module:
    """``module_class.load_from_checkpoint(path, **arguments)`` for a network that has changed its shape since it was
    built.

    Args:
        module_class: the class of the LightningModule that was trained.
        path: a checkpoint of a Trainer with one of our callbacks in it, ``save_weights_only=True`` or not.
        arguments: go to Lightning's own method: ``map_location``, ``strict``, or arguments of the class.

    Returns:
        The module in its compressed shape with the weights of the file; ``Plan.of(module)`` says what was done.

    Raises:
        PlanError: the Plan in the file does not fit the module that the class builds.
    """
    own = module_class.on_load_checkpoint

    def replay(self: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        plan, journal = read_checkpoint(checkpoint) or (Plan(), Journal())
        plan.apply_to(self)
        Record.of(self).journal = journal
        own(self, checkpoint)

    with private.class_hook(module_class, "on_load_checkpoint", replay):
        module: Module = module_class.load_from_checkpoint(path, **arguments)
    return module
