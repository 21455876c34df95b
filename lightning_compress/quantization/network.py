"""A network with quantizers beside it: attached, told of edits, saved, and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import Edit, KeepIndices
from lightning_compress.quantization.activations import (
    InputHook,
    ObservedActivation,
    OutputHook,
    build_activation_quantizer,
)
from lightning_compress.quantization.bit_budget import BitBudget
from lightning_compress.quantization.dataflow import Dataflow
from lightning_compress.quantization.grid import SMALLEST_SCALE, Grid
from lightning_compress.quantization.observation import resolve_observer
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.settings import Settings, bits_of
from lightning_compress.quantization.sound_weights import find_sound_weights
from lightning_compress.quantization.transparent import TransparentWeights
from lightning_compress.quantization.weights import Layout, ObservedWeight, build_weight_quantizer

_WEIGHT_ONLY = (nn.Embedding, nn.EmbeddingBag)


class FakeQuantization:
    """The quantizers of one module; nothing of it lies in the module's tree. A plan ``Follower``.

    Args:
        module: the network.
        settings: what is asked for.
        owner: who asks, for messages.

    Attributes:
        weights: parameter -> quantizer.
        inputs: layer -> quantizer of what it reads; layers that read the same tensor have the same one.
        outputs: module -> quantizer of what it returns, where that is an operand of a residual add.

    Raises:
        CompressionError: a pattern that matches nothing, or a layer that cannot be quantized; nothing is touched.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> quantization = FakeQuantization(net, Settings(4, 8))
    >>> quantization.attach()
    >>> quantization.enable()
    >>> _ = net(torch.rand(8, 4))
    >>> quantization.detach()
    >>> sorted(quantization.weights), quantization.weights["0.weight"].grid.bits
    (['0.weight', '2.weight'], 4)
    """

    def __init__(self, module: nn.Module, settings: Settings, owner: str = "FakeQuantization") -> None:
        self.module, self.settings, self.owner = module, settings, owner
        self._observer = resolve_observer(settings.observer)
        self._weight_observer = resolve_observer(settings.weight_observer)
        self._transparent = TransparentWeights(module, owner)
        self._handles: list[Any] = []
        self._on_swap: list[Callable[[str, nn.Parameter, Callable[[Tensor], Tensor]], None]] = []
        self._time = (0.0, 1.0)
        self.weights: dict[str, ObservedWeight] = {}
        self.inputs: dict[str, ObservedActivation] = {}
        self.outputs: dict[str, ObservedActivation] = {}
        self._build()
        self._check_patterns()

    # -- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """A quantizer wherever one is asked for and none is yet."""
        settings = self.settings
        parameters = dict(self.module.named_parameters())
        chosen = find_sound_weights(self.module, settings.targets, settings.exclude)
        found = [name.removesuffix("_orig") for name in chosen]
        self._layers = _owners(self.module, chosen.values())
        self.weights = {name: quantizer for name, quantizer in self.weights.items() if name in found}
        self.inputs = {name: quantizer for name, quantizer in self.inputs.items() if name in self._layers}
        for name in found:
            layer = name.rpartition(".")[0]
            bits = self._bits("weight_bits", layer)
            if bits is not None and name not in self.weights:
                weight = parameters[name if name in parameters else f"{name}_orig"]
                self.weights[name] = self._weight_quantizer(name, layer, weight, bits)
        for layer in self._layers:
            bits = self._bits("activation_bits", layer)
            if bits is not None and layer not in self.inputs and self._reads_activations(layer):
                self.inputs[layer] = self._activation_quantizer(bits)

    def _weight_quantizer(self, name: str, layer: str, weight: Tensor, bits: int) -> ObservedWeight:
        settings = self.settings
        if weight.dim() < 2:
            raise CompressionError(
                f"{name!r} has {weight.dim()} dimension: biases and norms stay in floating point. Leave it out of "
                "targets=."
            )
        transposed = isinstance(self.module.get_submodule(layer), _ConvTransposeNd)
        axis = None if settings.granularity == "tensor" else 1 if transposed else 0
        layout = Layout(axis, settings.group_size)
        layout.check(name, weight)
        grid = Grid(bits, symmetric=settings.symmetric[0], narrow=settings.narrow)
        return build_weight_quantizer(settings.scale, grid, layout, weight.detach(), self._weight_observer)

    def _activation_quantizer(self, bits: int) -> ObservedActivation:
        grid = Grid(bits, symmetric=self.settings.symmetric[1], narrow=self.settings.narrow)
        return build_activation_quantizer(self.settings.scale, grid, self._observer)

    def _reads_activations(self, layer: str) -> bool:
        """Whether the layer is called with floating-point features."""
        return not self._lies_in_attention(layer) and not isinstance(self.module.get_submodule(layer), _WEIGHT_ONLY)

    def _lies_in_attention(self, layer: str) -> bool:
        """The output projection of nn.MultiheadAttention is computed with, but never called."""
        around = self.module.get_submodule(layer.rpartition(".")[0]) if layer else None
        return isinstance(around, nn.MultiheadAttention)

    @property
    def unread(self) -> list[str]:
        """Layers whose weights are rounded and whose inputs cannot be."""
        wanted = self.settings.activation_bits is not None
        return [layer for layer in self._layers if wanted and self._lies_in_attention(layer)]

    def _bits(self, side: str, layer: str) -> int | None:
        """The bits of a layer now; the first and the last layer have their own."""
        bits = bits_of(getattr(self.settings, side), _plain(layer), *self._time)
        edge = self.settings.edge_bits
        if (
            bits is None
            or edge is None
            or len(self._layers) < 3
            or isinstance(next(iter(_keys(self.settings, side)), 0), str)
        ):
            return bits
        return max(bits, edge) if layer in (self._layers[0], self._layers[-1]) else bits

    def _check_patterns(self) -> None:
        """Each name in {layer: bits} must be that of a layer."""
        layers = [_plain(layer) for layer in self._layers]
        for side in ("weight_bits", "activation_bits"):
            for key in _keys(self.settings, side):
                if isinstance(key, str) and not any(bits_of({key: 8}, layer, 0.0, 1.0) for layer in layers):
                    raise CompressionError(f"{side}: {key!r} matches no layer. {did_you_mean(key, layers)}")

    def connect(self, dataflow: Dataflow) -> None:
        """Let layers that read the same tensor share a quantizer, and round the operands of residual adds."""
        hooked = bool(self._handles)
        if hooked:
            self._unhook()
        for group in dataflow.readers:
            known = [name for name in group if name in self.inputs]
            for name in known[1:]:
                if self.inputs[name].grid == self.inputs[known[0]].grid:
                    self.inputs[name] = self.inputs[known[0]]
        if self.settings.add_bits is not None:
            for name in dataflow.operands:
                self.outputs.setdefault(name, self._activation_quantizer(self.settings.add_bits))
        self._count_shared()
        if hooked:
            self._hook()

    def _count_shared(self) -> None:
        for quantizer in self.inputs.values():
            quantizer.shared = sum(other is quantizer for other in self.inputs.values())

    @property
    def activations(self) -> dict[str, ObservedActivation]:
        """Each quantizer of activations once, by the place where it stands."""
        places = {f"{name}:input": q for name, q in self.inputs.items()}
        places |= {f"{name}:output": q for name, q in self.outputs.items()}
        first: dict[int, str] = {}
        for name, quantizer in places.items():
            first.setdefault(id(quantizer), name)
        return {name: places[name] for name in first.values()}

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """All of them, by the parameter or place."""
        return {**self.weights, **self.activations}

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """What is learned beside the network."""
        return {
            f"{name}/{part}": parameter
            for name, quantizer in self.quantizers.items()
            for part, parameter in quantizer.parameters.items()
        }

    # -- on and off ---------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Stand between the network and its weights and activations; nothing changes before :meth:`enable`."""
        try:
            for name, quantizer in self.weights.items():
                self._transparent.attach(name, quantizer)
        except CompressionError:
            self._transparent.close()
            raise
        self._hook()

    def detach(self) -> None:
        """Take everything off."""
        self._transparent.close()
        self._unhook()
        if any("_orig_mod" in name for name, _ in self.module.named_modules()):
            torch.compiler.reset()  # compiled code does not look whether hooks are still there

    def _hook(self) -> None:
        modules = dict(self.module.named_modules(remove_duplicate=False))
        for name, quantizer in self.inputs.items():
            self._handles.append(modules[name].register_forward_pre_hook(InputHook(quantizer), with_kwargs=True))
        for name, quantizer in self.outputs.items():
            self._handles.append(modules[name].register_forward_hook(OutputHook(quantizer)))

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def enable(self, enabled: bool = True) -> None:
        """Round from now on (or no more)."""
        for quantizer in self.quantizers.values():
            quantizer.enabled = enabled

    @torch.no_grad()
    def freeze(self, frozen: bool = True) -> None:
        """Scales and zero points stay as they are now (or follow again)."""
        for name, weights in self.weights.items():
            if frozen and not weights.frozen:
                weights.refresh(self.raw(name))
        for quantizer in self.quantizers.values():
            quantizer.frozen = frozen

    def refresh(self) -> None:
        """Let costly observers look at the weights again."""
        for name, quantizer in self.weights.items():
            if quantizer.enabled:
                quantizer.refresh(self.raw(name))

    def set_time(self, time: float, horizon: float) -> list[str]:
        """The bits that are due at ``time`` (epochs); returns what has changed."""
        self._time = time, horizon
        changed = []
        for side, quantizers in (("weight_bits", self.weights), ("activation_bits", self.inputs)):
            for name, quantizer in quantizers.items():
                layer = name.rpartition(".")[0] if side == "weight_bits" else name
                bits, grid = self._bits(side, layer), quantizer.grid
                if bits is not None and bits != grid.bits:
                    assert isinstance(quantizer, Quantizer)
                    quantizer.set_grid(Grid(bits, symmetric=grid.symmetric, narrow=grid.narrow))
                    changed.append(f"{name} {grid.bits} -> {bits}")
        return changed

    @property
    def budget(self) -> BitBudget | None:
        """What is still to be shared out among the layers."""
        return self.settings.weight_bits if isinstance(self.settings.weight_bits, BitBudget) else None

    def share_out(self, bits: Mapping[str, int]) -> None:
        """The bits of each layer, in the place of the budget; in force at the next :meth:`set_time`."""
        self.settings = replace(self.settings, weight_bits={_plain(layer): own for layer, own in bits.items()})

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """After a step of learned scales."""
        quantizers = [quantizer for quantizer in self.quantizers.values() if quantizer.learned]
        torch._foreach_clamp_min_([quantizer.scale for quantizer in quantizers], SMALLEST_SCALE)
        for quantizer in quantizers:
            quantizer.keep_in_range()

    def all_reduce(self) -> None:
        """The same ranges on all processes; every process calls it."""
        for quantizer in self.activations.values():
            if quantizer.enabled and not quantizer.frozen:
                quantizer.all_reduce()

    def raw(self, name: str) -> Tensor:
        """The parameter as it is; masked, where torch.nn.utils.prune is at work."""
        path, _, key = name.rpartition(".")
        with self._transparent.raw():
            value = getattr(self.module.get_submodule(path), key)
        assert isinstance(value, Tensor)
        return value.detach()

    def seen(self) -> AbstractContextManager[None]:
        """Inside, weights are read as in a forward."""
        return self._transparent.seen()

    def seen_weights(self, names: Collection[str]) -> AbstractContextManager[dict[str, Tensor]]:
        """See :meth:`~lightning_compress.quantization.TransparentWeights.values`."""
        return self._transparent.values(names)

    @torch.no_grad()
    def rounded_weights(self) -> dict[str, Tensor]:
        """Every weight on its grid."""
        rounded = {}
        for name, quantizer in self.weights.items():
            weight = self.raw(name)
            rounded[name] = quantizer(weight).clone() if quantizer.enabled else weight.clone()
        return rounded

    @torch.no_grad()
    def finalize_(self) -> None:
        """The module's weights become their values on the grid; the quantizers of weights retire."""
        parameters = dict(self.module.named_parameters())
        for name, value in self.rounded_weights().items():
            self.raw(name).copy_(value)
            if f"{name}_orig" in parameters:  # what torch.nn.utils.prune computes the weight from
                parameters[f"{name}_orig"].copy_(value)
        for name, quantizer in self.weights.items():
            if quantizer.enabled:
                quantizer.refresh(self.raw(name))
                quantizer.enabled = False

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and tensors; enough to quantize a fresh module the same way."""
        places = self.activations
        names = {id(quantizer): name for name, quantizer in places.items()}
        return {
            "weights": {name: quantizer.state_dict() for name, quantizer in self.weights.items()},
            "activations": {name: quantizer.state_dict() for name, quantizer in places.items()},
            "inputs": {name: names[id(quantizer)] for name, quantizer in self.inputs.items()},
            "outputs": list(self.outputs),
            "kind": self.settings.kind,
            "shared_out": self._shared_out(),
            "time": list(self._time),
        }

    def _shared_out(self) -> dict[str, int] | None:
        bits = self.settings.weight_bits
        return dict(bits) if isinstance(bits, Mapping) and all(isinstance(key, str) for key in bits) else None  # type: ignore[arg-type]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, of a network of the same shape.

        Raises:
            CompressionError: the state is of other layers or another way of quantizing.
        """
        kind = state.get("kind", self.settings.kind)
        if kind != self.settings.kind:
            changed = {key: value for key, value in kind.items() if value != self.settings.kind[key]}
            asked = ", ".join(f"{key}={value!r}" for key, value in changed.items())
            raise CompressionError(f"{self.owner}: the checkpoint was written with {asked}. Give the same here.")
        for mine, theirs, what in (
            (set(self.weights), set(state["weights"]), "weights"),
            (set(self.inputs), set(state["inputs"]), "inputs"),
        ):
            if mine != theirs:
                raise CompressionError(
                    f"{self.owner}: the checkpoint has quantized {what} of {sorted(theirs)}, this callback those of "
                    f"{sorted(mine)}. Use the same bits, targets= and exclude= as in the fit that wrote it."
                )
        if self.budget is not None and state.get("shared_out"):
            self.share_out(state["shared_out"])
        hooked = bool(self._handles)
        self._unhook()
        for name, own in state["weights"].items():
            self.weights[name].load_state_dict(own)
        fresh: dict[str, ObservedActivation] = {}
        for place, own in state["activations"].items():
            name, _, side = place.rpartition(":")
            former = self.inputs.get(name) if side == "input" else self.outputs.get(name)
            fresh[place] = former or self._activation_quantizer(own["bits"])
            fresh[place].load_state_dict(own)
        self.inputs = {name: fresh[place] for name, place in state["inputs"].items()}
        self.outputs = {name: fresh[f"{name}:output"] for name in state["outputs"]}
        self._time = (state["time"][0], state["time"][1])
        self._count_shared()
        if hooked:
            self._hook()

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Scales of channels that go, go too; of a replaced module all quantizers."""
        before = self.state_dict(), dict(self.weights), dict(self.inputs), dict(self.outputs)
        hooked = bool(self._handles)
        if isinstance(edit, KeepIndices):
            for name, quantizer in self.weights.items():
                self._carry(name, quantizer, edit)
        else:
            for name, quantizer in self.weights.items():
                if any(name.startswith(touched.removesuffix("*")) for touched in edit.touched):
                    self._start_again(name, quantizer)
            if any(touched.endswith("*") for touched in edit.touched):
                self._rebuild(edit, hooked)

        def back() -> None:
            state, self.weights, self.inputs, self.outputs = before
            if hooked:
                self.detach()
            for name, quantizer in self.weights.items():
                self._swap(name, quantizer, lambda: quantizer.load_state_dict(state["weights"][name]))  # noqa: B023
            self.load_state_dict(state)
            if hooked:
                self.attach()

        return back

    def _rebuild(self, edit: Edit, hooked: bool) -> None:
        gone = tuple(touched.removesuffix("*") for touched in edit.touched)
        enabled = any(quantizer.enabled for quantizer in self.quantizers.values())
        if hooked:
            self.detach()
        self.weights = {n: q for n, q in self.weights.items() if not n.startswith(gone)}
        self.inputs = {n: q for n, q in self.inputs.items() if not f"{n}.".startswith(gone)}
        self.outputs = {n: q for n, q in self.outputs.items() if not f"{n}.".startswith(gone)}
        self._build()
        self._count_shared()
        if hooked:
            self.attach()
        self.enable(enabled)

    def _carry(self, name: str, quantizer: ObservedWeight, edit: KeepIndices) -> None:
        axis = quantizer.layout.axis
        part = next((one for one in edit.slices if one.tensor == name and one.dim == axis), None)
        kept = part.kept if part is not None else torch.zeros(0, dtype=torch.int64)
        weight = self.raw(name)
        self._swap(name, quantizer, lambda: quantizer.keep(kept, weight), kept)

    def _start_again(self, name: str, quantizer: ObservedWeight) -> None:
        if name in dict(self.module.named_parameters()):
            weight = self.raw(name)
            self._swap(name, quantizer, lambda: quantizer.keep(torch.zeros(0, dtype=torch.int64), weight))

    def _swap(
        self, name: str, quantizer: ObservedWeight, change: Callable[[], None], kept: Tensor | None = None
    ) -> None:
        """Change a quantizer, and let the auxiliary optimizer have its new Parameter."""
        before = quantizer.parameters
        change()
        for part, parameter in quantizer.parameters.items():
            if before[part] is not parameter:
                fits = kept is not None and len(kept) == len(parameter)

                def carry(moment: Tensor, fits: bool = fits, like: Tensor = parameter) -> Tensor:
                    return moment[kept.to(moment.device)] if fits and kept is not None else torch.zeros_like(like)

                for tell in self._on_swap:
                    tell(f"{name}/{part}", parameter, carry)

    def on_swap(self, tell: Callable[[str, nn.Parameter, Callable[[Tensor], Tensor]], None] | None) -> None:
        """Whom to tell when a learned Parameter is replaced by one of another shape."""
        self._on_swap = [] if tell is None else [tell]


def _owners(module: nn.Module, chosen: Collection[nn.Parameter]) -> list[str]:
    """The layers that hold one of the parameters, each layer of a tied one."""
    numbers = {id(parameter) for parameter in chosen}
    return [name for name, layer in module.named_modules() if any(id(p) in numbers for p in layer._parameters.values())]


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")


def _keys(settings: Settings, side: str) -> list[Any]:
    bits = getattr(settings, side)
    return list(bits) if isinstance(bits, Mapping) else []
