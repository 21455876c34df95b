"""Shared weights: a few values a layer, trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil, inf
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.quantization.entropy_constrained import check_rate, entropy_constrained, ideal_bytes, reassign
from lightning_compress.quantization.importance import GradientImportance
from lightning_compress.quantization.kmeans import (
    INITIALISATIONS,
    Codebook,
    Initialisation,
    check_clusters,
    nearest,
    share_weights,
    shared_values,
)
from lightning_compress.quantization.overlap import refuse_overlap
from lightning_compress.quantization.shared_weights import SharedWeights
from lightning_compress.registry import resolve
from lightning_compress.surgery import find_weights, refuse_text
from lightning_compress.training import GradualCallback, Recovery, Schedule
from lightning_compress.values import is_number

OBJECTIVES = ("mse", "rate")
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}

RESTING = 0.8
"""Share of the fit after which weights keep their level."""


class WeightClustering(GradualCallback):
    """Lets the weights of a layer share a few values, and trains the values by the summed gradient of their members.

    The parameters stay plain and hold the shared values themselves, so the model file finds few distinct ones. Exact
    zeros (of pruning) stay zeros and need no cluster. A weight that shares at most ``clusters`` values already, such as
    one that was loaded from a file, keeps them as its codebook. After each optimizer step weights are overwritten by
    their level; whatever the user's optimizer does to single weights is forgotten. Han, Mao and Dally, "Deep
    Compression", ICLR 2016.

    With ``objective="rate"`` a weight goes where distortion plus ``rate`` times code length is least, exact zero
    included (:func:`~lightning_compress.quantization.entropy_constrained`); ``clusters`` is then the most levels.

    Args:
        clusters: shared values of each layer besides the zero, 1 to 256; or a mapping from patterns for names of layers
            or parameters to numbers, of which the first that matches holds.
        init: where k-means begins: name of a function in ``quantization/initialisations`` or any callable.
        objective: "mse" or "rate".
        rate: price of a bit for "rate", in units of squared weight (times importance, whose mean is 1).
        first_rate: price of a bit when the layers are clustered; with each refresh it rises, evenly in its logarithm,
            to ``rate`` at four fifths of the fit. None: ``rate`` from the beginning.
        importance: what a squared error costs: None is the same everywhere; "gradients" is the mean squared gradient
            over the steps before ``start``, at least 20.
        refresh: epochs after which weights may change their level, from where they would be had each been trained by
            itself; None: never. In the last fifth of the fit they stay.
        precision: of the levels, as they are shared: "float32", or "float16" and "bfloat16", which take two bytes in
            the file.
        start: when the first layers are clustered; an int counts epochs, a float in [0, 1] is a share of the fit.
        stages: the layers are clustered in so many groups, first ones first.
        end: by when the last group is due, like ``start``; only with ``stages`` above 1.
        recover: a :class:`~lightning_compress.training.Recovery`: the next group waits until the metric is back.
        learning_rate: of the levels, under Adam; falls as the user's schedule lets theirs fall.
        targets: patterns for names of layers or parameters; None: weights of Linear, convolution, attention and
            recurrent layers.
        exclude: patterns of what to leave alone.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; a pattern that matches nothing, or a weight
            that is quantized already, at the start of the fit.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[WeightClustering(16)], logger=False, enable_checkpointing=False)
    """

    order = 40
    _shared: SharedWeights | None = None

    def __init__(
        self,
        clusters: int | Mapping[str, int] = 32,
        *,
        init: str | Initialisation = "optimal",
        objective: Literal["mse", "rate"] = "mse",
        rate: float | None = None,
        first_rate: float | None = None,
        importance: Literal["gradients"] | None = None,
        refresh: int | None = None,
        precision: Literal["float32", "float16", "bfloat16"] = "float32",
        start: int | float = 0.75,
        stages: int = 1,
        end: int | float | None = None,
        recover: Recovery | Mapping[str, Any] | None = None,
        learning_rate: float = 1e-3,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        schedule = Schedule("linear", start=start, end=_end(start, stages, end), rounds=_whole("stages", stages))
        self._clusters = _check_numbers(clusters)
        self._init = init.replace("++", "_plus_plus") if isinstance(init, str) else init
        resolve(self._init, INITIALISATIONS)
        self._rate = _check_objective(objective, rate)
        self._first_rate = _check_first_rate(first_rate, rate, refresh)
        self._importance = _check_importance(importance)
        self._refresh = None if refresh is None else _whole("refresh", refresh)
        if precision not in PRECISIONS:
            raise CompressionError(f"precision={precision!r} is unknown. {did_you_mean(str(precision), PRECISIONS)}")
        self._precision = PRECISIONS[precision]
        if not is_number(learning_rate) or not 0 <= learning_rate < inf:
            raise CompressionError(f"learning_rate={learning_rate!r} is not a number of at least 0.")
        self._learning_rate = learning_rate
        refuse_text(targets, "targets")
        refuse_text(exclude, "exclude")
        self._patterns = (targets, tuple(exclude or ()))
        self._handles: list[Any] = []
        self._names: frozenset[str] = frozenset()
        self._scaler: Any = None
        super().__init__(0.0, schedule=schedule, recover=recover, max_step=1.0, name=name)
        self.final = 1.0  # all of them: nothing is taken away

    @property
    def quantity(self) -> str:
        """What is counted."""
        return "layers clustered"

    @property
    def weights(self) -> SharedWeights:
        """The shared weights of the module that is, or was last, in a Trainer with this callback."""
        if self._shared is None:
            raise CompressionError(f"{self.state_key} has been in no Trainer yet.")
        return self._shared

    @property
    def ready(self) -> bool:
        """With importance by gradients, enough of them must have been seen."""
        return self._importance is None or self._importance.ready

    def start_over(self) -> None:
        """Forget the codebooks too."""
        super().start_over()
        if self._shared is not None:
            self._shared.from_state({})
        if self._importance is not None:
            self._importance.start_over()

    # -- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the codebooks follow the module's edits."""
        super().setup(trainer, pl_module, stage)
        if self._shared is None or self._shared.module is not pl_module:
            drifts = self._refresh is not None
            self._shared = SharedWeights(
                pl_module, learning_rate=self._learning_rate, precision=self._precision, drifts=drifts
            )
        for follower in (self._shared, self._importance):
            if follower is not None and follower not in self.session.record.followers:
                self.session.record.followers.append(follower)

    def release(self) -> None:
        """Take the hooks off the optimizers; the codebooks follow no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for follower in (self.weights, self._importance):
            if follower is not None:
                self.session.record.followers.remove(follower)
        super().release()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the weights that are meant; share values after every optimizer step from here on."""
        super().on_fit_start(trainer, pl_module)
        names = list(find_weights(pl_module, *self._patterns))
        self._check_patterns(names)
        refuse_overlap(pl_module, names, self.state_key)
        self._refuse_twins(set(names))
        self._names = frozenset(names)
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._handles = [
            optimizer.register_step_post_hook(lambda stepped, *_: self._after_step(stepped))
            for optimizer in trainer.optimizers
        ]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let weights change their levels, if it is time."""
        super().on_train_epoch_start(trainer, pl_module)
        epoch = trainer.current_epoch
        if self._refresh is None or not self.weights.names or epoch > RESTING * (self._horizon or 0):
            return
        if epoch and epoch % self._refresh == 0:
            moved = self.weights.reassign(self._choose)
            self.session.write("decision", f"{self.state_key}: {moved} weights changed their level", moved=moved)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is validated is what is saved: an average of weights shares values too. A file speaks for itself."""
        if trainer.state.fn == "fit":
            self.weights.project_()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The network that is left behind shares its values, an averaged one too."""
        super().on_train_end(trainer, pl_module)
        self.weights.project_(keep=True)

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights in the file share their values, whoever put them there."""
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                state = checkpoint[key]
                checkpoint[key] = {name: self.weights.shared(name, tensor) for name, tensor in state.items()}

    def figures(self) -> dict[str, float]:
        """Share of layers that are clustered, and the zero-order bound of their bits a weight."""
        suffix = "" if self.name is None else f"_{self.name}"
        assignments = [self.weights.codebook(name).assignment for name in self.weights.names]
        weights = sum(assignment.numel() for assignment in assignments)
        bits = 8 * sum(ideal_bytes(assignment) for assignment in assignments) / max(weights, 1)
        return {**super().figures(), **({f"bits_per_weight{suffix}": bits} if weights else {})}

    # -- clustering ---------------------------------------------------------------------------------------------------

    def cut(self, target: float) -> float:
        """Cluster the next layers; process 0 decides for all."""
        weights = find_weights(self.session.module, *self._patterns)
        due = list(weights)[: ceil(target * len(weights) - 1e-9)]
        fresh = {name: weights[name] for name in due if name not in self.weights.names}
        if self._importance is not None:
            self._importance.settle()
        books = self.session.from_first(lambda: {name: self._book(name, weight) for name, weight in fresh.items()})
        self.weights.share({name: Codebook(levels, assignment) for name, (levels, assignment) in books.items()})
        if self._importance is not None and self._refresh is None:
            self._importance.forget(set(weights) - set(due))
        return len(due) / len(weights)

    def _book(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Plain tensors, to be sent to other processes."""
        importance = None if self._importance is None else self._importance.of(name, weight)
        clusters = self._clusters_of(name)
        try:
            book = shared_values(weight, clusters)
            if book is not None:
                pass  # from a file, or of an earlier fit: what is shared stays shared
            elif self._rate is None:
                book = share_weights(weight, clusters, init=self._init, importance=importance)
            else:
                book = entropy_constrained(
                    weight.detach(), self._price(), clusters=clusters, init=self._init, importance=importance
                )
        except CompressionError as error:
            raise CompressionError(f"{name!r}: {error}") from error
        return book.levels, book.assignment

    def _choose(self, name: str, free: Tensor, book: Codebook) -> Tensor:
        if self._rate is not None:
            importance = None if self._importance is None else self._importance.of(name, free)
            return reassign(free, book.levels, book.assignment, self._price(), importance)
        return nearest(free, book.levels).masked_fill_(book.assignment == 0, 0)

    def _price(self) -> float:
        """Of a bit, at this moment."""
        assert self._rate is not None
        if not self._first_rate or not self._rate:
            return self._rate
        begin, end = self._targets[0].time, RESTING * (self._horizon or 0)
        progress = 1.0 if end <= begin else min(max((self.session.time - begin) / (end - begin), 0.0), 1.0)
        return float(self._first_rate ** (1 - progress) * self._rate**progress)

    def _after_step(self, optimizer: Optimizer) -> None:
        """Train the levels, and let the weights share them again."""
        scale = self._unscale(optimizer)
        for group in optimizer.param_groups:
            factor = min(1.0, float(group["lr"]) / float(group.get("initial_lr") or group["lr"] or 1.0))
            for parameter in group["params"]:
                self.weights.step(parameter, factor, scale)
        if self._importance is not None and not self._reached:
            stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self._importance.gather(self.session.module, self._names, stepped, scale)

    def _unscale(self, optimizer: Optimizer) -> float:
        """What the gradients are still multiplied by: fused optimizers divide by the loss scale themselves."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        return 1.0 if self._scaler is None or not fused else float(self._scaler.get_scale())

    def _clusters_of(self, name: str) -> int:
        if isinstance(self._clusters, int):
            return self._clusters
        path = name.rpartition(".")[0]
        for pattern, clusters in self._clusters.items():
            if fnmatchcase(name, pattern) or fnmatchcase(path, pattern):
                return clusters
        raise CompressionError(
            f"clusters={dict(self._clusters)} says nothing of {name!r}. Add '*' for all others, or exclude=({path!r},)."
        )

    def _check_patterns(self, names: Sequence[str]) -> None:
        """Every weight has its number, and every pattern a weight."""
        for name in names:
            self._clusters_of(name)
        layers = {name.rpartition(".")[0] for name in names}
        for pattern in () if isinstance(self._clusters, int) else self._clusters:
            if not any(fnmatchcase(one, pattern) for one in (*names, *layers)):
                raise CompressionError(f"clusters: {pattern!r} matches no weight. {did_you_mean(pattern, layers)}")

    def _refuse_twins(self, names: set[str]) -> None:
        for other in self.session.callbacks:
            if isinstance(other, WeightClustering) and other is not self:
                theirs = find_weights(self.session.module, *other._patterns)
                if both := sorted(names & set(theirs)):
                    raise CompressionError(
                        f"{self.state_key} and {other.state_key} would both cluster {both[0]!r}. Divide the layers "
                        "between them with targets= and exclude=."
                    )

    # -- state --------------------------------------------------------------------------------------------------------

    def get_compression_state(self) -> dict[str, Any]:
        """The codebooks too."""
        importance = None if self._importance is None else self._importance.to_state()
        return {**super().get_compression_state(), "weights": self.weights.to_state(), "importance": importance}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """The codebooks too."""
        super().set_compression_state(state)
        self.weights.from_state(state["weights"])
        if self._importance is not None and state["importance"] is not None:
            self._importance.from_state(state["importance"])


def _whole(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CompressionError(f"{argument}={value!r} is not a whole number of at least 1.")
    return value


def _end(start: int | float, stages: int, end: int | float | None) -> int | float:
    if end is not None:
        if stages == 1:
            raise CompressionError(f"end={end} has no meaning without stages=; one stage is over where it starts.")
        return end
    return start if stages == 1 else type(start)(max(start, 0.9)) if isinstance(start, float) else start + stages


def _check_numbers(clusters: int | Mapping[str, int]) -> int | dict[str, int]:
    if isinstance(clusters, Mapping):
        if not clusters:
            raise CompressionError("clusters={} says nothing. Give a number, such as 32, or {'*': 32}.")
        return {str(pattern): check_clusters(number) for pattern, number in clusters.items()}
    return check_clusters(clusters)


def _check_objective(objective: str, rate: float | None) -> float | None:
    if objective not in OBJECTIVES:
        raise CompressionError(f"objective={objective!r} is unknown. {did_you_mean(str(objective), OBJECTIVES)}")
    if objective == "mse":
        if rate is not None:
            raise CompressionError(f'rate={rate} is the price of a bit; it needs objective="rate".')
        return None
    if rate is None:
        raise CompressionError('objective="rate" needs the price of a bit: rate=1e-4, or what solve_rate finds.')
    return check_rate(rate)


def _check_first_rate(first_rate: float | None, rate: float | None, refresh: int | None) -> float | None:
    if first_rate is None:
        return None
    if rate is None or refresh is None or not 0 < check_rate(first_rate) <= rate:
        raise CompressionError(
            f"first_rate={first_rate} rises to rate={rate} with each refresh={refresh}: it needs both, and is above 0 "
            "and at most the rate."
        )
    return first_rate


def _check_importance(importance: str | None) -> GradientImportance | None:
    if importance not in (None, "gradients"):
        raise CompressionError(f'importance={importance!r} is unknown; "gradients" or None.')
    return None if importance is None else GradientImportance()
