"""A network with early exits as one ONNX file for each segment between exits, and what routes samples through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.dynamic.inference import CONFIDENCES
from lightning_compress.dynamic.routing import AllOut, find_bank, first_tensor, logits_of, owner_of_bank
from lightning_compress.errors import CompressionError
from lightning_compress.export.onnx_file import TOLERANCE, export_onnx
from lightning_compress.registry import names
from lightning_compress.surgery import private_copy

MANIFEST = "exits.json"


def export_exits(module: nn.Module, folder: str | Path, example_input: Tensor, *, tolerance: float = TOLERANCE) -> Path:
    """Write a network with early exits as ``segment0.onnx``, ``segment1.onnx``, ... and ``exits.json``.

    Segment k takes the features of exit k - 1 (the first one takes the inputs) and gives those of exit k and its
    logits; the last one gives the network's logits. Any number of samples. :class:`ExitRouter` runs them; its few lines
    are what a program in another language has to do.

    Args:
        module: a network with exits, or what contains it; not touched.
        folder: made if it is not there.
        example_input: a batch of inputs.
        tolerance: see :func:`export_onnx`.

    Returns:
        The folder.

    Raises:
        CompressionError: no exits, features that are no single tensor, or a segment that cannot be written.
    """
    bank = find_bank(module)
    if bank.confidence not in names(CONFIDENCES):
        raise CompressionError(f"The router knows no confidence {bank.confidence!r}.")
    network = private_copy(owner_of_bank(module)).cpu().float().eval()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    value = example_input.detach().cpu()
    template = value if len(value) > 1 else torch.cat([value, value])
    value, files = template, []
    for number in range(len(bank.points) + 1):
        segment = Segment(network, number, template)
        outputs = ["features", "logits"] if number < len(bank.points) else ["logits"]
        files.append(f"segment{number}.onnx")
        # rows do not interact, as was proved, so nothing that forward decides in Python depends on a batch's values
        export_onnx(segment, target / files[-1], value, tolerance=tolerance, output_names=outputs, trust_tracing=True)
        if number < len(bank.points):
            with torch.no_grad():
                value = segment(value)[0]
    manifest: dict[str, Any] = {
        "segments": files,
        "confidence": bank.confidence,
        "thresholds": [None if one == float("inf") else one for one in bank.thresholds.tolist()],
        "macs": bank.costs.tolist(),
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return target


class Segment(nn.Module):
    """What a network computes between two exits.

    The network's own forward runs. Before the segment it computes something of a fixed example, which nothing depends
    on: at the exit where the segment begins, its input takes the place of that; where it ends, the forward is left.

    Args:
        network: with exits; in evaluation mode.
        number: of the segment.
        template: an input of the network.
    """

    def __init__(self, network: nn.Module, number: int, template: Tensor) -> None:
        super().__init__()
        self.network, self.number = network, number
        self.register_buffer("template", template[:1].clone(), persistent=False)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Features and logits of the exit at the end; of the last segment, logits."""
        bank = find_bank(self.network)
        answer: list[tuple[Tensor, Tensor]] = []
        handles = []

        def enter(_: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return value
            raise CompressionError(
                f"{bank.points[self.number - 1]!r} returns {type(output).__name__}, not one tensor, so no segment can "
                "begin behind it. Put the exit behind another module."
            )

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            features = first_tensor(output)
            answer.append((features, bank.logits(self.number, features)))
            raise AllOut

        if self.number > 0:
            handles.append(self.network.get_submodule(bank.points[self.number - 1]).register_forward_hook(enter))
        if self.number < len(bank.points):
            handles.append(self.network.get_submodule(bank.points[self.number]).register_forward_hook(leave))
        try:
            return logits_of(self.network(value if self.number == 0 else self.template))
        except AllOut:
            return answer[0]
        finally:
            for handle in handles:
                handle.remove()
