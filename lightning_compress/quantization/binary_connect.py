"""Weights of one bit in every forward, real-valued ones behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.binary import Binarizer, binarize_activations, check_mode
from lightning_compress.quantization.shadow_weights import Edges, ShadowCallback


class BinaryConnect(ShadowCallback):
    """Trains a network whose weights are seen as two values, each layer its own; updates go to real-valued weights.

    In every forward a weight is its sign times the layer's scale; the gradient passes straight through to the
    real-valued weight, which is clipped to the bounds after each step, since beyond them it would only be harder to
    turn. Validation sees the deterministic signs. Courbariaux, Bengio and David, "BinaryConnect", NIPS 2015.

    The module is not edited: the keys of its ``state_dict``, its Parameters and its optimizer stay the user's own.
    Parameters hold real-valued shadow weights, and so do checkpoints, which load into the plain module with
    ``strict=True``; a ``test`` with this callback sees them binary again. When the fit is over, the module's weights
    become their binary values (``finalize``). Exact zeros that pruning left stay zeros.

    Args:
        mode: "deterministic" takes signs; "stochastic" draws them in training, with the hard sigmoid's chance.
        scale: "glorot": weights of -H and H within [-H, H], H from the layer's size, as the authors do; None: -1 and 1,
            which asks for BatchNorm behind each layer; "bwn": the mean absolute weight of each output neuron (the
            Binary-Weight-Network of XNOR-Net).
        activations: what binary layers read: None leaves it, "sign" takes its sign, "xnor" its sign times the mean
            absolute value of each sample. Layers must then read values of both signs: put BatchNorm, not ReLU, before
            them.
        edges: "quantize" treats the first and the last layer like the others, "keep" leaves them real-valued; None:
            "keep" with binary activations, else "quantize".
        targets: patterns for names of layers; None: Linear, convolution, attention and recurrent layers.
        exclude: patterns of what to leave alone.
        finalize: put the binary values into the weights at the end of the fit.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; a weight that another callback quantizes,
            before the first step; an input that is never negative, where signs of activations are taken.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[BinaryConnect()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        mode: Literal["deterministic", "stochastic"] = "deterministic",
        *,
        scale: Literal["glorot", "bwn"] | None = "glorot",
        activations: Literal["sign", "xnor"] | None = None,
        edges: Edges | None = None,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        finalize: bool = True,
        name: str | None = None,
    ) -> None:
        if activations not in (None, "sign", "xnor"):
            raise CompressionError(f"activations={activations!r} is unknown: sign, xnor, or None.")
        check_mode(mode, scale)
        if edges is None:
            edges = "keep" if activations else "quantize"
        super().__init__(edges=edges, targets=targets, exclude=exclude, finalize=finalize, name=name)
        self._mode, self._scale, self._activations = mode, scale, activations
        self._inputs: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        return {**super().__getstate__(), "_inputs": []}

    def transform_of(self, name: str, weight: nn.Parameter) -> Binarizer:
        """Signs and scale."""
        return Binarizer(weight.shape, self._scale, stochastic=self._mode == "stochastic")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach; with binary activations, to what the layers read too."""
        super().setup(trainer, pl_module, stage)
        if self._activations is not None and not self._inputs:
            layers = {name.rpartition(".")[0]: None for name in self.names}
            for path in layers:
                layer = pl_module.get_submodule(path)
                if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                    raise CompressionError(
                        f"{path!r} is a {type(layer).__name__}: activations={self._activations!r} covers Linear and "
                        f"convolution layers. Leave it out: exclude=({path!r},)."
                    )
                hook = partial(_binary_input, path=path, scaled=self._activations == "xnor")
                self._inputs.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def release(self) -> None:
        """Take everything off."""
        for handle in self._inputs:
            handle.remove()
        self._inputs = []
        super().release()

    @torch.no_grad()
    def after_step(self, module: L.LightningModule) -> None:
        """Clip the real-valued weights to their bounds."""
        named = dict(module.named_parameters())
        for name, transform in self._transforms.items():
            if name in named:
                transform.clip_(named[name])


def _binary_input(
    layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], *, path: str, scaled: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first: Tensor = inputs[0] if inputs else named["input"]
    if torch.is_grad_enabled() and not bool((first < 0).any()):
        raise CompressionError(
            f"{path!r} reads no negative value, so the sign of what it reads says nothing. Put BatchNorm before it "
            f"instead of ReLU, or leave it out: exclude=({path!r},)."
        )
    seen = binarize_activations(first, scaled=scaled)
    return ((seen, *inputs[1:]), named) if inputs else ((), {**named, "input": seen})
