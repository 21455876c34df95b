"""Which weights are meant: by kind of layer, or by name pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_compress.errors import CompressionError, did_you_mean

_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


def find_weights(
    module: nn.Module, targets: Sequence[str] | None, exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The parameters to prune, by name.

    Args:
        module: the network.
        targets: patterns (``fc*``, ``*.bias``) for names of layers or of parameters; a layer stands for its weights. None: the
            weights of all Linear, convolution, attention and recurrent layers; biases and norms only when asked for by name.
        exclude: patterns of what to leave out.

    Raises:
        CompressionError: a pattern that matches nothing; nothing left to prune.

    >>> list(find_weights(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), None))
    ['0.weight']
    """
    named = {_plain(name): (name, parameter) for name, parameter in module.named_parameters()}
    by_default = {name for name in named if _is_weight(module, named[name][0])}
    chosen = by_default if targets is None else set().union(*(_match(p, named, by_default, "targets") for p in targets))
    excluded = set().union(*(_match(p, named, by_default, "exclude") for p in exclude))
    found = {name: parameter for plain, (name, parameter) in named.items() if plain in chosen - excluded}
    if not found:
        raise CompressionError(
            "There is nothing to prune: no Linear, convolution, attention or recurrent layer is left. Give targets=."
        )
    unfit = next((name for name, parameter in found.items() if not parameter.is_floating_point()), None)
    if unfit is not None:
        raise CompressionError(f"{unfit!r} does not hold floating-point numbers. Leave it out: exclude=({unfit!r},).")
    return found


def _plain(name: str) -> str:
    """The name without what ``torch.compile`` puts into it."""
    return name.replace("_orig_mod.", "")


def _is_weight(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return isinstance(module.get_submodule(path), _LAYERS) and "weight" in leaf


def _match(pattern: str, named: Mapping[str, object], weights: set[str], argument: str) -> set[str]:
    by_name = {name for name in named if fnmatchcase(name, pattern)}
    by_layer = {name for name in weights if _layer_matches(name, pattern)}
    if not by_name | by_layer:
        layers = sorted({name.rpartition(".")[0] for name in weights})
        raise CompressionError(
            f"{argument}: {pattern!r} matches no parameter and no layer. {did_you_mean(pattern, layers)}"
        )
    return by_name | by_layer


def _layer_matches(name: str, pattern: str) -> bool:
    """Whether the layer of a weight, or anything that it lies in, matches."""
    parts = name.split(".")[:-1]
    return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts) + 1))
