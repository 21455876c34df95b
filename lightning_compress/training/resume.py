"""Exact resume: the random states, and the place in the epoch, travel in the checkpoint."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress.random_states import get_random_states, set_random_states
from lightning_compress.training import private


class ResumeState:
    """Random states at the start of the running epoch and now, of every process, with the generators of its loaders.

    At an epoch boundary the next epoch draws what it would have drawn. In mid-epoch the epoch's own order is drawn
    again, the batches that have been trained on are passed over unread, and the present states are set. What workers
    draw by themselves (augmentation with ``num_workers`` > 0) is exact at epoch boundaries only.
    """

    def __init__(self) -> None:
        self._epoch_start: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None

    def to_state(self, trainer: L.Trainer) -> dict[str, Any]:
        """What a checkpoint keeps; gathers from all processes, so each of them must call it."""
        done = private.batches_done_in_epoch(trainer)
        mine = {"now": _states(trainer), "epoch_start": self._epoch_start if done else None, "batches_done": done}
        return {"ranks": _gather(mine, trainer)}

    def from_state(self, state: dict[str, Any] | None) -> None:
        """Keep what a checkpoint held until the loaders exist."""
        self._pending = state

    def on_fit_start(self, trainer: L.Trainer) -> None:
        """The first epoch's iterator is made before ``on_train_epoch_start``: note the states before."""
        self._epoch_start = _states(trainer)

    def on_train_start(self, trainer: L.Trainer) -> None:
        """Set the states, and make the running epoch's iterator from them, past what has been trained on."""
        mine = self._mine(trainer)
        if mine is None:
            return
        loaders = private.train_loaders(trainer)
        if not mine["batches_done"]:
            self._begin_epoch(trainer, mine["now"])
        elif mine["epoch_start"] is None or not all(_is_map_style(loader) for loader in loaders):
            rank_zero_warn(
                "Resuming in mid-epoch: an iterable loader cannot be set back; the epoch's data begin again."
            )
            _set_states(mine["now"], loaders)
        else:
            self._epoch_start = mine["epoch_start"]
            _set_states(mine["epoch_start"], loaders)
            private.restart_after(trainer, mine["batches_done"])
            _set_states(mine["now"], loaders)

    def on_train_epoch_start(self, trainer: L.Trainer) -> None:
        """Note the states; or set them once more, where Lightning has finished the former epoch first."""
        if self._pending is not None:
            self._begin_epoch(trainer, self._pending["ranks"][trainer.global_rank]["now"])
        elif trainer.current_epoch > 0:
            self._epoch_start = _states(trainer)

    def on_train_batch_start(self) -> None:
        """From here on the fit draws for itself."""
        self._pending = None

    def _begin_epoch(self, trainer: L.Trainer, states: dict[str, Any]) -> None:
        self._epoch_start = states
        _set_states(states, private.train_loaders(trainer))
        private.restart_train_iterator(trainer)

    def _mine(self, trainer: L.Trainer) -> dict[str, Any] | None:
        if self._pending is None:
            return None
        ranks: list[dict[str, Any]] = self._pending["ranks"]
        if len(ranks) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint was written by {len(ranks)} processes, this fit has {trainer.world_size}: the resume "
                "is not bit-exact."
            )
            self._pending = None
            return None
        return ranks[trainer.global_rank]


def _states(trainer: L.Trainer) -> dict[str, Any]:
    generators = [g.get_state() for loader in private.train_loaders(trainer) for g in _generators(loader)]
    return {"global": get_random_states(), "generators": generators}


def _set_states(states: dict[str, Any], loaders: list[Any]) -> None:
    set_random_states(states["global"])
    generators = [g for loader in loaders for g in _generators(loader)]
    for generator, state in zip(generators, states["generators"], strict=False):
        generator.set_state(state)


def _generators(loader: Any) -> list[torch.Generator]:
    """The distinct generators that a loader and its samplers draw from."""
    holders = (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    )
    found = (getattr(holder, "generator", None) for holder in holders)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _is_map_style(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _gather(mine: dict[str, Any], trainer: L.Trainer) -> list[dict[str, Any]]:
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return [mine]
    ranks: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(ranks, mine)
    return ranks
