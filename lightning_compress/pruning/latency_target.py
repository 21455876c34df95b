"""Measured latency as what neurons are counted in, and the widths that a machine likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.measure import check_runtime, compare_latency, runner
from lightning_compress.plan import KeepIndices, Plan
from lightning_compress.plan.edits import RegrowIndices
from lightning_compress.pruning.neurons import Count, aligned, edit_for
from lightning_compress.surgery import Group, TracingInput, private_copy

UNIT = 10**6
"""The latency of the uncut network, in the whole numbers that are counted in."""
ALIGNMENTS = (1, 4, 8, 16, 32)
CLEARLY = 0.95
"""A coarser alignment has to take less than this share of the time of a finer one, at equal MACs."""


class LatencyCount:
    """How long a network takes, as a share of what it took before any cut: measured side by side, in :data:`UNIT`.

    The uncut network is made of a copy whose cuts are taken back; what comes back are zeros, which are no faster.

    Args:
        module: the network.
        tracing: a call that runs it; of tensors by position.
        runtime: "eager" or "onnxruntime".
        batch_size: samples at a time; those of the call are repeated or cut to it.
        rounds: samples of each network.

    Raises:
        CompressionError: a runtime that is not there, or a call that cannot be timed.
    """

    def __init__(
        self, module: nn.Module, tracing: TracingInput, runtime: str, batch_size: int, *, rounds: int = 30
    ) -> None:
        check_runtime(runtime)
        if tracing.kwargs or not all(isinstance(one, Tensor) for one in tracing.args):
            raise CompressionError("What is timed are networks whose forward takes tensors by position alone.")
        self._runtime, self._rounds, self._where = runtime, rounds, tracing.module
        self._inputs = [_of_size(one, batch_size) for one in tracing.args]
        self._present = private_copy(module)
        dense = private_copy(module)
        for edit in reversed(Plan.of(module).edits):
            if isinstance(edit, KeepIndices):
                RegrowIndices(edit).apply(dense)
        self._dense = runner(dense.get_submodule(self._where), self._inputs, runtime)
        self._measured: dict[tuple[int, ...], int] = {}

    def after(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> int:
        """Latency once only ``kept`` units of each group are left; each width is measured once."""
        widths = tuple(kept[group.name].numel() for group in groups)
        if widths not in self._measured:
            self._measured[widths] = round(UNIT * self._ratio(edit_for(groups, kept)))
        return self._measured[widths]

    def _ratio(self, edit: KeepIndices | None) -> float:
        copy = private_copy(self._present)
        if edit is not None:
            edit.apply(copy)
        cut = runner(copy.get_submodule(self._where), self._inputs, self._runtime)
        clock = "wall" if self._inputs[0].is_cuda else "cpu"
        times = compare_latency({"dense": self._dense, "cut": cut}, rounds=self._rounds, clock=clock)  # type: ignore[arg-type]
        return times["cut"].ratio.median


def learned_alignment(
    module: nn.Module, tracing: TracingInput, groups: Sequence[Group], runtime: str, batch_size: int, share: float
) -> int:
    """:func:`learn_alignment` for this network; once in a process for all networks of the same shapes.

    Args:
        module: the network.
        tracing: a call that runs it.
        groups: of the network.
        runtime: "eager" or "onnxruntime".
        batch_size: samples at a time.
        share: of each group's units that is taken out for the trial.
    """
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    inputs = tuple(tuple(one.shape[1:]) for one in tracing.args if isinstance(one, Tensor))
    key = (runtime, batch_size, round(share, 3), inputs, shapes, tuple(group.name for group in groups))
    if key not in _LEARNED:
        latency, macs = LatencyCount(module, tracing, runtime, batch_size), Count(module, tracing, "macs")
        _LEARNED[key] = learn_alignment(latency, macs, groups, share=share)
    return _LEARNED[key]


_LEARNED: dict[tuple[object, ...], int] = {}


def learn_alignment(
    latency: LatencyCount, macs: Count, groups: Sequence[Group], *, share: float, alignments: Sequence[int] = ALIGNMENTS
) -> int:
    """The multiple to which widths are best rounded on this machine: the least time for each multiply-accumulate.

    Args:
        latency: of the network.
        macs: likewise.
        groups: of the network.
        share: of each group's units that is taken out for the trial.
        alignments: rising multiples to try; a coarser one must be clearly better than the best of the finer ones.
    """
    best, least = 1, float("inf")
    for multiple in alignments:
        kept = {g.name: torch.arange(_rounded(g.size, share, aligned(g, multiple))) for g in groups}
        time = latency.after(groups, kept) / max(1, macs.after(groups, kept))
        if time < least * (CLEARLY if least < float("inf") else 1):
            best, least = multiple, time
    return best


def _rounded(size: int, share: float, multiple: int) -> int:
    left = max(1, round(size * (1 - share)))
    if multiple == 1:
        left -= left % 2 == 0 and left > 1  # an odd width, as a ranking leaves it
    return min(size, left + -left % multiple)


def _of_size(tensor: Tensor, batch_size: int) -> Tensor:
    repeats = -(-batch_size // len(tensor))
    return torch.cat([tensor] * repeats)[:batch_size].clone()
