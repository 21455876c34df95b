"""What the loss says at one moment: its gradient, and products with its Hessian."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states

PROBES = 8
"""Random vectors of Hutchinson's estimate."""


def curvature(
    module: nn.Module,
    losses: Sequence[Callable[[nn.Module], Tensor]],
    names: Collection[str],
    kinds: Collection[str],
    *,
    probes: int = PROBES,
) -> dict[str, dict[str, Tensor]]:
    """Gradient and Hessian products of the mean of ``losses``; the random states are afterwards what they were.

    Args:
        module: a copy that may be run; its buffers change as in training.
        losses: each a scalar of the module.
        names: of the parameters.
        kinds: of :data:`~lightning_compress.pruning.evidence.CURVATURE`.
        probes: number of random sign vectors v in the estimate of the diagonal, the mean of ``v * (H v)``.

    Returns:
        Kind -> parameter -> tensor of its shape, fp32.

    Raises:
        CompressionError: no losses; a loss that cannot be differentiated (twice).

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 3.0)
    >>> found = curvature(layer, [lambda m: m.weight.square().sum()], ["weight"], {"hessian_gradient"})
    >>> found["hessian_gradient"]["weight"].item()
    12.0
    """
    if not losses:
        raise CompressionError("There is no data to work out gradients on.")
    parameters = dict(module.named_parameters())
    weights = [parameters[name] for name in names]
    for weight in weights:
        weight.requires_grad_(True)  # frozen ones too: it is a copy
    second = bool({"hessian_gradient", "hessian_diagonal"} & set(kinds))
    found: dict[str, list[Tensor]] = {
        kind: [torch.zeros_like(w, dtype=torch.float32) for w in weights] for kind in kinds
    }
    with torch.enable_grad(), isolated_random_states():
        for loss_of in losses:
            loss = loss_of(module)
            if not loss.requires_grad:
                raise CompressionError("training_step returned a loss that has no gradient.")
            gradients = _gradients([loss], weights, None, second)
            for kind in kinds:
                _accumulate(found[kind], _product(kind, gradients, weights, probes), 1 / len(losses))
    return {kind: dict(zip(names, values, strict=True)) for kind, values in found.items()}


def _product(kind: str, gradients: list[Tensor], weights: list[nn.Parameter], probes: int) -> list[Tensor]:
    if kind == "loss_gradient":
        return [gradient.detach() for gradient in gradients]
    if kind == "hessian_gradient":
        return _gradients(gradients, weights, [gradient.detach() for gradient in gradients], True)
    total = [torch.zeros_like(weight) for weight in weights]
    for _ in range(probes):
        signs = [torch.randint_like(weight, 2) * 2 - 1 for weight in weights]
        products = _gradients(gradients, weights, signs, True)
        total = [one + sign * product / probes for one, sign, product in zip(total, signs, products, strict=True)]
    return total


def _gradients(
    outputs: list[Tensor], weights: list[nn.Parameter], vectors: list[Tensor] | None, keep: bool
) -> list[Tensor]:
    pairs = [(o, None if vectors is None else vectors[k]) for k, o in enumerate(outputs) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(weight) for weight in weights]
    given = None if vectors is None else [vector for _, vector in pairs]
    try:
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            weights,
            given,
            create_graph=keep and vectors is None,
            retain_graph=keep,
            allow_unused=True,
        )
    except RuntimeError as error:
        raise CompressionError(
            f"The loss cannot be differentiated as the criterion needs it ({error}). Use criterion='fisher'."
        ) from error
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def _accumulate(into: list[Tensor], values: list[Tensor], factor: float) -> None:
    for one, value in zip(into, values, strict=True):
        one.add_(value.detach().float(), alpha=factor)
