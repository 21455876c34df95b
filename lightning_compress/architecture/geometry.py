"""The shape of a Linear layer or convolution, and of the smaller ones that are made in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_compress.plan.specs import ModuleSpec, build_module, check_spec

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Geometry:
    """What a layer does with shapes; a Linear layer is a convolution without positions.

    Attributes:
        outputs: features or channels that it makes.
        inputs: that it reads.
        groups: of channels that are mixed among themselves only.
        kernel: its size along each dimension; () of a Linear layer.
        stride: likewise.
        padding: likewise, or "same" or "valid".
        dilation: likewise.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    >>> shape = Geometry.of(nn.Conv2d(6, 4, 3, groups=2))
    >>> shape.group_outputs, shape.group_inputs, shape.positions
    (2, 3, 9)
    """

    outputs: int
    inputs: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, layer: nn.Module) -> Geometry:
        """That of a layer."""
        if isinstance(layer, nn.Linear):
            return cls(layer.out_features, layer.in_features)
        assert isinstance(layer, _ConvNd)
        padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        sizes = (tuple(layer.kernel_size), tuple(layer.stride), padding, tuple(layer.dilation))
        return cls(layer.out_channels, layer.in_channels, layer.groups, *sizes, layer.padding_mode)

    @property
    def positions(self) -> int:
        """Of the kernel: 9 of a 3x3 one."""
        return prod(self.kernel)

    @property
    def group_outputs(self) -> int:
        """Channels that one group makes."""
        return self.outputs // self.groups

    @property
    def group_inputs(self) -> int:
        """Channels that one group reads."""
        return self.inputs // self.groups

    def layer(
        self, inputs: int, outputs: int, *, groups: int = 1, along: Sequence[bool] | bool = False, bias: bool = False
    ) -> ModuleSpec:
        """The spec of a layer of this kind.

        Args:
            inputs: that it reads.
            outputs: that it makes.
            groups: of a convolution.
            along: for each dimension, whether it has this one's kernel, stride, padding and dilation; a kernel of one
                otherwise.
            bias: whether it has one.
        """
        if not self.kernel:
            return {"type": "Linear", "arguments": {"in_features": inputs, "out_features": outputs, "bias": bias}}
        chosen = [along] * len(self.kernel) if isinstance(along, bool) else list(along)

        def pick(sizes: tuple[int, ...], otherwise: int) -> list[int]:
            return [size if take else otherwise for size, take in zip(sizes, chosen, strict=True)]

        arguments: dict[str, Any] = {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": pick(self.kernel, 1),
            "stride": pick(self.stride, 1),
            "dilation": pick(self.dilation, 1),
            "groups": groups,
            "bias": bias,
        }
        if isinstance(self.padding, str):
            arguments |= {"padding": self.padding, "padding_mode": self.padding_mode}
        elif any(sides := pick(self.padding, 0)):
            arguments |= {"padding": sides, "padding_mode": self.padding_mode}
        return {"type": f"Conv{len(self.kernel)}d", "arguments": arguments}

    def dense(self, *, bias: bool) -> ModuleSpec:
        """The spec of the layer itself."""
        return self.layer(self.inputs, self.outputs, groups=self.groups, along=True, bias=bias)

    def by_group(self, tensor: Tensor) -> Tensor:
        """A weight (outputs, group inputs, ...) as (groups, group outputs, ...)."""
        return tensor.reshape(self.groups, self.group_outputs, *tensor.shape[1:])


def parameters_in(spec: ModuleSpec) -> int:
    """How many numbers a module of this spec has.

    >>> parameters_in(Geometry(4, 3).dense(bias=True))
    16
    """
    return check_spec(spec).elements


def macs_in(spec: ModuleSpec, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-accumulates of Linear layers and convolutions for inputs of these shapes, together.

    >>> macs_in(Geometry.of(nn.Conv2d(3, 8, 3, padding=1)).dense(bias=True), [(1, 3, 10, 10)])
    21600
    """
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * cast(Tensor, layer.weight)[0].numel()

    module = build_module(spec, device="meta")
    for part in module.modules():
        if isinstance(part, (nn.Linear, *CONVOLUTIONS)):
            part.register_forward_hook(count)
    with torch.no_grad():
        for shape in shapes:
            module(torch.empty(tuple(shape), device="meta"))
    return total
