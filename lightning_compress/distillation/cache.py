"""What the teachers say of every sample, on disk: read instead of asked, refused where it is not theirs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError

VERSION = 1
DESCRIPTION = "cache.json"
LARGEST = 6e4
"""Finite half-precision numbers end at 65504."""


class TeacherCache:
    """The members' logits for each view of each sample, in half precision, memory-mapped; shared by any number of runs.

    Temperature, loss and pool can differ from run to run: the members' outputs are kept apart. Each read also compares
    a projection of the student's input with that of the input the teachers saw, so that an augmentation which the cache
    knows nothing of is an error, not a wrong target.

    Args:
        folder: of an existing cache.
        expected: what the cache must be of, as :func:`describe` says it.

    Raises:
        CompressionError: there is no cache, or it is of other teachers, samples or augmentations.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any]) -> None:
        self._folder = Path(folder)
        self._description = _read_description(self._folder)
        for key, value in expected.items():
            found = self._description.get(key)
            if found != value:
                raise CompressionError(
                    f"The cache {str(folder)!r} is stale: its {key} is {_short(found)}, this fit's {_short(value)}. "
                    "Remove the folder to build it anew, or name another."
                )
        self._arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(self._folder.glob("*.npy"))}

    def __str__(self) -> str:
        """Where it is, what is in it, and how large it is."""
        kept = self._description
        size: int = sum(path.stat().st_size for path in self._folder.iterdir())
        members = next(array for name, array in self._arrays.items() if name != "probes").shape[1]
        classes = kept["classes"] if kept["top_k"] is None else f"the {kept['top_k']} largest of {kept['classes']}"
        return f"{self._folder}: {kept['rows']} samples, {members} teachers, {classes} classes, {size:,} bytes"

    def read(self, rows: Tensor | None, args: Sequence[Any]) -> Tensor:
        """The members' logits (members, N, C) for a batch, float32, on the device of the student's input.

        Raises:
            CompressionError: a batch without rows, or an input that the teachers did not see.
        """
        if rows is None:
            raise CompressionError(
                "The batch does not say which samples it holds: wrap the training set, "
                "DataLoader(lightning_compress.distillation.Indexed(dataset), ...)."
            )
        inputs = first_tensor(args)
        index = rows.cpu().numpy()
        if len(index) != len(inputs):
            raise CompressionError(f"The batch has {len(index)} samples, the student's input {len(inputs)}.")
        self._compare(inputs, torch.from_numpy(self._arrays["probes"][index]))
        members = self._dense(index).movedim(1, 0).to(inputs.device)
        return members

    def _compare(self, inputs: Tensor, expected: Tensor) -> None:
        found = probes(inputs).cpu()
        tolerance = 1e-3 if inputs.dtype in (torch.float32, torch.float64) else 3e-2
        close = (found - expected).abs() <= tolerance * (1 + expected.abs())  # allclose takes three times as long
        if not close.all():
            raise CompressionError(
                "The student's input is not what the teachers saw when the cache was built: it is augmented at random "
                "after the sample's number was given. Put the augmentation into "
                "Indexed(dataset, transform, views=...), or leave the cache out."
            )

    def _dense(self, index: np.ndarray[Any, Any]) -> Tensor:
        if "logits" in self._arrays:
            return torch.from_numpy(self._arrays["logits"][index]).float()
        values = torch.from_numpy(self._arrays["values"][index]).float()
        rest = torch.from_numpy(self._arrays["rest"][index]).float()
        dense = rest[..., None].expand(*rest.shape, self._description["classes"]).clone()
        return dense.scatter_(-1, torch.from_numpy(self._arrays["indices"][index]).long(), values)


def describe(fingerprint: str, augmentation: str, rows: int, top_k: int | None) -> dict[str, Any]:
    """What a cache must be of."""
    return {"version": VERSION, "teachers": fingerprint, "augmentation": augmentation, "rows": rows, "top_k": top_k}


def write_cache(
    folder: str | Path, description: dict[str, Any], batches: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Write a cache, all of it or nothing; where another process was faster, its cache stands.

    Args:
        folder: must not exist.
        description: as :func:`describe` makes it.
        batches: rows (N,), inputs (N, ...) and members' logits (members, N, C), until all rows are there.

    Raises:
        CompressionError: logits that are not of classes.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        arrays: dict[str, Any] = {}
        classes = 0
        for rows, inputs, members in batches:
            if members.dim() != 3:
                raise CompressionError(
                    f"A cache keeps logits (N, classes), not {tuple(members.shape[1:])}. Leave it out."
                )
            classes = members.shape[-1]
            parts = {"probes": probes(inputs), **_compressed(members.movedim(0, 1), description["top_k"])}
            for name, part in parts.items():
                if name not in arrays:
                    shape, dtype = (description["rows"], *part.shape[1:]), part.cpu().numpy().dtype
                    arrays[name] = np.lib.format.open_memmap(made / f"{name}.npy", "w+", dtype, shape)
                arrays[name][rows.cpu().numpy()] = part.cpu().numpy()
        for array in arrays.values():
            array.flush()
        (made / DESCRIPTION).write_text(json.dumps({**description, "classes": classes}, indent=1))
        made.chmod(0o755)
        _publish(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)
    except OSError:
        if not (folder / DESCRIPTION).exists():
            raise


def _compressed(logits: Tensor, top_k: int | None) -> dict[str, Tensor]:
    """(N, members, C) in half precision: all, or the largest with the mean mass of the rest."""
    finite = logits.float().clamp(max=LARGEST)
    finite = torch.where(finite.isfinite(), finite.clamp(min=-LARGEST), finite)
    if top_k is None or top_k >= logits.shape[-1]:
        return {"logits": finite.half()}
    values, indices = finite.topk(top_k, dim=-1)
    others = finite.scatter(-1, indices, -torch.inf).logsumexp(dim=-1)
    rest = others - log(logits.shape[-1] - top_k)
    return {"values": values.half(), "indices": indices.int(), "rest": rest.clamp(-LARGEST, LARGEST).half()}


def probes(inputs: Tensor) -> Tensor:
    """One number for each sample that says which input it is: its projection on a fixed direction, (N,).

    >>> probes(torch.ones(2, 3)).shape
    torch.Size([2])
    """
    flat = inputs.detach().flatten(1).float()
    with torch.autocast(flat.device.type, enabled=False):
        found: Tensor = flat @ _direction(flat.shape[1], flat.device)
    return found


@lru_cache(maxsize=4)
def _direction(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return (torch.randn(size, generator=generator) / sqrt(size)).to(device)


def first_tensor(args: Sequence[Any]) -> Tensor:
    """The student's input."""
    for value in args:
        if isinstance(value, Tensor):
            return value
    raise CompressionError("A cache needs a tensor among the student's arguments.")


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CompressionError(f"There is no cache in {str(folder)!r}, but something else. Name another folder.")
    description: dict[str, Any] = json.loads(path.read_text())
    return description


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:16]}...{text[-4:]}"
