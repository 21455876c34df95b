"""What a criterion may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, did_you_mean

OUTPUTS = frozenset({"zero_share", "mean", "variance", "rank"})
"""Of neurons, at the input of the layers that read them."""
INPUTS = frozenset({"input_norm", "moments"})
"""Of what the layer itself reads."""
GRADIENTS = frozenset({"gradient", "squared_gradient", "product", "movement"})
"""Summed over the optimizer's steps."""
CURVATURE = frozenset({"loss_gradient", "hessian_gradient", "hessian_diagonal"})
"""Worked out on a copy of the network at the moment of a cut."""
NEURONS_ONLY = OUTPUTS | {"scale", "of_neurons"}
WEIGHTS_ONLY = frozenset({"moments"})


@dataclass(frozen=True)
class Evidence:
    """What is known of a layer's weight, or of a group of neurons, when it is judged.

    All but ``name``, ``weight`` and ``of_neurons`` are there only for criteria that :func:`needs` them. Averages are
    over the training steps since the last cut.

    Attributes:
        name: the parameter, or the layer that makes the neurons.
        weight: fp32; for neurons of shape (neurons, weights of each), else of the parameter's shape.
        zero_share: share of zeros at the next layer's input, shape (neurons,).
        of_neurons: whether neurons are judged, not single weights.
        mean: mean output at the next layer's input, shape (neurons,).
        variance: likewise, the output's variance.
        rank: likewise, the mean rank of the feature map as a matrix; of features without positions the share of
            outputs that are not zero.
        scale: absolute value of the weight of the BatchNorm behind the neurons, shape (neurons,).
        input_norm: root mean square of the input that each weight is multiplied with, of ``weight``'s shape.
        moments: C = E[x xT] of the inputs, shape (n, n) for a weight that flattens to (outputs, n).
        gradient: mean gradient of the loss, of ``weight``'s shape.
        squared_gradient: mean of its square over the steps (the empirical Fisher information), likewise.
        product: mean of ``|weight * gradient|``, likewise.
        movement: sum of ``-weight * gradient`` since the start of the fit, likewise.
        loss_gradient: the gradient g on one batch at the moment of the cut, likewise.
        hessian_gradient: H g there, likewise.
        hessian_diagonal: estimate of H's diagonal there, likewise.
    """

    name: str
    weight: Tensor
    zero_share: Tensor | None = None
    of_neurons: bool = False
    mean: Tensor | None = None
    variance: Tensor | None = None
    rank: Tensor | None = None
    scale: Tensor | None = None
    input_norm: Tensor | None = None
    moments: Tensor | None = None
    gradient: Tensor | None = None
    squared_gradient: Tensor | None = None
    product: Tensor | None = None
    movement: Tensor | None = None
    loss_gradient: Tensor | None = None
    hessian_gradient: Tensor | None = None
    hessian_diagonal: Tensor | None = None

    def need(self, what: str) -> Tensor:
        """The evidence called ``what``.

        Raises:
            CompressionError: it has not been gathered.

        >>> import torch
        >>> Evidence("fc", torch.ones(2, 1), mean=torch.ones(2)).need("mean").tolist()
        [1.0, 1.0]
        """
        value = getattr(self, what)
        if value is None:
            raise CompressionError(
                f"{self.name!r}: the criterion looks at {what!r}, which has not been gathered. Mark it with "
                f'@needs("{what}").'
            )
        assert isinstance(value, Tensor)
        return value

    def per_judged(self, scores: Tensor) -> Tensor:
        """Scores of single weights as they are; summed up for each neuron where neurons are judged.

        >>> import torch
        >>> Evidence("fc", torch.ones(2, 3), of_neurons=True).per_judged(torch.ones(2, 3)).tolist()
        [3.0, 3.0]
        """
        return scores.flatten(1).sum(dim=1) if self.of_neurons else scores


def relative(scores: Tensor) -> Tensor:
    """Scores of a group's neurons as multiples of their mean, so that groups of unlike scale can be compared.

    >>> import torch
    >>> relative(torch.tensor([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)


Criterion: TypeAlias = Callable[[Evidence], Tensor]
"""Importance, the larger the more worth keeping: of ``weight``'s shape, or one number for each neuron."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def needs(*what: str) -> Callable[[_Function], _Function]:
    """Declare which fields of :class:`Evidence` a criterion looks at beyond the weights: ``"zero_share"``.

    Raises:
        CompressionError: there is no such field.
    """
    known = {field.name for field in fields(Evidence)} | {"curves"}
    for name in what:
        if name not in known:
            raise CompressionError(f"No evidence is called {name!r}. {did_you_mean(name, known)}")

    def mark(function: _Function) -> _Function:
        function.needs = frozenset(what)  # type: ignore[attr-defined]
        return function

    return mark


def needs_of(criterion: Callable[..., Any]) -> frozenset[str]:
    """What :func:`needs` declared, of a partial too; empty for a criterion that looks at weights alone.

    >>> from lightning_compress.pruning.criteria.apoz import apoz
    >>> sorted(needs_of(apoz))
    ['zero_share']
    """
    while isinstance(criterion, partial):
        criterion = criterion.func
    found: frozenset[str] = getattr(criterion, "needs", frozenset())
    return found


Repair: TypeAlias = Callable[[Evidence, Tensor], Tensor]
"""``f(evidence, keep)``: the weight that stands in for ``evidence.weight`` once only ``keep`` is left of it."""


def repairs(repair: Repair) -> Callable[[_Function], _Function]:
    """Declare that the weights a criterion leaves are fitted anew by ``repair`` after each cut."""

    def mark(function: _Function) -> _Function:
        function.repair = repair  # type: ignore[attr-defined]
        return function

    return mark


def repair_of(criterion: Callable[..., Any]) -> Repair | None:
    """What :func:`repairs` declared, of a partial too.

    >>> from lightning_compress.pruning.criteria.obs import obs
    >>> repair_of(obs).__name__
    'refit'
    """
    while isinstance(criterion, partial):
        criterion = criterion.func
    return getattr(criterion, "repair", None)
