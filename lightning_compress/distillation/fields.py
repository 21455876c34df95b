"""Small dataclasses given as mappings of their fields, as configuration files give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from lightning_compress.errors import CompressionError, did_you_mean

Kind = TypeVar("Kind")


def built(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """``kind(**values)``.

    Raises:
        CompressionError: a field that ``kind`` does not have, or one that is missing.

    >>> from lightning_compress.distillation import Ramp
    >>> built(Ramp, {"start": 8.0, "end": 2.0}).end
    2.0
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise CompressionError(f"A {kind.__name__} has no {name!r}. {did_you_mean(str(name), known)}")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if missing:
        raise CompressionError(f"A {kind.__name__} needs {', '.join(missing)}.")
    return kind(**values)
