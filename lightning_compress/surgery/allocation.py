"""One budget for a whole network: for each layer the option with which all of them lose least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from lightning_compress.errors import CompressionError

Item = TypeVar("Item")
GAP = 1e-4
"""Relative gap to the best sum of errors at which the search ends."""


@dataclass(frozen=True)
class Option(Generic[Item]):
    """Something that can be done with a layer.

    Attributes:
        cost: what the layer costs then, in whatever the budget is counted in: parameters, MACs, microseconds.
        error: what it does to the network, in units that add up over layers.
        item: what it is; None for leaving the layer as it is.
    """

    cost: float
    error: float
    item: Item | None = None


def allocate(options: Mapping[str, Sequence[Option[Item]]], budget: float) -> dict[str, Option[Item]]:
    """One option for each layer, of the smallest sum of errors whose sum of costs stays within the budget.

    A multiple-choice knapsack, as an integer program (HiGHS): where an error is worth its saving follows for all layers
    at once, whatever kind their options are of.

    Args:
        options: of each layer; one with its present cost and no error is "keep".
        budget: for the sum of costs.

    Raises:
        CompressionError: even the cheapest options cost more; the message has what they cost.

    >>> one = [Option(10, 0.0), Option(4, 0.1, "half"), Option(1, 0.9, "tenth")]
    >>> two = [Option(10, 0.0), Option(5, 0.5, "half")]
    >>> {name: option.item for name, option in allocate({"one": one, "two": two}, 14).items()}
    {'one': 'half', 'two': None}
    """
    worth = {name: _undominated(rows) for name, rows in options.items()}
    least = sum(min(option.cost for option in rows) for rows in worth.values())
    if not least <= budget:
        raise CompressionError(
            f"The cheapest options cost {least:,.4g} together, above the budget of {budget:,.4g}. Ask for less, or "
            "allow more layers or other methods."
        )
    pairs = [(name, option) for name, rows in worth.items() for option in rows]
    costs = np.array([option.cost for _, option in pairs])
    errors = np.array([option.error for _, option in pairs])
    one_each = np.array([[float(name == other) for other, _ in pairs] for name in worth])
    scale = max(float(costs.max()), 1e-300)
    result = milp(
        errors / max(float(errors.max()), 1e-300),
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(costs[None] / scale, -np.inf, budget / scale * (1 + 1e-12)),
            LinearConstraint(one_each, 1, 1),
        ],
        options={"mip_rel_gap": GAP},
    )
    if result.x is None:
        raise CompressionError(f"No allocation was found: {result.message}")
    return {name: option for (name, option), taken in zip(pairs, result.x, strict=True) if taken > 0.5}


def _undominated(rows: Sequence[Option[Item]]) -> list[Option[Item]]:
    """Without those that cost no less than another one and err no less; cheapest first."""
    kept: list[Option[Item]] = []
    for option in sorted(rows, key=lambda one: (one.cost, one.error)):
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept
