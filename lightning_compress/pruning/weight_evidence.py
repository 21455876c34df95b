"""Evidence of single weights: pure functions on the network and what has been gathered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Evidence
from lightning_compress.pruning.gathering import norm_of_inputs
from lightning_compress.surgery import InputStatistics
from lightning_compress.surgery.ports import CONVOLUTIONS


def layers_of(weights: Iterable[str]) -> list[str]:
    """The layers that the parameters lie in.

    >>> layers_of(["net.0.weight", "net.2.weight"])
    ['net.0', 'net.2']
    """
    return [name.rpartition(".")[0] for name in weights]


def check_layers(module: nn.Module, weights: Iterable[str]) -> None:
    """Refuse weights that belong to no Linear or convolution that is called, and whose inputs can be looked at.

    Raises:
        CompressionError: with the weights and the way out.
    """
    blind = []
    for name in weights:
        where, _, leaf = name.rpartition(".")
        layer, around = module.get_submodule(where), module.get_submodule(where.rpartition(".")[0])
        inner = isinstance(around, nn.MultiheadAttention)  # reads out_proj.weight itself
        if inner or leaf != "weight" or not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            blind.append(name)
    if blind:
        raise CompressionError(
            f"The criterion looks at what a weight is multiplied with, and {', '.join(map(repr, blind))} cannot be "
            f"looked at: no weight of a Linear or convolution that is called. Leave it out: exclude={tuple(blind)!r}."
        )


def evidence_of_weight(
    module: nn.Module,
    weights: Mapping[str, nn.Parameter],
    needs: Collection[str],
    statistics: Mapping[str, InputStatistics],
    gradients: Mapping[str, Mapping[str, Tensor]],
    name: str,
) -> Evidence:
    """What a criterion may look at.

    Args:
        module: the network.
        weights: the parameters that are judged.
        needs: which evidence.
        statistics: layer -> what it has read.
        gradients: kind -> parameter -> tensor of its shape.
        name: of the parameter.

    Raises:
        CompressionError: the layer has read nothing.
    """
    read: dict[str, Tensor] = {kind: values[name] for kind, values in gradients.items()}
    where = name.rpartition(".")[0]
    if where in statistics:
        own = statistics[where]
        if own.count == 0:
            raise CompressionError(
                f"{where!r} has not been called, so nothing is known of its inputs (attention reads out_proj.weight "
                f"itself). Leave it out: exclude=({where!r},)."
            )
        if "input_norm" in needs:
            read["input_norm"] = norm_of_inputs(module.get_submodule(where), own)
        if "moments" in needs:
            read["moments"] = own.second_moment
    return Evidence(name, weights[name].detach().float(), **read)  # type: ignore[arg-type]
