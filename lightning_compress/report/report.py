"""What a report holds: primitives only, written as ``report.json`` and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lightning_compress.errors import CompressionError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Layer:
    """One weight tensor of a network.

    Attributes:
        name: of the parameter, without what all names begin with.
        shape: its sizes.
        weights: its entries.
        kept: its entries that are not exactly zero.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int


@dataclass(frozen=True)
class Network:
    """A network at the end of a stage.

    Attributes:
        stage: name of the stage.
        epochs: length of the stage.
        cost: the fields of :class:`lightning_compress.measure.Cost`, for one sample.
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
class Report:
    """A run from the first stage to the last. The fields are the schema of ``report.json``, version 1.

    Attributes:
        recipe: name of the recipe.
        seed: of the training.
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
    """

    recipe: str
    seed: int
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
        state = json.loads(text)
        if not isinstance(state, dict) or set(state) != {field.name for field in fields(cls)}:
            raise CompressionError("Not a report.json of this package.")
        if state["version"] != SCHEMA_VERSION:
            raise CompressionError(
                f"The report has version {state['version']!r}, this release reads {SCHEMA_VERSION}. Upgrade."
            )
        read = {
            "networks": tuple(network_from_state(network) for network in state["networks"]),
            "journal": tuple(state["journal"]),
            "plan": tuple(state["plan"]),
            "file": None if state["file"] is None else file_from_state(state["file"]),
        }
        return cls(**{**state, **read})


def network_from_state(state: Mapping[str, Any]) -> Network:
    """A :class:`Network` back from ``dataclasses.asdict`` and JSON."""
    layers = tuple(Layer(**{**layer, "shape": tuple(layer["shape"])}) for layer in state["layers"])
    return Network(**{**state, "layers": layers})


def file_from_state(state: Mapping[str, Any]) -> FileResult:
    """A :class:`FileResult` back from ``dataclasses.asdict`` and JSON."""
    steps = tuple(SizeStep(**step) for step in state["steps"])
    return FileResult(**{**state, "steps": steps, "layers": tuple(state["layers"])})
