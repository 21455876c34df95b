"""Which weights are meant: by kind of layer, or by name pattern."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from lightning_compress.errors import CompressionError, did_you_mean

_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


def find_weights(
    module: nn.Module, targets: Sequence[str] | None, exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The parameters that are meant, by name.

    A pattern (``*`` and ``?`` stand for anything, dots included) that is the name of a layer, or of a module with
    layers in it, stands for their weights: ``fc*`` for ``fc1.weight`` and ``fc2.weight``. One that goes on into the
    names of parameters stands for those: ``fc1.*`` for its bias too, ``*.bias`` for all biases.

    Args:
        module: the network.
        targets: patterns. None: the weights of all Linear, convolution, attention and recurrent layers; biases and
            norms only when asked for by name.
        exclude: patterns of what to leave out; the name of a module stands for all that it holds.

    Raises:
        CompressionError: a pattern that matches nothing; nothing is left.

    >>> list(find_weights(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), None))
    ['0.weight']
    """
    named = {_plain(name): (name, parameter) for name, parameter in module.named_parameters()}
    weights = {plain for plain, (name, _) in named.items() if _is_weight(module, name)}
    chosen = weights if targets is None else set[str]().union(*(_match(p, named, weights, "targets") for p in targets))
    excluded = set[str]().union(*(_match(p, named, named, "exclude") for p in exclude))
    found = {name: parameter for plain, (name, parameter) in named.items() if plain in chosen - excluded}
    if not found:
        raise CompressionError(
            "No weight is left to work on: no Linear, convolution, attention or recurrent layer. Give targets=."
        )
    computed = [name for name, part in module.named_modules() if isinstance(part, _LAYERS) and _is_computed(part)]
    silent = [name for name in computed if targets is None and not any(_covers(pattern, name) for pattern in exclude)]
    if silent:
        raise CompressionError(
            f"The weight of {silent[0]!r} is computed from other parameters (weight_norm, parametrize), so its zeros "
            f"would not last. Remove the parametrization, or leave it out: exclude=({silent[0]!r},)."
        )
    unfit = next((name for name, parameter in found.items() if not parameter.is_floating_point()), None)
    if unfit is not None:
        raise CompressionError(f"{unfit!r} does not hold floating-point numbers. Leave it out: exclude=({unfit!r},).")
    return found


def _is_computed(layer: nn.Module) -> bool:
    return is_parametrized(layer) or ("weight" not in layer._parameters and hasattr(layer, "weight_g"))


def _covers(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts) + 1))


def refuse_text(patterns: Sequence[str] | None, argument: str) -> None:
    """Refuse one name, or anything else, in the place of a list of names.

    Raises:
        CompressionError: ``patterns`` is a string, or no list of strings; the message has the way out.
    """
    if isinstance(patterns, str):
        raise CompressionError(f"{argument}={patterns!r} is one name; write {argument}=({patterns!r},).")
    listed = isinstance(patterns, Collection) and all(isinstance(pattern, str) for pattern in patterns)
    if patterns is not None and not listed:
        raise CompressionError(f"{argument}={patterns!r} is no list of names.")


def _plain(name: str) -> str:
    """The name without what ``torch.compile`` puts into it."""
    return name.replace("_orig_mod.", "")


def _is_weight(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return isinstance(module.get_submodule(path), _LAYERS) and "weight" in leaf


def _match(pattern: str, named: Mapping[str, object], below: Collection[str], argument: str) -> set[str]:
    """Parameters whose own name matches, and those among ``below`` that lie in a module whose name does."""
    inside = {name for name in named if _module_matches(name, pattern)}
    found = {name for name in named if fnmatchcase(name, pattern)} - inside | inside & set(below)
    if not found:
        modules = {part for name in below for part in _modules_around(name)}
        raise CompressionError(
            f"{argument}: {pattern!r} matches no parameter and no layer with weights. {did_you_mean(pattern, modules)}"
        )
    return found


def _module_matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(module, pattern) for module in _modules_around(name))


def _modules_around(name: str) -> list[str]:
    """The modules that a parameter lies in, the root excepted: ``a.b.weight`` in ``a`` and ``a.b``."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
