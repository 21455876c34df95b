"""Single weights to exact zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from torch import Tensor
from torch.nn import Parameter

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Criterion, needs_of
from lightning_compress.pruning.masks import Masks
from lightning_compress.pruning.weights import Allocation, choose_weights, judge_weights
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve
from lightning_compress.surgery.targets import find_weights, refuse_text
from lightning_compress.training import GradualCallback, Recovery, Schedule
from lightning_compress.training.schedule import Shape


class WeightPruning(GradualCallback):
    """Takes single weights to exact zeros in cuts, trains on between them, and keeps every zero.

    The parameters stay plain and the keys of the ``state_dict`` the module's own; masks are applied after each
    optimizer step, before each validation and in each checkpoint, so that a metric in a file's name is that of the
    weights in the file, under EMA too. What has been pruned stays pruned.

    Args:
        sparsity: share of the targeted entries that end as zeros, in [0, 1); exact.
        criterion: name of a function in ``pruning/criteria`` that judges weights, or any callable.
        allocation: "global" ranks all targeted weights together, "uniform" takes the same share everywhere; or a
            callable.
        schedule: name of a shape, a callable or a :class:`~lightning_compress.training.Schedule`.
        recover: a :class:`~lightning_compress.training.Recovery`: the next cut waits until the metric is back.
        targets: patterns for names of layers or parameters; None: weights of Linear, convolution, attention and
            recurrent layers.
        exclude: patterns of what to leave alone.
        max_step: largest share of what is left that one cut takes; None is 20 %.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; a pattern that matches nothing, at the start
            of the fit.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[WeightPruning(0.9)], logger=False, enable_checkpointing=False)
    """

    order = 30
    _masks: Masks | None = None

    def __init__(
        self,
        sparsity: float,
        *,
        criterion: str | Criterion = "magnitude",
        allocation: str | Allocation = "global",
        schedule: str | Shape | Schedule = "cubic",
        recover: Recovery | Mapping[str, Any] | None = None,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        max_step: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(sparsity, schedule=schedule, recover=recover, max_step=max_step, name=name)
        self._criterion: Criterion = resolve(criterion, "lightning_compress.pruning.criteria")
        self._allocation: Allocation = resolve(allocation, "lightning_compress.pruning.allocations")
        if needs_of(self._criterion):
            raise CompressionError(
                f"The criterion {criterion!r} judges neurons, not single weights: use it with NeuronPruning."
            )
        refuse_text(targets, "targets")
        refuse_text(exclude, "exclude")
        self._patterns = (targets, tuple(exclude))
        self._handles: list[Any] = []

    @property
    def quantity(self) -> str:
        """What is counted."""
        return "sparsity"

    @property
    def masks(self) -> Masks:
        """The masks of the module that is, or was last, in a Trainer with this callback."""
        if self._masks is None:
            raise CompressionError(f"{self.state_key} has been in no Trainer yet.")
        return self._masks

    def start_over(self) -> None:
        """Forget the masks too."""
        super().start_over()
        if self._masks is not None:
            self._masks.from_state({})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the masks follow the module's edits."""
        super().setup(trainer, pl_module, stage)
        if self._masks is None or self._masks.module is not pl_module:
            self._masks = Masks(pl_module)
        if self._masks not in self.session.record.followers:
            self.session.record.followers.append(self._masks)

    def release(self) -> None:
        """Take the hooks off the optimizers; the masks follow no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.session.record.followers.remove(self.masks)
        super().release()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the weights that are meant; apply the masks after every optimizer step from here on."""
        super().on_fit_start(trainer, pl_module)
        find_weights(pl_module, *self._patterns)
        self._handles = [opt.register_step_post_hook(lambda *_: self.masks.apply_()) for opt in trainer.optimizers]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Averaging callbacks may have put other weights in place: apply the masks before anything else."""
        self.masks.apply_()
        super().on_train_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is validated is what is saved: an average has its zeros too. After a fit a file speaks for itself."""
        if trainer.state.fn == "fit":
            self.masks.apply_()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The network that is left behind has its zeros."""
        super().on_train_end(trainer, pl_module)
        self.masks.apply_()

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights in the file have their zeros, whoever put them there."""
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                state = checkpoint[key]
                checkpoint[key] = {name: self.masks.masked(name, tensor) for name, tensor in state.items()}

    def cut(self, target: float) -> float:
        """Mask the least important weights; process 0 decides for all."""
        weights = find_weights(self.session.module, *self._patterns)
        total = sum(parameter.numel() for parameter in weights.values())
        drop = max(round(target * total), self.masks.zeros_in(weights))
        self.masks.set(self.session.from_first(lambda: self._decide(weights, drop)))
        return drop / total

    def reassert(self) -> None:
        """Mask more where neurons that went took more zeros than weights with them."""
        if not self.masks.reshaped:
            return
        self.masks.reshaped = False
        before = self.masks.zeros
        self._reached = self.cut(self._goal)
        if self.masks.zeros > before:
            text = f"{self.state_key}: back to {self._reached:.2%} after an edit"
            self.session.write("decision", text, reached=self._reached)

    def _decide(self, weights: Mapping[str, Parameter], drop: int) -> dict[str, Tensor]:
        with isolated_random_states():
            scores = {name: judge_weights(self._criterion, name, weight) for name, weight in weights.items()}
        alive = {name: self.masks.keep(name, score) for name, score in scores.items()}
        return choose_weights(scores, alive, self._allocation, drop)

    def figures(self) -> dict[str, float]:
        """Share of zeros among the targets, and in the whole network."""
        zeros = sum(int((p == 0).sum()) for p in self.session.module.parameters())
        total = sum(p.numel() for p in self.session.module.parameters())
        return {**super().figures(), "network_sparsity": zeros / max(total, 1)}

    def get_compression_state(self) -> dict[str, Any]:
        """The masks too."""
        return {**super().get_compression_state(), "masks": self.masks.to_state()}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """The masks too."""
        super().set_compression_state(state)
        self.masks.from_state(state["masks"])
