import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SMALL = ("recipe=iterative_pruning", "stages.dense.epochs=3", "stages.prune.epochs=5", "logger=csv", "seed=3")


class Command:
    """The command, run in this process and in an empty folder: ``command("seed=1")`` returns its exit code."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str) -> int:
        from lightning_compress.app.main import main

        self._monkeypatch.setattr(sys, "argv", ["lightning-compress", *arguments])
        return main()

    def small(self, *arguments: str) -> int:
        """A few epochs of the pruning recipe."""
        return self(*SMALL, *arguments)

    @property
    def run_folder(self) -> Path:
        """The one run folder that there is."""
        (config,) = self.folder.rglob("config.json")
        return config.parent


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return Command(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def shared_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The same for all tests of a file."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("command")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "120")
        yield Command(folder, monkeypatch)
