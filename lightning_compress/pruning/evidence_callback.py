"""What pruning of weights and of neurons share: a criterion, and the evidence that it needs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.curvature import curvature
from lightning_compress.pruning.evidence import CURVATURE, GRADIENTS, INPUTS, OUTPUTS, Criterion, needs_of
from lightning_compress.pruning.gathering import Gathering, gather_from, observed_in
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve
from lightning_compress.surgery import InputStatistics, private_copy
from lightning_compress.surgery.tracing import call_with_batch
from lightning_compress.training import GradualCallback, private

LEAST_BATCHES = 50
"""Training batches that evidence rests on at least; or one epoch, or the time between two cuts, if that is less."""


class EvidenceCallback(GradualCallback):
    """A gradual callback whose cuts rest on a criterion; it gathers what the criterion needs from the training passes.

    Args:
        final: share to reach.
        criterion: name of a function in ``pruning/criteria``, or any callable.
        data: batches for criteria that need activations, gradients at one moment or a sensitivity scan, read anew at
            each cut; None takes them from the training passes.
        options: of :class:`~lightning_compress.training.GradualCallback`.
    """

    def __init__(self, final: float, *, criterion: str | Criterion, data: Iterable[Any] | None, **options: Any) -> None:
        super().__init__(final, **options)
        if data is not None and not isinstance(data, Iterable):
            raise CompressionError(f"{self.state_key}(data={data!r}): give batches: a loader or a list.")
        if isinstance(data, Iterator):
            raise CompressionError(f"{self.state_key}(data=...): every cut reads it anew; give a loader or a list.")
        self._criterion: Criterion = resolve(criterion, "lightning_compress.pruning.criteria")
        self._data = data
        self._gathering: Gathering | None = None
        self._batch: Any = None

    def start_over(self) -> None:
        """Forget the evidence too."""
        super().start_over()
        self._gathered: dict[str, Any] | None = None
        if getattr(self, "_gathering", None) is not None:
            assert self._gathering is not None
            self._gathering.reset(0.0)

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def observed(self) -> tuple[Collection[str], Collection[str]]:
        """Layers whose inputs, and parameters whose gradients the evidence is of."""

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that is asked for."""
        return needs_of(self._criterion)

    # -- hooks --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to gather what the criterion needs."""
        super().on_train_start(trainer, pl_module)
        streamed = self.needs & (GRADIENTS if self._data is not None else GRADIENTS | INPUTS | OUTPUTS)
        if streamed and self._gathering is None:
            self._gathering = Gathering(pl_module, streamed, *self._observed_from_the_start())
            self._gathering.attach()
            self.session.record.followers.append(self._gathering)
            if self._gathered is not None:
                self._gathering.load_state_dict(self._gathered)

    def _observed_from_the_start(self) -> tuple[Collection[str], Collection[str]]:
        """What a fit that goes on observes: layers, too, that have nothing left to give since."""
        now = self.observed()
        if self._gathered is None:
            return now
        layers, names = observed_in(self._gathered)
        return layers if set(now[0]) <= set(layers) else now[0], names if set(now[1]) <= set(names) else now[1]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Cut if it is time; then look at the batch."""
        self._batch = batch
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch = None
        if self._gathering is not None:
            self._gathering.begin_batch(batch_idx)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients: averaged over processes, unscaled, not yet clipped."""
        if self._gathering is not None:
            scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
            self._gathering.before_step(check=scaled)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evidence is of training data only."""
        if self._gathering is not None:
            self._gathering.pause()

    @property
    def ready(self) -> bool:
        """Whether the evidence rests on enough batches since the last cut."""
        trainer, gathering = self.session.trainer, self._gathering
        if gathering is None or trainer is None or not needs_of(self._criterion):
            return True
        between = min((two.time - one.time for one, two in pairwise(self._targets)), default=float("inf"))
        late = self.session.time - gathering.since >= between - 1e-9
        least = min(LEAST_BATCHES, trainer.num_training_batches / gathering.stride)
        return gathering.steps > 0 and (late or gathering.batches >= least)

    def release(self) -> None:
        """Take the hooks off the layers."""
        if self._gathering is not None:
            self._gathering.detach()
            self._gathered = self._gathering.state_dict()
            self.session.record.followers.remove(self._gathering)
            self._gathering = None
        super().release()

    def get_compression_state(self) -> dict[str, Any]:
        """The evidence too."""
        gathered = self._gathered if self._gathering is None else self._gathering.state_dict()
        return {**super().get_compression_state(), "evidence": gathered}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """The evidence too."""
        super().set_compression_state(state)
        self._gathered = state["evidence"]
        if self._gathering is not None and self._gathered is not None:
            self._gathering.load_state_dict(self._gathered)

    # -- evidence -----------------------------------------------------------------------------------------------------

    def forget_evidence(self) -> None:
        """Begin to gather anew: the network is another one after a cut."""
        if self._gathering is not None:
            self._gathering.reset(self.session.time)

    def input_statistics(self, layers: Collection[str]) -> Mapping[str, InputStatistics]:
        """Of the layers' inputs, over all processes; every one of them has to call it."""
        if self._gathering is not None and self._gathering.collector is not None:
            return self._gathering.statistics()
        if self._data is None:
            return {}
        module, where = self.session.module, self.session.tracing.module

        def run(root: nn.Module, batch: Any) -> object:
            return call_with_batch(root.get_submodule(where), self._on_device(batch))

        return gather_from(module, self._data, self.needs, layers, run)

    def gradient_evidence(self, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
        """Kind -> parameter -> tensor: the sums over the steps, and what the loss says at this moment."""
        gradients = None if self._gathering is None else self._gathering.gradients
        found = {} if gradients is None or gradients.steps == 0 else gradients.evidence()
        kinds = self.needs & CURVATURE
        if kinds:
            with isolated_random_states():
                copy = private_copy(self.session.module)
                at_once = curvature(copy, [self._loss(batch) for batch in self._batches()], names, kinds)
            found |= {kind: self._averaged(values) for kind, values in at_once.items()}
        return found

    def losses(self) -> list[Any]:
        """``f(copy of the module) -> loss`` for each batch of ``data``, or for the one that is trained on next."""
        return [self._loss(batch) for batch in self._batches()]

    def _batches(self) -> list[Any]:
        if self._data is not None:
            return [self._on_device(batch) for batch in self._data]
        return [] if self._batch is None else [self._batch]

    def _on_device(self, batch: Any) -> Any:
        module = self.session.module
        return module.transfer_batch_to_device(batch, module.device, 0)

    def _loss(self, batch: Any) -> Any:
        trainer = self.session.trainer
        assert trainer is not None

        def loss(copy: nn.Module) -> Tensor:
            output = private.rehearse_training_step(copy, trainer, batch)
            value = output.get("loss") if isinstance(output, Mapping) else output
            if not isinstance(value, Tensor):
                raise CompressionError(
                    f"{self.state_key}: the criterion works out gradients itself, and training_step returns no loss "
                    "(manual optimization). Use criterion='taylor' or 'fisher', which look at those of the training."
                )
            return value

        return loss

    def _averaged(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        trainer = self.session.trainer
        if trainer is None or trainer.world_size == 1:
            return values
        return {name: cast(Tensor, trainer.strategy.reduce(value, reduce_op="mean")) for name, value in values.items()}
