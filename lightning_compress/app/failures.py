"""What went wrong in one line, for the mistakes that a user can make; everything else keeps its traceback."""

import inspect
import re
from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_compress.app.search_path import find_folder
from lightning_compress.errors import CompressionError, did_you_mean


def describe_failure(error: BaseException, arguments: Sequence[str]) -> str | None:
    """One line for an error of use, None for an error of ours.

    Args:
        error: what flew.
        arguments: the command's arguments.

    >>> describe_failure(CompressionError("'fc1' has no neurons."), [])
    "'fc1' has no neurons."
    """
    compression = next((cause for cause in _causes(error) if isinstance(cause, CompressionError)), None)
    if compression is not None:
        return str(compression)
    misconfigured = type(error).__name__ == "MisconfigurationException"  # Lightning's; importing it takes seconds
    if misconfigured or isinstance(error, PermissionError):
        return _flat(error)
    if isinstance(error, InstantiationException):
        return _describe_instantiation(error)
    if isinstance(error, MissingConfigException):
        return _describe_missing(error)
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and isinstance(error.parent_node, DictConfig):
        parent = (error.full_key or "").rpartition(".")[0]
        return _unknown(str(error.key), parent, [str(key) for key in error.parent_node])
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _describe_override(error, arguments) or _flat(error)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _flat(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line)


def _describe_instantiation(error: InstantiationException) -> str | None:
    """Wrong arguments and unknown targets; an exception from inside the target is not the user's."""
    cause = error.__cause__
    if cause is None or isinstance(cause, ImportError):
        return _flat(error)
    unexpected = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause))
    target = re.search(r"call to target '([\w.]+)'", str(error))
    if not isinstance(cause, TypeError) or unexpected is None or target is None:
        return None
    known = inspect.signature(get_object(target[1])).parameters
    return f"{target[1]} has no argument {unexpected[1]!r}. {did_you_mean(unexpected[1], known)}"


def _describe_missing(error: MissingConfigException) -> str:
    if error.missing_cfg_file is None or not error.options:
        return _flat(error)
    group, _, option = error.missing_cfg_file.rpartition("/")
    return f"No {option!r} in the group {group!r}. {did_you_mean(option, error.options)}"


def _describe_override(error: BaseException, arguments: Sequence[str]) -> str | None:
    """The unknown key, and what stands beside it in the configuration that the other arguments make."""
    found = re.search(r"Could not override '([^'@]+)'", str(error))
    if found is None:
        return None
    key = found[1]
    parent, _, leaf = key.rpartition(".")
    known = _keys_below(parent, [argument for argument in arguments if argument.startswith("recipe=")])
    return _unknown(leaf, parent, known)


def _unknown(key: str, parent: str, known: Sequence[str]) -> str:
    return f"No {key!r} in {parent or 'the configuration'}. {did_you_mean(key, known)}"


def _keys_below(parent: str, overrides: list[str]) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        config = compose("config", overrides)
    node = OmegaConf.select(config, parent) if parent else config
    return [str(key) for key in node] if isinstance(node, DictConfig) else []
