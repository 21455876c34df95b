"""Evidence of a group of neurons: pure functions on the network, its groups and what has been gathered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan.edits import first_names
from lightning_compress.pruning.evidence import INPUTS, OUTPUTS, Evidence
from lightning_compress.pruning.gathering import norm_of_inputs
from lightning_compress.pruning.neurons import weights_of_units
from lightning_compress.surgery import Group, InputStatistics, per_unit

_NORMS = (nn.modules.batchnorm._NormBase,)


def observed_layers(groups: Iterable[Group], needs: Collection[str]) -> list[str]:
    """Layers whose inputs the evidence ``needs`` is of: those that read the neurons, those that make them, or none.

    Raises:
        CompressionError: there are none, or no Linear or convolution: attention and recurrent layers multiply
            themselves.
    """
    layers: set[str] = set()
    blind: list[str] = []
    for group in groups:
        if OUTPUTS & set(needs):
            layers.update(group.consumers)
            blind += [] if group.consumers else group.producers
        if INPUTS & set(needs):
            layers.update(group.producers)
            blind += [one for one, rows in group.rows.items() if any(not t.endswith(".weight") for t, _ in rows)]
    if blind:
        where = "of those that read them" if OUTPUTS & set(needs) else "of those that make them"
        raise CompressionError(
            f"The criterion looks at the inputs of layers, {where}, and for {', '.join(map(repr, blind))} these are "
            f"no Linear and no convolution. Use criterion='magnitude' or 'taylor', or exclude={tuple(blind)!r}."
        )
    return sorted(layers)


def weight_names(groups: Iterable[Group]) -> list[str]:
    """Names of the parameters that make the neurons."""
    return sorted({tensor for group in groups for rows in group.rows.values() for tensor, _ in rows})


def evidence_of_group(
    module: nn.Module,
    group: Group,
    needs: Collection[str],
    statistics: Mapping[str, InputStatistics],
    gradients: Mapping[str, Mapping[str, Tensor]],
) -> Evidence:
    """What a criterion may look at.

    Args:
        module: the network.
        group: the neurons.
        needs: which evidence.
        statistics: layer -> what it has read; of :func:`observed_layers`.
        gradients: kind -> parameter -> tensor of its shape.

    Raises:
        CompressionError: evidence that there is none of for these neurons.
    """
    read: dict[str, Tensor] = {}
    for name in OUTPUTS & set(needs):
        own = {layer: _OUTPUT[name](statistics[layer]) for layer in group.consumers if layer in statistics}
        read[name] = per_unit(group, own)
    if "scale" in needs:
        read["scale"] = scale_of_units(module, group)
    if "input_norm" in needs:
        names = first_names(module)
        layers = [(producer, module.get_submodule(producer)) for producer in group.producers]
        norms = {names[id(layer.weight)]: norm_of_inputs(layer, statistics[name]) for name, layer in layers}
        read["input_norm"] = weights_of_units(module, group, norms)
    for kind, values in gradients.items():
        read[kind] = weights_of_units(module, group, values)
    return Evidence(group.name, weights_of_units(module, group), of_neurons=True, **read)


def scale_of_units(module: nn.Module, group: Group) -> Tensor:
    """Mean absolute weight of the BatchNorms behind each neuron, shape (units,).

    Raises:
        CompressionError: there is no BatchNorm with weights.
    """
    total, layers = torch.zeros(2, group.size, dtype=torch.float64).unbind()
    for part in group.coupled:
        path, _, leaf = part.tensor.rpartition(".")
        layer = module.get_submodule(path)
        if leaf == "weight" and isinstance(layer, _NORMS) and isinstance(layer.weight, Tensor):
            own = part.units >= 0
            weight = layer.weight.detach().abs().double().cpu()
            total.index_add_(0, part.units[own], weight[own])
            layers.index_add_(0, part.units[own], torch.ones_like(weight[own]))
    if not bool((layers > 0).all()):
        raise CompressionError(
            f"{group.name!r} has no BatchNorm behind it, whose scale could be looked at. Use criterion='magnitude', or "
            f"exclude=({group.name!r},)."
        )
    return (total / layers).float()


_OUTPUT = {
    "zero_share": lambda own: own.zero_share,
    "mean": lambda own: own.mean,
    "variance": lambda own: own.variance,
    "rank": lambda own: own.mean_rank,
}
