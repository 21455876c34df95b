"""What all quantizers share: a grid, whether it is in force, and a state of numbers and tensors."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_compress.quantization.grid import Grid


class Quantizer:
    """Rounds one tensor of the network to a grid.

    Attributes:
        grid: the codes.
        enabled: False passes everything through (before the start).
        frozen: scale and zero point stay as they are.
        ready: whether scale and zero point are known; it passes everything through before.
        scale: of one code, shape (1,) or (channels,).
        zero_point: int32, likewise.
        learned: names of the attributes that are Parameters, for the auxiliary optimizer.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[tuple[str, ...]] = ("scale", "zero_point")

    def __init__(self, grid: Grid, channels: int = 1) -> None:
        self.grid = grid
        self.enabled = False
        self.frozen = False
        self.ready = False
        self.scale: Tensor = torch.ones(channels)
        self.zero_point = torch.zeros(channels, dtype=torch.int32)

    def set_grid(self, grid: Grid) -> None:
        """Other bits in mid-fit."""
        self.grid = grid

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is learned, by attribute."""
        return {name: getattr(self, name) for name in self.learned}

    def keep_in_range(self) -> None:
        """What is learned besides scales stays where it means something."""

    def to(self, device: torch.device) -> None:
        """Move to ``device``, Parameters in place."""
        for name in self.kept:
            value = getattr(self, name)
            if value.device != device:
                if isinstance(value, nn.Parameter):
                    value.data = value.data.to(device)
                else:
                    setattr(self, name, value.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        state: dict[str, Any] = {name: getattr(self, name).detach().clone() for name in self.kept}
        return {**state, "bits": self.grid.bits, "ready": self.ready, "frozen": self.frozen, "enabled": self.enabled}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.grid = Grid(state["bits"], symmetric=self.grid.symmetric, narrow=self.grid.narrow)
        self.ready, self.frozen, self.enabled = state["ready"], state["frozen"], state["enabled"]
        for name in self.kept:
            value = getattr(self, name)
            if isinstance(value, nn.Parameter) and value.shape == state[name].shape:
                value.copy_(state[name])
            elif isinstance(value, nn.Parameter):
                setattr(self, name, nn.Parameter(state[name].clone().to(value.device), value.requires_grad))
            else:
                setattr(self, name, state[name].clone().to(value.device))


def mean_over_processes(*values: Tensor) -> list[Tensor]:
    """Each value averaged over the processes; what is decided from it is the same everywhere."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(values)
    flat = torch.cat([value.detach().float().reshape(-1) for value in values]) / distributed.get_world_size()
    distributed.all_reduce(flat)
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
