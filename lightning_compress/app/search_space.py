"""What a search may choose: ranges of values of the configuration, written in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lightning_compress.errors import CompressionError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def read_space(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each key: ``{low: 1, high: 8}``, with ``log: true`` or ``step``, or a list of choices.

    Raises:
        CompressionError: neither.

    >>> read_space({"seed": {"low": 1, "high": 3}, "module.lr": {"low": 1e-3, "high": 1e-2, "log": True}})
    {'seed': IntDistribution(high=3, log=False, low=1, step=1), 'module.lr': FloatDistribution(high=0.01, log=True, \
low=0.001, step=None)}
    """
    if not space:
        raise CompressionError("search.space is empty: give each key its range, such as {low: 0.5, high: 0.9}.")
    return {str(key): _distribution(str(key), values) for key, values in space.items()}


def _distribution(key: str, values: Any) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    try:
        if isinstance(values, list):
            return CategoricalDistribution(values)
        if all(type(values[end]) is int for end in ("low", "high")):
            return IntDistribution(**values)
        return FloatDistribution(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise CompressionError(f"search.space of {key!r} is {values!r}: {error}") from error


def values_of(config: DictConfig, space: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """The recipe's own values, for the first trial; None if one of them lies outside of the space.

    Raises:
        CompressionError: the configuration has no such key.
    """
    values = {}
    for key, distribution in space.items():
        value = OmegaConf.select(config, key)
        if value is None:
            raise CompressionError(f"search.space names {key!r}, which the recipe does not have.")
        if not distribution._contains(distribution.to_internal_repr(value)):
            return None
        values[key] = value
    return values


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """As arguments of the command; three digits are as fine as a search can tell.

    >>> overrides_of({"module.lr": 0.0123456, "seed": 3})
    ['module.lr=0.0123', 'seed=3']
    """
    return [f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()]
