"""The base of every callback of this package: joins the Session, takes its place in the order, cleans up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.errors import CompressionError
from lightning_compress.training import private
from lightning_compress.training.session import Session, write_record

_WRAPPING_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class CompressionCallback(Callback):
    """Holds time, state and logging; what is to be done lies in functions below it.

    Args:
        name: distinguishes two callbacks of one class in a Trainer.

    Attributes:
        order: place among our callbacks: neurons 10, factors 20, weights 30, bits 40, files 90.
        edits_shape: whether it changes the shape of the network.
    """

    order: ClassVar[int] = 50
    edits_shape: ClassVar[bool] = False

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._session: Session | None = None

    @property
    def state_key(self) -> str:
        """Where its state lies in a checkpoint."""
        kind = type(self).__qualname__
        return kind if self.name is None else f"{kind}[{self.name}]"

    @property
    def session(self) -> Session:
        """The Session of the module in this Trainer."""
        if self._session is None:
            raise CompressionError(f"{self.state_key} is in no Trainer at the moment.")
        return self._session

    @property
    def on_target(self) -> bool:
        """Whether the network is what this callback was asked to make of it."""
        return True

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Last change to a checkpoint that is about to be written."""

    def read_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be loaded into the module, in an evaluation too (``load_state_dict`` is not called
        there); its Plan has been replayed.
        """

    def start_over(self) -> None:
        """Forget how far a network is: a file without this callback's state is being loaded."""

    def get_compression_state(self) -> dict[str, Any]:
        """What a snapshot keeps of this callback, to be restored on a rollback: masks and the like, not the time."""
        return {}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back to what :meth:`get_compression_state` returned."""

    def seen_weights(self, names: Collection[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Those of the parameters that a forward sees otherwise than they are, as it sees them, for whoever runs the
        network on parts of its weights: gradients flow through them. Inside, forwards read these parameters as they
        are, and all others as ever.
        """
        return nullcontext({})

    # -- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work, join the Session, move behind all callbacks that write no checkpoints."""
        if stage == "fit":
            self.refuse_conflicts(trainer, pl_module)
        self._session = Session.of(pl_module)
        self._session.join(self, trainer)
        private.amend_checkpoints(trainer, partial(_amend, trainer))
        private.set_callbacks(trainer, _in_order(private.get_callbacks(trainer)))

    def refuse_conflicts(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raise for combinations that cannot work, with the reason and the way out."""
        strategy = next(
            (base.__name__ for base in type(trainer.strategy).__mro__ if base.__name__ in _WRAPPING_STRATEGIES), None
        )
        if strategy is not None:
            raise CompressionError(
                f"{self.state_key} does not work under {strategy}: it restores weights after wrapping, too late for a "
                "network whose shape has changed. Use strategy='ddp'."
            )
        if private.is_compiled(module):
            raise CompressionError(
                f"{self.state_key} cannot compress a compiled LightningModule. Compile a part of it instead: "
                "module.network = torch.compile(module.network)."
            )
        if self.edits_shape and private.returns_weights_to_another_process(trainer):
            raise CompressionError(
                f"{self.state_key} changes shapes, and this strategy loads the trained weights into the main process's "
                "network, which keeps the former shape. Run a script with strategy='ddp'."
            )
        for callback in private.get_callbacks(trainer):
            self._refuse_callback(callback)

    def _refuse_callback(self, callback: Callback) -> None:
        other = type(callback).__name__
        if isinstance(callback, ModelPruning):
            raise CompressionError(
                f"{self.state_key} and Lightning's {other} would prune the same weights. Remove {other}."
            )
        if self.edits_shape and isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            raise CompressionError(
                f"{self.state_key} changes shapes in mid-fit; {other} keeps an average of the former shape and would "
                f"fail. Average in a fit after the cuts, or prune single weights (WeightPruning works with {other})."
            )

    def _refuse_optimizers(self, trainer: L.Trainer) -> None:
        if any(callback.edits_shape for callback in self.session.callbacks):
            for optimizer in trainer.optimizers:
                if isinstance(optimizer, torch.optim.LBFGS):
                    raise CompressionError(
                        "LBFGS keeps a list of parameters of its own and would go on with those that have been cut. "
                        "Use another optimizer, or prune single weights (WeightPruning)."
                    )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the Session; nothing of ours stays on the module."""
        if self._session is not None:
            self._session.leave(self)

    def release(self) -> None:
        """Let go of the module: a subclass takes its hooks and followers off. The Session calls it once."""
        self._session = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bind the optimizers, which exist by now."""
        if self.session.leads(self):
            self.session.bind_optimizers(trainer)
            self._refuse_optimizers(trainer)
            _warn_of_evaluation_mode(pl_module)
            self.session.resume.on_fit_start(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up a fit in mid-epoch where it stopped."""
        if self.session.leads(self):
            self.session.resume.on_train_start(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up a fit at an epoch boundary where it stopped."""
        if self.session.leads(self):
            self.session.keep_time(0)
            self.session.resume.on_train_epoch_start(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the time."""
        if self.session.leads(self):
            self.session.keep_time(batch_idx)
            self.session.resume.on_train_batch_start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the time."""
        if self.session.leads(self):
            self.session.keep_time(batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the validation's figures into the Journal."""
        if self.session.leads(self) and not trainer.sanity_checking and trainer.state.fn == "fit":
            self.session.write("measurement", "validation", **private.validation_metrics(trainer))


def _amend(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """After the fit the Session is over and the module's hooks are off: what is saved then has the Plan too."""
    module = trainer.lightning_module
    if Session.find(module) is None:
        for callback in private.get_callbacks(trainer):
            if isinstance(callback, CompressionCallback):
                callback.amend_checkpoint(checkpoint)
        write_record(module, checkpoint)


class _CleanUp(Callback):
    """Lightning calls no ``teardown`` when a fit raises: leaves the Session after the last checkpoint has been
    written.
    """

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        session = Session.find(pl_module)
        if session is not None:
            session.close()


def _in_order(callbacks: list[Callback]) -> list[Callback]:
    """Others first, ours in their order, those that write checkpoints after them, the clean-up last."""
    ours = [callback for callback in callbacks if isinstance(callback, CompressionCallback)]
    checkpoints = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    last = [callback for callback in callbacks if isinstance(callback, _CleanUp)] or [_CleanUp()]
    others = [callback for callback in callbacks if callback not in [*ours, *checkpoints, *last]]
    return [*others, *sorted(ours, key=lambda callback: callback.order), *checkpoints, *last]


def _warn_of_evaluation_mode(module: nn.Module) -> None:
    """Lightning leaves layers in the mode in which it finds them, and a network that was evaluated is in the other."""
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    norms = {name: norm for name, norm in norms.items() if any(entry.requires_grad for entry in norm.parameters())}
    if norms and not any(norm.training for norm in norms.values()):
        rank_zero_warn(
            f"All BatchNorm layers ({next(iter(norms))!r}, {len(norms)} in all) are in evaluation mode, and Lightning "
            "leaves them there: what is taken away will not recover well. Call module.train() before the fit, unless "
            "they are meant to rest."
        )
