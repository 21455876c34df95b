"""What a criterion may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What is known of a layer's weight, or of a group of neurons, when it is judged.

    Attributes:
        name: the parameter, or the layer that makes the neurons.
        weight: fp32; for neurons of shape (neurons, weights of each), else of the parameter's shape.
        zero_share: for neurons, the share of zeros at the next layer's input, shape (neurons,); only for criteria that
            need it.
        of_neurons: whether neurons are judged, not single weights.
    """

    name: str
    weight: Tensor
    zero_share: Tensor | None = None
    of_neurons: bool = False


Criterion: TypeAlias = Callable[[Evidence], Tensor]
"""Importance, the larger the more worth keeping: of ``weight``'s shape, or one number for each neuron."""

_Function = TypeVar("_Function", bound=Criterion)


def needs(*what: str) -> Callable[[_Function], _Function]:
    """Declare which data a criterion needs beyond the weights: ``"zero_share"``."""

    def mark(function: _Function) -> _Function:
        function.needs = frozenset(what)  # type: ignore[attr-defined]
        return function

    return mark


def needs_of(criterion: Criterion) -> frozenset[str]:
    """What :func:`needs` declared, of a partial too; empty for a criterion that looks at weights alone.

    >>> from lightning_compress.pruning.criteria.apoz import apoz
    >>> sorted(needs_of(apoz))
    ['zero_share']
    """
    while isinstance(criterion, partial):
        criterion = criterion.func
    found: frozenset[str] = getattr(criterion, "needs", frozenset())
    return found
