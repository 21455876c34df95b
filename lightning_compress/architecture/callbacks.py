"""LowRank and DepthwiseSeparable: trained layers replaced by factored ones, fitted to data, in mid-fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_compress.architecture.callback import FactoringCallback
from lightning_compress.architecture.choosing import LowRankChoice, SeparableChoice, Settings
from lightning_compress.training import Recovery


class LowRank(FactoringCallback):
    """Replaces trained Linear layers and convolutions by factored ones, fitted to a few hundred unlabelled samples.

    Each layer's factors are those that come closest, in closed form or by alternating least squares, to what the layer
    computes; its inputs are taken from the network as replaced so far, so that later layers make up for earlier ones.
    Parameters that stay keep their optimizer state; every checkpoint carries the Plan that gives a fresh module the
    same layers.

    Args:
        budget: share of the network that is left, in (0, 1): 0.25 is 4x less. Or give ``speedup`` or ``ranks``.
        of: what the budget is counted in: "params", "macs" or "latency" (measured in ``runtime``) of the whole network.
        speedup: how many times as fast the network shall be, measured; the same as a budget of latency.
        ranks: in the place of a budget: "energy" (as many as hold nine tenths of the squares), a share such as 0.95 for
            that, "vbmf", any ``f(singular values, shape) -> rank``, or a mapping of layers to ranks (an int, a tuple,
            or a :class:`~lightning_compress.architecture.Choice`).
        methods: names of functions in ``architecture/factorizations`` to choose among for each layer; None is
            "channel", "spatial" and "tucker" ("channel" is the SVD of Linear and 1x1 layers). With "depthwise_first"
            and "pointwise_first" layers can become depthwise separable, too. For ``ranks`` the first that fits counts.
        data: batches (inputs, or tuples that begin with them); None takes samples of the training data.
        samples: how many of those.
        data_aware: False fits weights to weights; the data then serve the choice of ranks and BatchNorm alone.
        targets: patterns of layers, or of modules with layers in them; None is every layer that can be replaced.
        exclude: patterns of layers to leave alone.
        round_to: ranks are multiples of this; "auto" is 8 for a latency budget, where each is measured, else 1.
        stages: replace the layers in so many portions, with training in between.
        start: of the first: an int counts epochs, a float in [0, 1] is a share of the fit.
        recover: a :class:`~lightning_compress.training.Recovery`: each stage waits for the metric, or is taken back.
        recalibrate: BatchNorm statistics after each stage: "auto" where that lowers the error of the outputs.
        runtime: where a latency is measured: "eager" or "onnxruntime" (fp32).
        batch_size: samples at a time when it is measured.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; a budget that cannot be reached, when the
            layers are replaced; the network is as it was.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[LowRank(0.5, of="macs")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        budget: float | None = None,
        *,
        of: str = "params",
        speedup: float | None = None,
        ranks: Any = None,
        methods: Sequence[str] | None = None,
        data: Iterable[Any] | None = None,
        samples: int = 256,
        data_aware: bool = True,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        round_to: int | str = "auto",
        stages: int = 1,
        start: float = 0.0,
        recover: Recovery | Mapping[str, Any] | None = None,
        recalibrate: bool | str = "auto",
        runtime: str = "eager",
        batch_size: int = 1,
        name: str | None = None,
    ) -> None:
        super().__init__(
            data=data,
            samples=samples,
            targets=targets,
            exclude=exclude,
            stages=stages,
            start=start,
            recover=recover,
            recalibrate=recalibrate,
            name=name,
        )
        self._settings = LowRankChoice(
            budget,
            of=of,
            speedup=speedup,
            ranks=ranks,
            methods=methods,
            round_to=round_to,
            data_aware=data_aware,
            runtime=runtime,
            batch_size=batch_size,
        )

    @property
    def settings(self) -> Settings:
        """What was asked for."""
        return self._settings


class DepthwiseSeparable(FactoringCallback):
    """Replaces trained convolutions by depthwise separable ones that compute nearly the same.

    k*k*I*O parameters become m (k*k*I + I*O), a ratio of m (1/O + 1/k^2). See :class:`LowRank` for how they are fitted.

    Args:
        multiplier: m, filters of each channel; or a mapping of layers to m, which then are the only ones replaced.
        order: "depthwise_first", "pointwise_first" (a blueprint kernel for each output), or "auto": for each layer the
            one that loses less.
        branches: whether m > 1 filters a channel are made as m depthwise convolutions side by side, which compute the
            same; "auto" where that is measured to be faster.
        data: see :class:`LowRank`.
        samples: likewise.
        data_aware: False takes the truncated SVD of each slice of the weight, optimal in the Frobenius norm.
        targets: patterns of layers; None: every convolution that gets smaller, except those that read four channels or
            fewer (a stem): a mapping as ``multiplier`` includes them.
        exclude: patterns of layers to leave alone.
        stages: see :class:`LowRank`.
        start: likewise.
        recover: likewise.
        recalibrate: likewise.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; nothing that would get smaller, when the
            layers are replaced.

    >>> DepthwiseSeparable(2, order="depthwise_first").quantity
    'layers replaced'
    """

    def __init__(
        self,
        multiplier: int | Mapping[str, int] = 1,
        *,
        order: str = "auto",
        branches: bool | str = "auto",
        data: Iterable[Any] | None = None,
        samples: int = 256,
        data_aware: bool = True,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        stages: int = 1,
        start: float = 0.0,
        recover: Recovery | Mapping[str, Any] | None = None,
        recalibrate: bool | str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(
            data=data,
            samples=samples,
            targets=targets,
            exclude=exclude,
            stages=stages,
            start=start,
            recover=recover,
            recalibrate=recalibrate,
            name=name,
        )
        self._settings = SeparableChoice(multiplier, order=order, branches=branches, data_aware=data_aware)

    @property
    def settings(self) -> Settings:
        """What was asked for."""
        return self._settings
