"""The best number of bits for each layer within a budget: an integer program, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from rich.table import Table
from scipy.optimize import Bounds, LinearConstraint, milp

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.sensitivity import Sensitivity
from lightning_compress.values import is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Allocation:
    """Bits for each layer; ``QuantizationAwareTraining(allocation.bits)`` trains with them.

    Attributes:
        bits: layer -> bits.
        cost: the sum of the layers' costs.
        mean_bits: over all weights.
        size: bytes of all weights, without scales.
        sensitivity: what it was decided on.
    """

    bits: Mapping[str, int]
    cost: float
    mean_bits: float
    size: float
    sensitivity: Sensitivity

    columns: ClassVar[tuple[str, ...]] = ("layer", "weights", "bits", "bytes", "cost")

    def rows(self) -> list[list[Any]]:
        """What stands under :attr:`columns`, a row for each layer."""
        sizes, costs = self.sensitivity.sizes, self.sensitivity.costs
        return [
            [layer, sizes[layer], bits, sizes[layer] * bits / 8, costs[layer][bits]]
            for layer, bits in self.bits.items()
        ]

    def table(self) -> Table:
        """The rows, for a terminal."""
        table = Table(*self.columns, title=f"{self.mean_bits:.2f} bits a weight")
        for layer, size, bits, used, cost in self.rows():
            table.add_row(layer, f"{size:,}", str(bits), f"{used:,.0f}", f"{cost:.2g}")
        return table

    def figure(self) -> Figure:
        """Costs of each layer over its bits; the chosen ones are marked."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        for layer, costs in self.sensitivity.costs.items():
            (line,) = axes.plot(list(costs), [max(cost, 1e-12) for cost in costs.values()], label=layer)
            chosen = self.bits[layer]
            axes.plot([chosen], [max(costs[chosen], 1e-12)], "o", color=line.get_color())
        axes.set(xlabel="bits", ylabel="cost", yscale="log")
        axes.legend(fontsize="small", frameon=False)
        return figure


def allocate_bits(found: Sensitivity, *, mean_bits: float | None = None, size: float | None = None) -> Allocation:
    """The bits with the smallest sum of costs that stay within the budget.

    Args:
        found: from :func:`~lightning_compress.quantization.sensitivity.sensitivity`.
        mean_bits: budget in bits a weight.
        size: or budget in bytes of all weights.

    Raises:
        CompressionError: not exactly one budget, or one below what the fewest bits take.

    >>> costs = {"a": {2: 9.0, 8: 0.0}, "b": {2: 1.0, 8: 0.0}}
    >>> allocate_bits(Sensitivity(costs, {"a": 100, "b": 100}), mean_bits=5).bits
    {'a': 8, 'b': 2}
    """
    if (mean_bits is None) == (size is None):
        raise CompressionError("Give one budget: mean_bits= or size= (bytes).")
    given = size if mean_bits is None else mean_bits
    if not is_number(given):
        raise CompressionError(f"The budget {given!r} is no number: bits a weight, or bytes of all weights.")
    total = sum(found.sizes.values())
    budget = mean_bits * total if mean_bits is not None else 8 * (size or 0)
    choices = [(layer, bits) for layer, costs in found.costs.items() for bits in costs]
    least = sum(min(costs) * found.sizes[layer] for layer, costs in found.costs.items())
    if not least <= budget:
        raise CompressionError(
            f"The budget of {budget / max(total, 1):.3g} bits a weight is below the {least / max(total, 1):.3g} "
            "that the fewest bits take. Try fewer bits in sensitivity(bits=), or raise it."
        )
    weights = np.array([float(bits * found.sizes[layer]) for layer, bits in choices])
    costs = np.array([found.costs[layer][bits] for layer, bits in choices])
    one_each = np.array([[float(layer == name) for layer, _ in choices] for name in found.costs])
    result = milp(
        costs / max(float(costs.max()), 1e-30),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(weights[None] / total, -np.inf, budget / total),
            LinearConstraint(one_each, 1, 1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise CompressionError(f"No allocation was found: {result.message}")
    bits = {layer: level for (layer, level), chosen in zip(choices, result.x, strict=True) if chosen > 0.5}
    used = sum(level * found.sizes[layer] for layer, level in bits.items())
    cost = sum(found.costs[layer][level] for layer, level in bits.items())
    return Allocation(bits, cost, used / max(total, 1), used / 8, found)
