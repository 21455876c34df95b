"""A module into a file and back: small on the disk, the same bits in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_compress.artifact.container import ModelFile, write_model
from lightning_compress.artifact.dtypes import check_dtype
from lightning_compress.artifact.entropy import CODERS, CoderName
from lightning_compress.artifact.fields import MAX_NAME
from lightning_compress.artifact.index import MAX_DIMENSIONS
from lightning_compress.artifact.plan_json import plan_from_json, plan_to_json
from lightning_compress.artifact.summary import FileSummary, inspect_compressed
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import Plan, condensed
from lightning_compress.plan.shape import Shape

M = TypeVar("M", bound=nn.Module)

STAGED = 2**24
"""What is decoded before the first weight is touched is kept up to so many bytes; the rest is decoded a second time,
straight into its place.
"""


def save_compressed(
    module: nn.Module,
    path: str | Path,
    *,
    coder: CoderName = "auto",
    metadata: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> FileSummary:
    """Write all that is in ``module.state_dict()`` into one small file, losslessly, and read it back to be sure.

    What a tensor is, is found from its values: mostly zeros, few distinct ones, a uniform grid, or anything. The Plan
    goes into the file too. Equal input gives equal bytes. The former file stays until the new one is verified.

    Args:
        module: any module; tied weights are stored once.
        path: of the file, usually ``*.lcz``.
        coder: "auto" for small tensors as small as they go, and large ones within a hundredth of that but read ten
            times as fast; "smallest" for the last hundredth; "deflate" for the fastest; "rans" for range coding and
            "huffman" for canonical Huffman codes alone.
        metadata: anything in JSON.
        metrics: name to number.

    Raises:
        CompressionError: something that a file cannot hold, by name; nothing has been written.
        OSError: the disk is full, or the folder cannot be written.

    >>> import tempfile
    >>> summary = save_compressed(nn.Linear(64, 64), Path(tempfile.mkdtemp(), "model.lcz"))
    >>> summary.bytes < 4 * 65 * 64
    True
    """
    if coder not in CODERS:
        raise CompressionError(f"No coder {coder!r}. {did_you_mean(str(coder), CODERS)}")
    tensors, aliases = _collect(module)
    texts = {"metrics": _to_json(metrics), "user": _to_json(metadata)}
    write_model(
        Path(path),
        tensors,
        aliases=aliases,
        plan=plan_to_json(condensed(Plan.of(module))),
        class_name=type(module).__qualname__[:MAX_NAME],
        metadata={key: text for key, text in texts.items() if text},
        coder=coder,
    )
    return inspect_compressed(path)


def load_compressed(path: str | Path, into: M, *, max_total_bytes: float | None = None) -> M:
    """Give ``into`` the shape and the weights of a file; Lightning is not needed.

    The Plan in the file is replayed first, so a fresh network of the original shape will do. Names, shapes and dtypes
    must then be the file's. Ties come back.

    Args:
        path: of the file.
        into: a network of the same class; changed in place.
        max_total_bytes: what all tensors may take in memory; None is what ``into`` takes.

    Returns:
        ``into``.

    Raises:
        FormatError: the file is damaged or not of this format.
        CompressionError: it is of another network. ``into`` is as it was, in either case.

    >>> import tempfile
    >>> path, layer = Path(tempfile.mkdtemp(), "model.lcz"), nn.Linear(3, 2)
    >>> _ = save_compressed(layer, path)
    >>> load_compressed(path, into=nn.Linear(3, 2)).weight.equal(layer.weight)
    True
    """
    file = ModelFile.open(path, float("inf") if max_total_bytes is None else max_total_bytes)
    plan = plan_from_json(file.index.plan, str(path))
    shape, before = Shape(into), Plan.of(into)
    try:
        if plan.edits != before.edits:
            plan.apply_to(into)
        _check_fit(file, into)
        staged = _decode_all(file)
    except BaseException:
        if Plan.of(into).edits != before.edits:
            before.apply_to(into)
        shape.restore()
        raise
    _tie(into, file.index.aliases)
    targets = into.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in file.entries:
            if name in staged:
                targets[name].copy_(staged.pop(name))
            else:
                file.copy_into(name, targets[name])
    return into


def unpack_state(path: str | Path, *, max_total_bytes: float | None = None) -> dict[str, Tensor]:
    """The ``state_dict`` in a file, without a module; aliases share their tensor.

    Raises:
        FormatError: the file is damaged, or its tensors take more memory than allowed (see :meth:`ModelFile.open`).
    """
    file = ModelFile.open(path, max_total_bytes)
    state = {name: file.tensor(name).clone() for name in file.entries}
    return {**state, **{name: state[target] for name, target in file.index.aliases.items()}}


def _collect(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store by their first names, and the other names of tied ones."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise CompressionError(f"{name!r} is no dense tensor with values; a file holds nothing else.")
        check_dtype(value.dtype, name)
        if value.dim() > MAX_DIMENSIONS or len(name) > MAX_NAME:
            raise CompressionError(f"{name!r} has more than {MAX_DIMENSIONS} dimensions, or a name too long.")
        if id(value) in first:
            aliases[name] = first[id(value)]
        else:
            first[id(value)] = name
            tensors[name] = value
    return tensors, aliases


def _to_json(values: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(values), sort_keys=True, allow_nan=False) if values else ""
    except (TypeError, ValueError) as error:
        raise CompressionError(f"Metadata and metrics must be JSON: {error}.") from None


def _check_fit(file: ModelFile, module: nn.Module) -> None:
    """The file has the module's tensors, no others, in the same shapes and dtypes."""
    state = module.state_dict(keep_vars=True)
    stored = {*file.entries, *file.index.aliases}
    missing, surplus = sorted(set(state) - stored), sorted(stored - set(state))
    if missing or surplus:
        raise CompressionError(
            f"{file.outer.path} is of another network: it lacks {missing[:5] or 'nothing'}, and the network has no "
            f"{surplus[:5] or 'surplus'}. Load it into the class that was saved."
        )
    names: dict[int, str] = {}
    for name, tensor in state.items():
        target = file.index.aliases.get(name, name)
        entry = file.entries[target]
        if (tuple(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
            raise CompressionError(
                f"{name!r} has shape {tuple(tensor.shape)} and {tensor.dtype} in the network, {entry.shape} and "
                f"{entry.dtype} in {file.outer.path}."
            )
        if names.setdefault(id(tensor), target) != target:
            raise CompressionError(f"{name!r} is tied in the network and has values of its own in {file.outer.path}.")


def _decode_all(file: ModelFile) -> dict[str, Tensor]:
    """Decode every tensor, so that a damaged one is found in time; keep the first ones."""
    room, staged = STAGED, {}
    for name, entry in file.entries.items():
        if entry.bytes <= room:
            room -= entry.bytes
            staged[name] = file.tensor(name)
        else:
            file.check(name)
    return staged


def _tie(module: nn.Module, aliases: Mapping[str, str]) -> None:
    for name, target in aliases.items():
        tensor = module.state_dict(keep_vars=True)[target]
        owner, _, key = name.rpartition(".")
        setattr(module.get_submodule(owner), key, tensor)
