"""The reference router: samples through the segments of a network with exits, with numpy and ONNX Runtime alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import CompressionError
from lightning_compress.export.onnx_file import open_session

Array = NDArray[Any]


class Routed(NamedTuple):
    """Logits (N, classes) and the number of the exit (N,) of each sample, and the multiply-accumulates of the batch."""

    logits: Array
    exits: Array
    macs: float


class ExitRouter:
    """Runs what :func:`~lightning_compress.export.export_exits` has written.

    Args:
        folder: with ``exits.json`` and the segments.
        threads: of each session.

    Raises:
        CompressionError: there is no ``exits.json``.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        path = Path(folder, "exits.json")
        if not path.is_file():
            raise CompressionError(f"{str(folder)!r} has no exits.json. Write it with export_exits(module, folder, x).")
        manifest = json.loads(path.read_text())
        self._sessions = [open_session(Path(folder, name), threads) for name in manifest["segments"]]
        self._confidence: str = manifest["confidence"]
        self._thresholds = [np.inf if one is None else one for one in manifest["thresholds"]]
        self._macs: list[float] = manifest["macs"]

    def __call__(self, inputs: Array) -> Routed:
        """Answers for a batch; only unresolved samples go into the next segment."""
        value, rows = inputs, np.arange(len(inputs))
        exits = np.full(len(inputs), len(self._thresholds))
        logits: Array | None = None
        earlier = np.zeros((len(inputs), 0), dtype=np.int64)
        for number, session in enumerate(self._sessions):
            outputs = session.run(None, {session.get_inputs()[0].name: value})
            answers = outputs[-1]
            logits = np.zeros((len(inputs), answers.shape[1]), answers.dtype) if logits is None else logits
            logits[rows] = answers
            if number == len(self._thresholds):
                break
            stays = ~(self._scores(answers, earlier) >= self._thresholds[number])
            exits[rows[~stays]] = number
            earlier = np.concatenate([earlier, answers.argmax(axis=1)[:, None]], axis=1)[stays]
            value, rows = outputs[0][stays], rows[stays]
            if len(rows) == 0:
                break
        assert logits is not None
        return Routed(logits, exits, float(np.asarray(self._macs)[exits].sum()))

    def _scores(self, logits: Array, earlier: Array) -> Array:
        shifted = logits - logits.max(axis=1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        if self._confidence == "max_probability":
            return np.asarray(probabilities.max(axis=1))
        if self._confidence == "margin":
            best = np.sort(probabilities, axis=1)
            return np.asarray(best[:, -1] - best[:, -2])
        if self._confidence == "entropy":
            terms = probabilities * np.log(np.maximum(probabilities, 1e-30))
            return np.asarray(1 + terms.sum(axis=1) / np.log(max(logits.shape[1], 2)))
        agree = earlier[:, ::-1] == logits.argmax(axis=1)[:, None]
        return np.asarray(1 + np.cumprod(agree, axis=1).sum(axis=1))
