"""Methods by name: one function in one file, found by the file's name, or any callable passed instead."""

from collections.abc import Callable
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from lightning_compress.errors import CompressionError, did_you_mean

READERS = {".lcz": ("lightning_compress.artifact", "load_compressed")}
"""Suffix of a model file -> package and name of ``function(path, into=module)``, which returns ``module``."""


def reader_of(path: str | Path) -> Callable[..., Any] | None:
    """What reads files with this suffix; None where nobody does.

    A room asks here, by the name of a file, and so knows nothing of the rooms beside it.

    >>> reader_of("model.lcz").__name__
    'load_compressed'
    """
    if Path(path).suffix not in READERS:
        return None
    package, name = READERS[Path(path).suffix]
    reader: Callable[..., Any] = getattr(import_module(package), name)
    return reader


def names(package: str) -> list[str]:
    """Names of the methods in ``package``, sorted: its modules that do not begin with an underscore.

    A name that is a Python keyword (``global``) lies in a module with an underscore behind it.

    >>> "magnitude" in names("lightning_compress.pruning.criteria")
    True
    """
    paths = import_module(package).__path__
    return sorted(info.name.removesuffix("_") for info in iter_modules(paths) if not info.name.startswith("_"))


def resolve(method: str | Callable[..., Any], package: str) -> Callable[..., Any]:
    """The callable itself, or the function that bears the module's name in ``package``.

    Raises:
        CompressionError: no method of that name; the message says which exist.

    >>> resolve("magnitude", "lightning_compress.pruning.criteria").__name__
    'magnitude'
    >>> resolve(len, "lightning_compress.pruning.criteria") is len
    True
    """
    if callable(method):
        return method
    kind = package.rpartition(".")[2].replace("_", " ")
    known = names(package)
    if method not in known:
        raise CompressionError(f"No {method!r} among the {kind}. {did_you_mean(str(method), known)}")
    name = f"{method}_" if iskeyword(method) else method
    function: Callable[..., Any] = getattr(import_module(f"{package}.{name}"), name)
    return function
