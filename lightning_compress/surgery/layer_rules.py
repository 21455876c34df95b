"""How the units of a layer's inputs and outputs sit in its own tensors: one rule for each kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

from lightning_compress.plan.fewer_heads import has_plain_heads
from lightning_compress.surgery.labels import Labels, along, varies
from lightning_compress.surgery.ports import CONVOLUTIONS, input_dim
from lightning_compress.surgery.tracing import tensors_in
from lightning_compress.surgery.unit_tracer import UnitTracer

Axis: TypeAlias = tuple[str, int | str]
"""A tensor and one of its dimensions, or a module and one of its attributes."""

NOT_EXACT = "normalisation over the cut channels cannot be exact: its statistics would be taken over fewer channels"
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class LayerAxes:
    """The axes of a network's tensors and attributes, each with the labels of its indices, and the layers' sides.

    Attributes:
        axes: axis -> labels, shape (length of the axis,).
        outputs: layer -> labels of the units that it makes.
        rows: layer -> the axes of its weights whose entries make a unit.
        inputs: layer -> the axis of its weight that counts what it reads.
        refused: layer -> the first reason why its own outputs stay.
        norms: labels of units that a normalisation averages over, with its name.
    """

    def __init__(self, network: nn.Module, labels: Labels, tensor_names: dict[int, str]) -> None:
        self.labels = labels
        self.names: dict[nn.Module, str] = {module: name for name, module in network.named_modules()}
        self.axes: dict[Axis, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.rows: dict[str, tuple[tuple[str, int], ...]] = {}
        self.inputs: dict[str, Axis] = {}
        self.refused: dict[str, str] = {}
        self.norms: list[tuple[Tensor, str]] = []
        self._tensor_names = tensor_names

    def tensor(self, module: nn.Module, key: str, dim: int) -> Tensor:
        """The labels along a dimension of a tensor of ``module``; makes the axis if there is none."""
        tensor = getattr(module, key)
        axis = self._tensor_names[id(tensor)], dim
        if axis not in self.axes:
            self.axes[axis] = self.labels.fresh(tensor.shape[dim])
        return self.axes[axis]

    def counts(self, module: nn.Module, key: str, own: Tensor) -> None:
        """The attribute ``key`` of ``module`` counts ``own``."""
        axis = self.names[module], key
        if axis not in self.axes:
            self.axes[axis] = self.labels.fresh(own.numel())
        self.labels.join(self.axes[axis], own)

    def makes(self, module: nn.Module, own: Tensor, rows: Sequence[tuple[str, int]]) -> None:
        """``module`` makes the units ``own``; ``rows`` are the (tensor, dimension) of its weights that they lie on."""
        name = self.names[module]
        self.outputs[name] = own
        self.rows[name] = tuple((self._tensor_names[id(getattr(module, key))], dim) for key, dim in rows)

    def reads(self, module: nn.Module, key: str, dim: int) -> None:
        """``module`` reads units along this dimension of this tensor."""
        self.inputs[self.names[module]] = self._tensor_names[id(getattr(module, key))], dim

    def refuse_outputs(self, module: nn.Module, reason: str) -> None:
        """The outputs of ``module`` stay; the first reason counts."""
        self.refused.setdefault(self.names[module], reason)

    def refuse_inputs(self, tracer: UnitTracer, tensors: Sequence[Tensor], module: nn.Module, reason: str) -> None:
        """What reaches ``module`` stays."""
        for tensor in tensors:
            found = tracer.get(tensor)
            if found is not None:
                self.labels.refuse(found, f"its units meet {self.names[module]!r}: {reason}")

    def takes(self, tracer: UnitTracer, module: nn.Module, tensor: Tensor, dim: int, own: Tensor) -> Tensor | None:
        """``module`` reads ``own`` along ``dim`` of ``tensor``.

        Returns:
            Labels that pass through it: those of units along other dimensions, which the layer leaves apart.
        """
        found = tracer.get(tensor)
        if found is None:
            return None
        others = [other for other in range(found.dim()) if other != dim % found.dim()]
        if not varies(found, dim) and any(varies(found, other) for other in others):
            self.refuse_outputs(module, "its outputs lie across other units")
            self.labels.refuse(own, f"{self.names[module]!r} reads them across other units")
            return found.narrow(dim, 0, 1)
        self.labels.join(found, along(own, dim, found.shape))
        return None


Rule: TypeAlias = Callable[[LayerAxes, UnitTracer, Any, list[Tensor], list[Tensor]], None]
"""``rule(axes, tracer, module, inputs, outputs)``: the tensors among its arguments and its results."""


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a layer; None for a module whose operations are followed one by one."""
    own = next(module.parameters(recurse=False), None) is not None
    if is_parametrized(module) or hasattr(module, "weight_g"):
        return _parametrized
    for kinds, rule in _RULES:
        if isinstance(module, kinds):
            return rule
    opaque = type(module).__module__.startswith("torch.nn.modules") and own
    return _unknown if opaque else None


def _linear(axes: LayerAxes, tracer: UnitTracer, layer: nn.Linear, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    entering = axes.tensor(layer, "weight", 1)
    axes.counts(layer, "in_features", entering)
    axes.reads(layer, "weight", 1)
    leaving = axes.tensor(layer, "weight", 0)
    axes.counts(layer, "out_features", leaving)
    if layer.bias is not None:
        axes.labels.join(axes.tensor(layer, "bias", 0), leaving)
    axes.makes(layer, leaving, [("weight", 0)])
    across = axes.takes(tracer, layer, inputs[0], -1, entering)
    shape = outputs[0].shape
    tracer.set(outputs[0], along(leaving, -1, shape) if across is None else across.expand(shape))


def _convolution(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """With groups, each group of channels has the same positions: a unit is one position in all of them.

    Where each group has one channel to read (depthwise), a unit is a channel with all that comes of it.
    """
    dim = inputs[0].dim() - len(layer.kernel_size) - 1
    out_dim = 1 - input_dim(layer)
    groups, entering_width, leaving_width = layer.groups, layer.in_channels, layer.out_channels
    key_in, key_out = (axes.names[layer], "in_channels"), (axes.names[layer], "out_channels")
    for key, width in ((key_in, entering_width), (key_out, leaving_width)):
        if key not in axes.axes:
            axes.axes[key] = axes.labels.fresh(width)
    entering, leaving = axes.axes[key_in], axes.axes[key_out]
    depthwise = 1 < groups == entering_width
    read, made = axes.tensor(layer, "weight", input_dim(layer)), axes.tensor(layer, "weight", out_dim)
    if depthwise:
        axes.labels.join(entering.view(-1, 1), leaving.view(groups, -1))
        axes.counts(layer, "groups", entering)
        axes.labels.join(made if not layer.transposed else read, leaving if not layer.transposed else entering)
    elif layer.transposed:  # weight: (in, out / groups)
        axes.labels.join(read, entering)
        axes.labels.join(entering.view(groups, -1), entering.view(groups, -1)[:1])
        axes.labels.join(leaving.view(groups, -1), made)
    else:  # weight: (out, in / groups)
        axes.labels.join(made, leaving)
        axes.labels.join(leaving.view(groups, -1), leaving.view(groups, -1)[:1])
        axes.labels.join(entering.view(groups, -1), read)
    if layer.bias is not None:
        axes.labels.join(axes.tensor(layer, "bias", 0), leaving)
    if not depthwise:
        axes.makes(layer, leaving, [("weight", out_dim)])
        axes.reads(layer, "weight", input_dim(layer))
    across = axes.takes(tracer, layer, inputs[0], dim, entering)
    shape = outputs[0].shape
    if across is not None and any(varies(across, other) for other in range(dim + 1, across.dim())):
        axes.refuse_inputs(tracer, inputs, layer, "it mixes them")
        across = None
    tracer.set(outputs[0], along(leaving, dim, shape) if across is None else _spread(across, dim, shape))


def _spread(labels: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    for other in range(dim + 1, labels.dim()):
        labels = labels.narrow(other, 0, 1)
    return labels.expand(tuple(shape))


def _through(
    axes: LayerAxes, tracer: UnitTracer, layer: nn.Module, dim: int, own: Tensor, inputs: Any, outputs: Any
) -> None:
    """A layer whose units are those that it reads."""
    across = axes.takes(tracer, layer, inputs[0], dim, own)
    shape = outputs[0].shape
    tracer.set(outputs[0], along(own, dim, shape) if across is None else across.expand(shape))


def _own_axis(axes: LayerAxes, layer: nn.Module, tensors: Sequence[str], attributes: Sequence[str]) -> Tensor:
    """The labels of a layer's units: all these tensors' dimension 0 and these attributes count them."""
    present = [key for key in tensors if getattr(layer, key) is not None]
    name = axes.names[layer]
    if (name, attributes[0]) not in axes.axes:
        width = getattr(layer, attributes[0])
        axes.axes[name, attributes[0]] = axes.labels.fresh(width if isinstance(width, int) else width[0])
    own = axes.axes[name, attributes[0]]
    for key in present:
        axes.labels.join(axes.tensor(layer, key, 0), own)
    for key in attributes[1:]:
        axes.counts(layer, key, own)
    return own


def _batch_norm(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    own = _own_axis(axes, layer, ("weight", "bias", "running_mean", "running_var"), ("num_features",))
    unbatched = isinstance(layer, _InstanceNorm) and inputs[0].dim() == _rank(layer) + 1
    _through(axes, tracer, layer, 0 if unbatched else 1, own, inputs, outputs)


def _rank(layer: nn.Module) -> int:
    return next((int(digit) for digit in "123" if f"{digit}d" in type(layer).__name__), 2)


def _group_norm(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Whole groups of channels go, which leaves the statistics of the others alone."""
    own = _own_axis(axes, layer, ("weight", "bias"), ("num_channels",))
    grouped = own.view(layer.num_groups, -1)
    if layer.num_groups == 1:
        axes.norms.append((own, axes.names[layer]))
    else:
        axes.labels.join(grouped, grouped[:, :1])
        axes.counts(layer, "num_groups", grouped[:, 0])
    _through(axes, tracer, layer, 1, own, inputs, outputs)


def _layer_norm(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    if len(layer.normalized_shape) > 1:
        axes.refuse_inputs(tracer, inputs, layer, "normalisation over several dimensions cannot be exact")
        return
    tensors = tuple(key for key in ("weight", "bias") if getattr(layer, key, None) is not None)
    own = _own_axis(axes, layer, tensors, ("normalized_shape",))
    if inputs and (found := tracer.get(inputs[0])) is not None and varies(found, -1):
        axes.norms.append((own, axes.names[layer]))
    _through(axes, tracer, layer, -1, own, inputs, outputs)


def _embedding(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    own = axes.tensor(layer, "weight", 1)
    axes.counts(layer, "embedding_dim", own)
    tracer.set(outputs[0], along(own, -1, outputs[0].shape))


def _prelu(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    if layer.num_parameters == 1:
        tracer.set(outputs[0], tracer.get(inputs[0]))
    else:
        own = _own_axis(axes, layer, ("weight",), ("num_parameters",))
        _through(axes, tracer, layer, 1 if inputs[0].dim() > 1 else 0, own, inputs, outputs)


def _recurrent(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """A unit is the same number in every layer, direction and gate, since one attribute counts them all."""
    if layer.mode not in GATES or layer.proj_size:
        _unknown(axes, tracer, layer, inputs, outputs)
        return
    name, labels = axes.names[layer], axes.labels
    if (name, "hidden_size") not in axes.axes:
        axes.axes[name, "hidden_size"] = labels.fresh(layer.hidden_size)
        axes.axes[name, "input_size"] = labels.fresh(layer.input_size)
    hidden, entering = axes.axes[name, "hidden_size"], axes.axes[name, "input_size"]
    directions, gated = 1 + layer.bidirectional, hidden.repeat(GATES[layer.mode])
    rows = []
    for key, _ in layer.named_parameters(recurse=False):
        labels.join(axes.tensor(layer, key, 0), gated)
        if key.startswith("weight_hh"):
            labels.join(axes.tensor(layer, key, 1), hidden)
        elif key.startswith("weight_ih"):
            first = key.removesuffix("_reverse").endswith("_l0")
            labels.join(axes.tensor(layer, key, 1), entering if first else hidden.repeat(directions))
        if key.startswith("weight"):
            rows.append((key, 0))
    axes.makes(layer, hidden, rows)
    sequence, *states = inputs
    if axes.takes(tracer, layer, sequence, -1, entering) is not None:
        axes.refuse_inputs(tracer, inputs, layer, "it mixes them")
    for state in states:
        if state.is_floating_point():
            axes.takes(tracer, layer, state, -1, hidden)
    for output in outputs:
        if output.is_floating_point() and output.dim() > 1:
            wide = hidden.repeat(output.shape[-1] // layer.hidden_size)
            tracer.set(output, along(wide, -1, output.shape))


def _attention(axes: LayerAxes, tracer: UnitTracer, layer: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """A unit is a head; the width outside stays."""
    axes.refuse_inputs(tracer, inputs, layer, "the width of an nn.MultiheadAttention is fixed")
    if not has_plain_heads(layer):
        axes.refuse_outputs(layer, f"{type(layer).__name__} may do with its heads what no rule knows of")
        return
    name = axes.names[layer]
    if (name, "num_heads") not in axes.axes:
        axes.axes[name, "num_heads"] = axes.labels.fresh(layer.num_heads)
    heads = axes.axes[name, "num_heads"]
    own = heads.repeat_interleave(layer.head_dim)
    packed = layer.in_proj_weight is not None
    rows = [("in_proj_weight", 0)] if packed else [(f"{one}_proj_weight", 0) for one in "qkv"]
    for key, dim in [*rows, ("in_proj_bias", 0), ("bias_k", 2), ("bias_v", 2)]:
        if getattr(layer, key) is not None:
            own_here = own.repeat(3) if key.startswith("in_proj") else own
            axes.labels.join(axes.tensor(layer, key, dim), own_here)
    axes.labels.join(axes.tensor(layer.out_proj, "weight", 1), own)
    axes.counts(layer.out_proj, "in_features", own)
    axes.makes(layer, heads, rows)


def _parametrized(
    axes: LayerAxes, tracer: UnitTracer, layer: nn.Module, inputs: list[Tensor], outputs: list[Tensor]
) -> None:
    axes.refuse_outputs(layer, f"{axes.names[layer]!r} has a parametrized weight, which cannot shrink")
    axes.refuse_inputs(tracer, inputs, layer, "it has a parametrized weight, which cannot shrink")


def _unknown(
    axes: LayerAxes, tracer: UnitTracer, layer: nn.Module, inputs: list[Tensor], outputs: list[Tensor]
) -> None:
    reason = f"no rule says how a {type(layer).__name__} shrinks"
    axes.refuse_outputs(layer, reason)
    axes.refuse_inputs(tracer, inputs, layer, reason)


_RULES: tuple[tuple[Any, Rule], ...] = (
    (nn.modules.linear.NonDynamicallyQuantizableLinear, _linear),
    (nn.Linear, _linear),
    (CONVOLUTIONS, _convolution),
    ((_BatchNorm, _InstanceNorm), _batch_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.MultiheadAttention, _attention),
)


class Watch:
    """Hooks that let each layer with a rule follow it, and keep what happens inside from being followed.

    Attributes:
        ran: names of the layers that ran.
    """

    def __init__(self, axes: LayerAxes, tracer: UnitTracer) -> None:
        self.ran: set[str] = set()
        self._axes, self._tracer = axes, tracer
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, network: nn.Module) -> None:
        """Watch all layers of ``network``."""
        for module in network.modules():
            rule = rule_for(module)
            if rule is not None:
                self._handles.append(module.register_forward_pre_hook(lambda *_: self._tracer.pause()))
                self._handles.append(module.register_forward_hook(self._leaver(rule), with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _leaver(self, rule: Rule) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.ran.add(self._axes.names[module])
            if self._tracer.inside == 1:
                outputs = list(tensors_in(output))
                for tensor in outputs:
                    self._tracer.set(tensor, None)
                rule(self._axes, self._tracer, module, list(tensors_in((args, kwargs))), outputs)
            self._tracer.resume()

        return leave
