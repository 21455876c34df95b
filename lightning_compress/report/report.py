"""What a report holds: primitives only, written as ``report.json`` and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_compress.errors import CompressionError

SCHEMA_VERSION = 2
FINISHED = "finished"


@dataclass(frozen=True)
class Histogram:
    """The values of a weight tensor that are not zero.

    Attributes:
        low: left edge of the first bin.
        high: right edge of the last bin.
        counts: entries in each bin; all bins have the same width.
        codebook: the distinct values in rising order, where there are at most 64 of them; else empty.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    codebook: tuple[float, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One weight tensor of a network.

    Attributes:
        name: of the parameter, without what all names begin with.
        shape: its sizes.
        weights: its entries.
        kept: its entries that are not exactly zero.
        parameter: the whole name of the parameter.
        bytes: of the tensor at its dtype, zeros counted.
        macs: dense multiply-accumulates of the module that holds it, for one sample; None where that is not known.
        bits: width of a kept weight: of its codes under quantization, of its index where values are shared (at most 256
            distinct ones), else of its dtype; None where that is not known.
        values: the histogram; None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    parameter: str = ""
    bytes: int = 0
    macs: int | None = None
    bits: int | None = None
    values: Histogram | None = None


@dataclass(frozen=True)
class Network:
    """A network at the end of a stage.

    Attributes:
        stage: name of the stage.
        epochs: length of the stage.
        cost: the fields of :class:`lightning_compress.measure.Cost`, for one sample; ``macs`` and
            ``peak_memory_bytes`` are missing where the network could not be run by itself.
        metrics: what validation and test logged, by name.
        layers: the weight tensors (two dimensions and more); biases, norms and the like are not among them.
    """

    stage: str
    epochs: int
    cost: Mapping[str, int]
    metrics: Mapping[str, float]
    layers: tuple[Layer, ...]

    @property
    def sparsity(self) -> float:
        """Share of all parameters that are zero."""
        return 1 - self.cost["nonzero_parameters"] / max(self.cost["parameters"], 1)


@dataclass(frozen=True)
class SizeStep:
    """The size of the network after a step of compression.

    Attributes:
        step: what has been done.
        bytes: the size.
        real: whether that is a file's size; else it is counted, in fields of fixed width.
    """

    step: str
    bytes: int
    real: bool


@dataclass(frozen=True)
class FileResult:
    """The compressed file of the last network: written, read back into a fresh network, and that one evaluated.

    Attributes:
        name: of the file, in the run's folder.
        bytes: its size on the disk.
        ratio: bytes of the first network in fp32 over that.
        steps: the way there.
        layers: the fields of :class:`lightning_compress.artifact.accounting.TensorAccount`, one mapping a parameter.
        metrics: of the network that was read back.
    """

    name: str
    bytes: int
    ratio: float
    steps: tuple[SizeStep, ...]
    layers: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Rival:
    """A small dense network of equal bytes or multiply-accumulates, trained from scratch: what compression has to beat.

    Attributes:
        name: of its run.
        network: what its run left.
        file_bytes: size of its file on the disk; None where it wrote none.
    """

    name: str
    network: Network
    file_bytes: int | None = None


@dataclass(frozen=True)
class Answers:
    """What the first and the last network answer on the same validation samples.

    Attributes:
        samples: number of them.
        agreement: share on which both give the same answer.
        lost: samples that the first answers rightly and the last wrongly.
        gained: samples that the first answers wrongly and the last rightly.
        before: confusion matrix of the first network: a row for each true class, a column for each answer; empty with
            more than 50 classes.
        after: confusion matrix of the last network.
    """

    samples: int
    agreement: float
    lost: int
    gained: int
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Report:
    """A run from the first stage to the last. The fields are the schema of ``report.json``, version 2.

    A reader finds each field with the type written here: tuples are lists, dataclasses and mappings objects, NaN and
    infinity the literals of Python's ``json``. A report of version 1 has none of the fields from ``file`` on but
    ``file`` and ``version``; it is read with their defaults.

    Attributes:
        recipe: name of the recipe.
        seed: of the training; None where nobody set one.
        monitor: name of the metric that is followed.
        mode: "max" or "min" of it is better.
        networks: what each stage left, in order; the first is "before", the last is "after".
        journal: the Journal's entries: mappings with kind, text, epoch (of its stage), step and data.
        plan: the edits of the last network, in words.
        environment: versions, platform and number of processors.
        config: the resolved configuration.
        command: what makes this report again.
        file: the compressed file; None where the recipe writes none.
        version: of the schema.
        status: "finished", or how the run broke off.
        unknown: what this report cannot say, and why; one sentence each.
        answers: of the first and the last network compared; None where they were not.
        rival: the honest rival; None where none was named.
        sensitivity: parameter -> (share of zeros, cost) of pruning it alone; empty where nobody measured it.
    """

    recipe: str
    seed: int | None
    monitor: str
    mode: str
    networks: tuple[Network, ...]
    journal: tuple[Mapping[str, Any], ...]
    plan: tuple[str, ...]
    environment: Mapping[str, str]
    config: Mapping[str, Any]
    command: str
    file: FileResult | None = None
    version: int = SCHEMA_VERSION
    status: str = FINISHED
    unknown: tuple[str, ...] = ()
    answers: Answers | None = None
    rival: Rival | None = None
    sensitivity: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @property
    def before(self) -> Network:
        """The network that compression started from."""
        return self.networks[0]

    @property
    def after(self) -> Network:
        """The network that is left."""
        return self.networks[-1]

    @property
    def asked_and_reached(self) -> tuple[Mapping[str, Any], ...]:
        """For each callback's end: what was asked for, what was reached, and the sentence that says so."""
        ends = (entry for entry in self.journal if entry["kind"] == "finish" and "asked" in entry["data"])
        return tuple({"text": entry["text"], **entry["data"]} for entry in ends)

    def to_json(self) -> str:
        """The text of ``report.json``."""
        return json.dumps(asdict(self), indent=1, allow_nan=True)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what :meth:`to_json` wrote.

        Raises:
            CompressionError: no report, or one of a later version.
        """
        try:
            state = json.loads(text)
        except ValueError as error:
            raise CompressionError(f"Not a report.json of this package: {error}.") from error
        if not isinstance(state, dict) or not _required(cls) <= set(state):
            raise CompressionError("Not a report.json of this package.")
        if state["version"] not in (1, SCHEMA_VERSION) or not set(state) <= {field.name for field in fields(cls)}:
            raise CompressionError(
                f"The report has version {state['version']!r}, this release reads {SCHEMA_VERSION}. Upgrade."
            )
        read = {
            "networks": tuple(network_from_state(network) for network in state["networks"]),
            "journal": tuple(state["journal"]),
            "plan": tuple(state["plan"]),
            "file": None if state["file"] is None else file_from_state(state["file"]),
            "version": SCHEMA_VERSION,
            "unknown": tuple(state.get("unknown", ())),
            "answers": None if state.get("answers") is None else answers_from_state(state["answers"]),
            "rival": None if state.get("rival") is None else rival_from_state(state["rival"]),
            "sensitivity": curves_from_state(state.get("sensitivity", {})),
        }
        return cls(**{**state, **read})


def _required(kind: type[Report]) -> set[str]:
    optional = {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}
    return {f.name for f in fields(kind)} - optional | {"file", "version"}


def read_report(place: str | Path) -> Report:
    """The report of a run.

    Args:
        place: a ``report.json``, or the folder of a run, in which it lies.

    Raises:
        CompressionError: there is none, or it is none of this package.
    """
    path = Path(place)
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise CompressionError(f"{str(place)!r} has no report.json. Give the folder of a finished run, or the file.")
    return Report.from_json(path.read_text())


def read_rival(place: str | Path) -> Rival:
    """The honest rival from the report of its own run: what that left.

    Args:
        place: as in :func:`read_report`.

    Raises:
        CompressionError: as in :func:`read_report`.
    """
    report = read_report(place)
    return Rival(report.recipe, report.after, None if report.file is None else report.file.bytes)


def layer_from_state(state: Mapping[str, Any]) -> Layer:
    """A :class:`Layer` back from ``dataclasses.asdict`` and JSON."""
    values = state.get("values")
    if values is not None:
        values = Histogram(**{**values, "counts": tuple(values["counts"]), "codebook": tuple(values["codebook"])})
    return Layer(**{**state, "shape": tuple(state["shape"]), "values": values})


def network_from_state(state: Mapping[str, Any]) -> Network:
    """A :class:`Network` back from ``dataclasses.asdict`` and JSON."""
    return Network(**{**state, "layers": tuple(layer_from_state(layer) for layer in state["layers"])})


def file_from_state(state: Mapping[str, Any]) -> FileResult:
    """A :class:`FileResult` back from ``dataclasses.asdict`` and JSON."""
    steps = tuple(SizeStep(**step) for step in state["steps"])
    return FileResult(**{**state, "steps": steps, "layers": tuple(state["layers"])})


def rival_from_state(state: Mapping[str, Any]) -> Rival:
    """A :class:`Rival` back from ``dataclasses.asdict`` and JSON."""
    return Rival(**{**state, "network": network_from_state(state["network"])})


def answers_from_state(state: Mapping[str, Any]) -> Answers:
    """An :class:`Answers` back from ``dataclasses.asdict`` and JSON."""
    matrices = {name: tuple(tuple(row) for row in state[name]) for name in ("before", "after")}
    return Answers(**{**state, **matrices})


def curves_from_state(state: Mapping[str, Any]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Curves back from JSON: name -> points."""
    return {name: tuple((float(x), float(y)) for x, y in points) for name, points in state.items()}
