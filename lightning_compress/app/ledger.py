"""The ledger of a sweep: a line of JSON for whatever happens to a job, from any number of processes at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

LEDGER = "ledger.jsonl"


class Ledger:
    """The file ``ledger.jsonl`` in the folder of a sweep.

    A line is an object with ``status`` and ``time``; by status, it also has:

    - ``begun``: the command was started; ``jobs`` (their number) and ``command``.
    - ``started``: a process took up ``job`` (its folder, below the sweep's); ``seed``, ``overrides``, ``process``.
    - ``finished``: likewise, and ``recipe``, ``command``, ``monitor``, ``mode``, ``before`` and ``after`` (the cost and
      the metrics of the first and of the last network, each by name), ``file`` (name and bytes, or null), ``config``
      (resolved) and ``environment``.
    - ``failed``: likewise, and ``error``. Started again, a failed job is run again.

    The last line of a job says where it stands: one that is ``started`` and no more is being run, or was killed.

    Args:
        folder: of the sweep.

    >>> import tempfile
    >>> ledger = Ledger(tempfile.mkdtemp())
    >>> ledger.write("started", job="a", seed=1)
    >>> ledger.write("failed", job="a", seed=1, error="no neurons")
    >>> [(job.name, job.status) for job in ledger.jobs()]
    [('a', 'failed')]
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LEDGER

    def write(self, status: str, **fields: Any) -> None:
        """Append a line: whole, on the disk, and not mixed with another process's."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "status": status, **fields})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            _lock(file)
            torn = _is_torn(file)  # by a kill in mid-write: what stands there stays a line of its own
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All that is readable, in order; a line that a kill has torn is left out."""
        if not self.path.exists():
            return []
        return list(_readable(self.path.read_bytes()))

    def jobs(self) -> list[Job]:
        """Each job as its last line has it, in the order in which they were first started."""
        last: dict[str, dict[str, Any]] = {}
        for line in self.lines():
            if "job" in line:
                last[line["job"]] = line
        return [Job(name, line["status"], line) for name, line in last.items()]

    def session(self) -> list[dict[str, Any]]:
        """The lines since the command was last started."""
        lines = self.lines()
        starts = [place for place, line in enumerate(lines) if line["status"] == "begun"]
        return lines[starts[-1] :] if starts else lines


@dataclass(frozen=True)
class Job:
    """Where a job stands.

    Attributes:
        name: its folder, below the sweep's.
        status: of its last line.
        line: that line, see :class:`Ledger`.
    """

    name: str
    status: str
    line: Mapping[str, Any]


def _readable(content: bytes) -> Iterator[dict[str, Any]]:
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "status" in line:
            yield line


def _is_torn(file: BinaryIO) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _lock(file: BinaryIO) -> None:
    """Until the file is closed, or the process gone; where the system has no such lock, a short append is one write."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)
