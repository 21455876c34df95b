"""The folder of a run: which configuration made it, what is finished in it, and that only one process works in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_compress.errors import CompressionError
from lightning_compress.training.atomic_checkpoint import write_atomically

CONFIG = "config.json"


class RunFolder:
    """A run's files: ``config.json``, a folder for each stage, ``report.json``, ``report.html``, logs.

    Args:
        path: of the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def report(self) -> Path:
        """The report as data; its presence says that the run is finished."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report to look at."""
        return self.path / "report.html"

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage."""
        return StageFolder(self.path / name)

    def clear(self) -> None:
        """Throw away what an earlier run left; a folder that no run of ours made is left alone."""
        if (self.path / CONFIG).exists():
            for path in self.path.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def claim(self, config: Mapping[str, Any]) -> None:
        """Note that ``config`` makes this run; a run goes on under its own configuration only.

        Raises:
            CompressionError: another configuration began this run.
        """
        path = self.path / CONFIG
        if not path.exists():
            write_text(path, json.dumps(config, indent=1))
            return
        differing = differences(json.loads(path.read_text()), json.loads(json.dumps(config)))
        if differing:
            raise CompressionError(
                f"{str(self.path)!r} holds a run of another configuration: {'; '.join(differing)}. "
                "Start over with fresh=true, or keep both with hydra.run.dir=ANOTHER_FOLDER."
            )

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other processes out; the operating system lets go of it when the process ends, however it ends.

        Args:
            wait: until the other process is done: a worker can outlive the sweep that was killed.

        Raises:
            CompressionError: another process works here, and ``wait`` is False.
        """
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            yield
            return
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                raise CompressionError(
                    f"Another process is at work in {str(self.path)!r}. Wait for it, or end it."
                ) from error
            yield


LOCK = ".lock"


class StageFolder:
    """A stage's files.

    Args:
        path: of the folder.

    Attributes:
        last: checkpoint of the last complete epoch, to resume from.
        final: checkpoint of the network that the stage left: weights, Plan and Journal.
        result: what was measured of it; its presence says that the stage is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.ckpt"
        self.final = path / "final.ckpt"
        self.result = path / "network.json"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Keys whose values differ, with both values.

    >>> differences({"seed": 0, "data": {"fold": 1}}, {"seed": 0, "data": {"fold": 2}})
    ['data.fold was 1 and is 2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        found = (differences(old.get(name), new.get(name), f"{key}.{name}".strip(".")) for name in names)
        return [line for lines in found for line in lines]
    return [] if old == new else [f"{key} was {old!r} and is {new!r}"]


def relative(path: Path) -> str:
    """The path as a user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
