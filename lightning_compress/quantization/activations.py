"""Quantizers of activations, and the hooks that put them where layers read and modules return."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_compress.quantization.grid import SMALLEST_SCALE, Grid, fake_quantize, learned_fake_quantize
from lightning_compress.quantization.observation import MOMENTUM, Observation, Observer, observed_range, wants_histogram
from lightning_compress.quantization.observers.moving_average import moving_average
from lightning_compress.quantization.observers.mse import mse
from lightning_compress.quantization.quantizer import Quantizer, mean_over_processes

_READ = {nn.MultiheadAttention: ("query", "key", "value"), nn.Bilinear: ("input1", "input2")}
_SEVERAL = tuple(_READ)
_ON = torch.ones(1, dtype=torch.long)


class ObservedActivation(Quantizer):
    """The range is that of what passes in training; it stays as it is in evaluation and when frozen.

    >>> quantizer = ObservedActivation(Grid(2, symmetric=False))
    >>> quantizer.enabled = True
    >>> quantizer(torch.tensor([0.0, 1.0, 3.0]), training=True)
    tensor([0., 1., 3.])
    >>> quantizer(torch.tensor([0.4, 7.0]), training=False)
    tensor([0., 3.])
    """

    def __init__(self, grid: Grid, observer: Observer = moving_average) -> None:
        super().__init__(grid)
        self.observer = observer
        self.averages = observer is moving_average
        self.low, self.high = torch.tensor(float("inf")), torch.tensor(float("-inf"))
        self.seen = Observation(histogram=wants_histogram(observer))
        self.shared = 0
        self.watching = False
        self._memo: Any = None

    def __call__(self, value: Tensor, training: bool) -> Tensor:
        """The tensor, rounded."""
        if not self.enabled or not value.is_floating_point() or value.numel() == 0:
            return value
        if self.scale.device != value.device:
            self.to(value.device)
        if self.watching:  # calibration: look, but do not touch
            self.observe(value)
            return value
        if training and not self.frozen:
            return self._observing(value)
        return fake_quantize(value, self.scale, self.zero_point, self.grid) if self.ready else value

    def _observing(self, value: Tensor) -> Tensor:
        grid = self.grid
        fused = self.averages and not grid.symmetric and value.dtype is torch.float32 and value.device.type != "cpu"
        if fused and not torch.compiler.is_compiling():
            self.ready = True
            on = _ON.to(value.device)
            return torch.fused_moving_avg_obs_fake_quant(
                value, on, on, self.low, self.high, self.scale, self.zero_point, MOMENTUM, grid.low, grid.high, -1
            )
        self.observe(value)
        return fake_quantize(value, self.scale, self.zero_point, grid)

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        """Count what has passed and set the scale."""
        value = value.detach().float()
        if self.averages:
            low, high = torch.aminmax(value)
            self.low.copy_(torch.where(torch.isinf(self.low), low, self.low + MOMENTUM * (low - self.low)))
            self.high.copy_(torch.where(torch.isinf(self.high), high, self.high + MOMENTUM * (high - self.high)))
            self._set_scale()
        else:
            self.seen.add(value.reshape(1, -1))
            count = self.seen.count
            if not wants_histogram(self.observer) or count & (count - 1) == 0 or count % 64 == 0:
                self.settle()
        self.ready = True

    def settle(self) -> None:
        """Let the observer say the range, of what it has seen so far; NaN where that was not finite."""
        if not self.averages and self.seen.count:
            low = high = self.low * float("nan")
            if self.seen.is_finite:
                low, high = self.observer(self.seen, self.grid)
            self.low, self.high = low.reshape(()).clone(), high.reshape(()).clone()
        if not bool(torch.isinf(self.low)):
            self._set_scale()

    def _set_scale(self) -> None:
        scale, zero_point = self.grid.parameters(self.low, self.high)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def all_reduce(self) -> None:
        """The same range on all processes; every process calls it."""
        if self.averages:
            for end, limit in (("low", float("inf")), ("high", float("-inf"))):
                own = getattr(self, end)
                known = torch.isfinite(own).float()
                total, share = mean_over_processes(torch.where(known > 0, own, 0.0), known)
                setattr(self, end, torch.where(share > 0, total / share.clamp(min=1e-9), torch.full_like(own, limit)))
            self.ready = bool(torch.isfinite(self.low))
        else:
            self.seen.all_reduce()
        self.settle()

    def set_grid(self, grid: Grid) -> None:
        """The same range with other bits."""
        super().set_grid(grid)
        self.settle()

    def to(self, device: torch.device) -> None:
        """Move to ``device``."""
        super().to(device)
        self.low, self.high = self.low.to(device), self.high.to(device)
        self.seen.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        seen = {} if self.averages else {"seen": self.seen.state_dict()}
        return {**super().state_dict(), "low": self.low.clone(), "high": self.high.clone(), **seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.low, self.high = state["low"].clone().to(self.low.device), state["high"].clone().to(self.low.device)
        if "seen" in state:
            self.seen.load_state_dict(state["seen"])

    def shared_result(self, value: Tensor, training: bool) -> Tensor:
        """For layers that read the same tensor: rounded once, where it can be told that nobody has changed it since."""
        if torch.compiler.is_compiling() or value.is_inference():
            return self(value, training)
        key = (value._version, torch.is_grad_enabled(), training)
        if self._memo is None or self._memo[0] is not value or self._memo[1] != key:
            self._memo = (value, key, self(value, training), [1])
            return self._memo[2]  # type: ignore[no-any-return]
        rounded: Tensor = self._memo[2]
        self._memo[3][0] += 1
        if self._memo[3][0] >= self.shared:
            self._memo = None
        return rounded

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_memo": None}


class FixedActivation(ObservedActivation):
    """DoReFa clips activations at a fixed bound: here, what was observed first (the paper's nets are bounded by 1).

    The bound is that of the first batch in training.
    """

    def _observing(self, value: Tensor) -> Tensor:
        if not self.ready:
            (largest,) = mean_over_processes(value.detach().abs().amax())
            if not bool(largest > 0):
                return value
            self.observe(value)
            super().all_reduce()
        return fake_quantize(value, self.scale, self.zero_point, self.grid)

    def all_reduce(self) -> None:
        """Done with the first batch."""


class LearnedActivation(ObservedActivation):
    """LSQ's learned scale, with a fixed zero point: 0 where nothing negative was seen first, else the middle.

    It begins with the first batch in training that is not all zeros, and again when the bits change.

    LSQ+ learns the zero point too, and begins at the range with the smallest squared error on the first batch.
    """

    learned: tuple[str, ...] = ("scale",)  # type: ignore[misc]
    kept = ("scale", "zero_point", "zero")

    def __init__(self, grid: Grid, *, plus: bool = False) -> None:
        super().__init__(grid)
        self.plus = plus
        self.scale = nn.Parameter(self.scale)
        self.zero = nn.Parameter(torch.zeros(1), requires_grad=plus)
        if plus:
            self.learned = ("scale", "zero")

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is learned."""
        return {name: getattr(self, name) for name in self.learned}

    def __call__(self, value: Tensor, training: bool) -> Tensor:
        """The tensor, rounded."""
        if not self.enabled or not value.is_floating_point() or value.numel() == 0:
            return value
        if not self.ready and training:
            self._begin(value)
        if not self.ready:
            return value
        if self.scale.device != value.device:
            self.to(value.device)
        if self.frozen:
            zero_point = self.zero.detach().round().to(torch.int32)
            return fake_quantize(value, self.scale.detach(), zero_point, self.grid)
        count = value.numel() / max(1, value.shape[0] if value.dim() > 1 else 1)
        return learned_fake_quantize(value, self.scale, self.zero, self.grid, None, (count * self.grid.high) ** -0.5)

    @torch.no_grad()
    def _begin(self, value: Tensor) -> None:
        value = value.detach().float()
        low, high = torch.aminmax(value)
        largest = torch.maximum(high, -low)
        size, largest, negative = mean_over_processes(value.abs().mean(), largest, (low < 0).float())
        if not bool(largest > 0):
            return
        if self.plus:
            low, high = (end.view(()) for end in observed_range(mse, value.reshape(1, -1), self.grid))
            low, high = mean_over_processes(low, high)
            scale, zero_point = self.grid.parameters(low, high)
        else:
            signed = bool(negative > 0)
            levels = self.grid.high // 2 if signed and not self.grid.symmetric else self.grid.high
            scale = torch.minimum(2 * size / levels**0.5, largest / levels).clamp(min=SMALLEST_SCALE)
            zero_point = torch.tensor(float(2 ** (self.grid.bits - 1) if signed and not self.grid.symmetric else 0))
        self.scale.data = scale.view(1).to(value.device)
        self.zero.data = zero_point.float().view(1).to(value.device)
        self.zero_point = self.zero.detach().round().to(torch.int32)
        self.ready = True

    def keep_in_range(self) -> None:
        """The zero point on the grid."""
        with torch.no_grad():
            if self.plus:
                self.zero.clamp_(self.grid.low, self.grid.high)
                self.zero_point = self.zero.detach().round().to(torch.int32)

    def all_reduce(self) -> None:
        """Nothing: gradients are averaged."""

    def settle(self) -> None:
        """Nothing: the scale is learned."""

    def set_grid(self, grid: Grid) -> None:
        """The next batch in training finds a scale to begin with."""
        self.ready = self.ready and grid == self.grid
        self.grid = grid

    def state_dict(self) -> dict[str, Any]:
        """The zero point is what is learned, rounded."""
        with torch.no_grad():
            self.zero_point = self.zero.detach().round().to(torch.int32)
        return super().state_dict()


class ClippedActivation(LearnedActivation):
    """PACT: the bound ``alpha`` is learned from what is clipped (Choi et al., 2018); signed inputs at both ends."""

    def __call__(self, value: Tensor, training: bool) -> Tensor:
        """The tensor, rounded; here ``scale`` holds alpha divided by the number of levels."""
        if not self.enabled or not value.is_floating_point() or value.numel() == 0:
            return value
        if not self.ready and training:
            self._begin(value)
        if not self.ready:
            return value
        if self.scale.device != value.device:
            self.to(value.device)
        grid, zero_point = self.grid, self.zero.detach().to(torch.int32)
        highest = grid.high - self.zero.detach()
        if not self.frozen:
            value = torch.minimum(value, (self.scale * highest).to(value.dtype))
            value = torch.maximum(value, (self.scale * (grid.low - self.zero.detach())).to(value.dtype))
        return fake_quantize(value, self.scale.detach(), zero_point, grid)

    @torch.no_grad()
    def _begin(self, value: Tensor) -> None:
        low, high = torch.aminmax(value.detach().float())
        low, high = mean_over_processes(low, high)
        signed = bool(low < 0) and not self.grid.symmetric
        zero = 2.0 ** (self.grid.bits - 1) if signed else 0.0
        bound = torch.maximum(high, -low)
        if not bool(bound > 0):
            return
        self.scale.data = (bound / (self.grid.high - zero)).clamp(min=SMALLEST_SCALE).view(1)
        self.zero.data = torch.full((1,), zero, dtype=torch.float32, device=value.device)
        self.zero_point = self.zero.detach().to(torch.int32)
        self.ready = True

    def set_grid(self, grid: Grid) -> None:
        """The same bound with other bits."""
        if self.ready and grid != self.grid:
            with torch.no_grad():
                former = self.grid.high - self.zero
                self.zero.copy_(torch.where(self.zero > 0, 2.0 ** (grid.bits - 1), 0.0))
                self.scale *= former / (grid.high - self.zero)
                self.zero_point = self.zero.detach().to(torch.int32)
        self.grid = grid


def build_activation_quantizer(scale: str, grid: Grid, observer: Observer) -> ObservedActivation:
    """The quantizer that ``scale`` names."""
    if scale in ("lsq", "lsq+"):
        return LearnedActivation(grid, plus=scale == "lsq+")
    if scale == "pact":
        return ClippedActivation(grid)
    if scale == "dorefa":
        return FixedActivation(grid, observer)
    return ObservedActivation(grid, observer)


class InputHook:
    """A forward pre-hook: what the layer reads is rounded, whether it comes by place or by name."""

    def __init__(self, quantizer: ObservedActivation | None) -> None:
        self.quantizer = quantizer

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return type(self), (None,)

    def __deepcopy__(self, memo: dict[int, Any]) -> InputHook:
        return type(self)(copy.deepcopy(self.quantizer, memo))

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Round the first tensor; of attention query, key and value, of a bilinear layer both."""
        quantizer = self.quantizer
        if quantizer is None or not quantizer.enabled:
            return args, kwargs
        rounded = quantizer.shared_result if quantizer.shared > 1 else quantizer
        if not args or not isinstance(args[0], Tensor) or isinstance(module, _SEVERAL):
            return self._several(quantizer, module, args, kwargs)
        first: Tensor = rounded(args[0], module.training)
        return (first, *args[1:]), kwargs

    @staticmethod
    def _several(
        quantizer: ObservedActivation, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Several inputs, or inputs by name; the same tensor stays the same tensor."""
        names = next((names for kind, names in _READ.items() if isinstance(module, kind)), ("input",))
        done: dict[int, Tensor] = {}

        def once(value: Any) -> Any:
            if isinstance(value, PackedSequence):
                return PackedSequence(once(value.data), *value[1:])
            if not isinstance(value, Tensor):
                return value
            if id(value) not in done:
                done[id(value)] = quantizer(value, module.training)
            return done[id(value)]

        args = (*(once(value) for value in args[: len(names)]), *args[len(names) :])
        return args, {name: once(value) if name in names else value for name, value in kwargs.items()}


class OutputHook(InputHook):
    """A forward hook: what the module returns is rounded."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Round the tensor."""
        if self.quantizer is None or not isinstance(output, Tensor):
            return output
        return self.quantizer(output, module.training)
