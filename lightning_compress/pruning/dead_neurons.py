"""Neurons that never fire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.surgery import capture, find_groups, gather
from lightning_compress.surgery.statistics import group_zero_share
from lightning_compress.surgery.tracing import call_with_batch


@dataclass(frozen=True)
class DeadNeurons:
    """Neurons whose output was zero wherever it was read, on all of the data.

    Attributes:
        dead: layer that makes them -> their numbers; layers of which none is dead have an empty list.
        sizes: layer -> number of its neurons.
        skipped: layer -> the reason why nothing is known of its neurons.

    >>> DeadNeurons({"fc1": [3, 5], "fc2": []}, {"fc1": 8, "fc2": 4}, {}).count
    2
    """

    dead: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int]
    skipped: Mapping[str, str]

    @property
    def count(self) -> int:
        """How many in all."""
        return sum(map(len, self.dead.values()))

    def __rich__(self) -> Table:
        """One row for each layer."""
        table = Table("layer", "neurons", "dead", title="Neurons that never fire")
        for name, numbers in self.dead.items():
            table.add_row(name, f"{self.sizes[name]:,}", f"{len(numbers):,}")
        return table


def dead_neurons(
    module: nn.Module, data: Iterable[Any], *, forward: Callable[[nn.Module, Any], object] | None = None
) -> DeadNeurons:
    """Count the neurons that are zero for every sample of ``data``: those that APoZ (Hu et al. 2016) takes first.

    In evaluation mode, at the inputs of the Linear layers and convolutions that read them, so after the non-linearity;
    of neurons that could be taken out, since only their readers are known. A dead neuron costs time and bytes and
    changes nothing: :class:`~lightning_compress.pruning.NeuronPruning` with ``criterion="apoz"`` removes it exactly.

    Args:
        module: the network; afterwards as it was.
        data: batches of what ``forward`` takes, gone through once.
        forward: runs the network on a batch; by default calls it with the batch, or with the first element of a tuple
            or list.

    Raises:
        CompressionError: no data.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = nn.init.constant_(net[0].bias, -100.0)
    >>> dead_neurons(net, [torch.rand(8, 2)]).dead
    {'0': [0, 1, 2]}
    """
    run = forward or call_with_batch
    batches = list(data)
    if not batches:
        raise CompressionError("There is no data to look for dead neurons on: data= is empty.")
    groups = find_groups(module, capture(module, lambda copy: run(copy, batches[0])))
    readers = sorted({consumer for group in groups for consumer in group.consumers})
    statistics = gather(module, batches, readers, forward=run, sums=("zeros",))
    dead, sizes, skipped = {}, {}, dict(groups.skipped)
    for group in groups:
        if group.consumers:
            shares = group_zero_share(group, statistics)
            dead[group.name], sizes[group.name] = (shares == 1).nonzero().flatten().tolist(), group.size
        else:
            skipped[group.name] = "no Linear or convolution reads them"
    return DeadNeurons(dead, sizes, skipped)
