"""Checkpoints that are either written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes into a temporary file in the target folder, flushes it to the disk, then renames.

    Lightning writes elsewhere and moves: on a full disk the previous good checkpoint is gone, and a kill leaves large
    files in the temporary folder. Here the former file stays until the new one is complete, and a failed write leaves
    nothing behind.

    >>> import lightning as L
    >>> trainer = L.Trainer(plugins=[AtomicCheckpointIO()], logger=False, enable_checkpointing=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``; a remote path (``s3://``) goes Lightning's way.

        Raises:
            OSError: the disk is full, or the folder cannot be written; the former file is untouched.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a new file beside ``path`` and rename it once all of it is on the disk.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp(), "note")
    >>> write_atomically(target, lambda file: file.write(b"whole"))
    >>> target.read_bytes()
    b'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # a fixed name: what a kill leaves behind, the next write replaces
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
