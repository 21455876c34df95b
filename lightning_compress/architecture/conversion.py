"""Layers replaced one after the other on a copy, each fitted to what the original computes behind those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table
from torch import Tensor, nn

from lightning_compress.architecture.factorization import PACKAGE, Choice, Factorization
from lightning_compress.architecture.geometry import Geometry, parameters_in
from lightning_compress.architecture.least_squares import Problem
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record, ReplaceModule
from lightning_compress.plan.specs import build_module
from lightning_compress.registry import resolve
from lightning_compress.surgery.batch_norm import recalibrate_if_better_
from lightning_compress.surgery.compensation import write_
from lightning_compress.surgery.input_statistics import layer_weight
from lightning_compress.surgery.paired_moments import PairedMoments, paired_moments
from lightning_compress.surgery.tracing import TracingInput, float32, private_copy
from lightning_compress.surgery.verification import evaluate

RIDGE = 1e-3
"""Of the mean variance of a layer's inputs: pulls a fit towards the weights where the data say little."""
ROUNDS = 20


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer.

    Attributes:
        name: of the layer.
        choice: method and ranks.
        parameters: before and after.
        loss: share of the variance of its outputs that is lost on the calibration data (without data: of the squares
            of its weight).
    """

    name: str
    choice: Choice
    parameters: tuple[int, int]
    loss: float

    @property
    def ratio(self) -> float:
        """Parameters after to before."""
        return self.parameters[1] / self.parameters[0]


@dataclass(frozen=True)
class Conversion:
    """Edits that make a network smaller, the new weights, and what they come to. Prints as a table.

    Attributes:
        edits: for the Plan.
        values: name -> values of new parameters, and of buffers that were estimated anew.
        layers: what became of each layer.
        skipped: layers left alone, with the reason.
        error: squared error of the network's outputs, relative to their variance, on the calibration data; None
            without any.
        recalibrated: whether BatchNorm statistics were estimated anew; only where that lowered the error.
    """

    edits: tuple[ReplaceModule, ...]
    values: Mapping[str, Tensor]
    layers: tuple[LayerChange, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    recalibrated: bool = False

    def __rich__(self) -> Table:
        """Layer, method, parameters, their ratio, loss."""
        error = "" if self.error is None else f"error of the outputs {self.error:.2%}"
        table = Table("layer", "becomes", "parameters", "ratio", "loss", title=error)
        for layer in self.layers:
            before, after = layer.parameters
            row = [layer.name, str(layer.choice), f"{before:,} -> {after:,}", f"{layer.ratio:.4f}", f"{layer.loss:.2%}"]
            table.add_row(*row)
        for name, reason in self.skipped.items():
            table.add_row(name, f"left alone: {reason}")
        return table


def convert(
    network: nn.Module,
    choices: Mapping[str, Choice],
    calls: Sequence[TracingInput] = (),
    *,
    data_aware: bool = True,
    times: Mapping[str, int] | None = None,
    rounds: int = ROUNDS,
    recalibrate: bool | str = "auto",
) -> Conversion:
    """Work out the replacement of layers on copies; ``network`` stays as it is, :func:`apply_` makes it.

    With ``calls`` the fits are of the data: the goal of each layer is what it computes in the original network, its
    inputs are those in the network as replaced so far. Without them they are of the weights alone.

    Args:
        network: any module.
        choices: layer -> what it becomes, in the order in which the layers run.
        calls: run the network on calibration data.
        data_aware: False fits weights to weights all the same; the data are for the BatchNorms alone.
        times: how often each layer runs in a call; once if it is not said.
        rounds: of alternating least squares, where a factorisation has no closed form.
        recalibrate: whether the statistics of BatchNorms are estimated anew; "auto" if it lowers the error.
    """
    original, changed = private_copy(network).float(), private_copy(network).float()
    calls = [call.map(float32) for call in calls]
    edits, layers = [], []
    values: dict[str, Tensor] = {}
    for name, choice in choices.items():
        layer = original.get_submodule(name)
        often = (times or {}).get(name, 1)
        moments = paired_moments(original, changed, name, calls, often) if calls and data_aware else None
        edit, tensors, loss = replacement(name, layer, choice, moments, rounds=rounds)
        edit.apply(changed)
        write_(changed, tensors)
        edits.append(edit)
        values |= tensors
        before = sum(parameter.numel() for parameter in layer.parameters())
        layers.append(LayerChange(name, choice, (before, parameters_in(edit.spec)), loss))
    if not calls:
        return Conversion(tuple(edits), values, tuple(layers))
    better, error = _recalibrated(original, changed, calls, recalibrate)
    if better:
        buffers = {name: one for name, one in changed.named_buffers() if one.is_floating_point()}
        values |= {name: one for name, one in buffers.items() if name.rpartition(".")[2].startswith("running_")}
    return Conversion(tuple(edits), values, tuple(layers), {}, error, better)


@torch.no_grad()
def apply_(module: nn.Module, conversion: Conversion, apply: Callable[[ReplaceModule], None] | None = None) -> None:
    """Make a conversion: the edits, through the module's Plan, then the values.

    Args:
        module: the network that it was worked out on.
        conversion: from :func:`convert`.
        apply: makes one edit; by default :meth:`Record.apply`.
    """
    apply = apply or Record.of(module).apply
    for edit in conversion.edits:
        trained = {name: one.requires_grad for name, one in module.get_submodule(edit.module).named_parameters()}
        apply(edit)
        for name, one in module.get_submodule(edit.module).named_parameters():
            kind = name.rpartition(".")[2]  # factors are as frozen as the weight was, and the last bias as the bias
            one.requires_grad_(trained.get(kind, trained["weight"]))
    write_(module, conversion.values)


def output_error(expected: Sequence[Sequence[Tensor]], changed: nn.Module, calls: Sequence[TracingInput]) -> float:
    """Squared differences of all outputs from the ``expected`` ones of each call, relative to their variance (to their
    squares where all samples give the same).
    """
    lost = varied = squares = 0.0
    for outputs, call in zip(expected, calls, strict=True):
        for one, two in zip(outputs, evaluate(changed, call), strict=True):
            if one.is_floating_point():
                wide = one.double()
                lost += float((wide - two.double()).square().sum())
                varied += float((wide - wide.mean(0, keepdim=True)).square().sum())
                squares += float(wide.square().sum())
    return lost / max(varied if varied > 1e-12 * squares else squares, 1e-300)


def replacement(
    name: str, layer: nn.Module, choice: Choice, moments: PairedMoments | None, *, rounds: int = ROUNDS
) -> tuple[ReplaceModule, dict[str, Tensor], float]:
    """The edit that replaces one layer, the values of its parameters, and the share that is lost.

    Args:
        name: of the layer.
        layer: itself, with the weights that are the goal.
        choice: what it becomes.
        moments: of its goal outputs with its inputs; None fits the weight alone.
        rounds: of alternating least squares.
    """
    method: Factorization = resolve(choice.method, PACKAGE)  # type: ignore[assignment]
    geometry = Geometry.of(layer)
    problems = problems_of(layer, moments)
    factors = [method.fit(problem, choice.ranks, rounds) for problem in problems]
    products = [method.product(parts, choice.ranks).flatten(1) for parts in factors]
    bias = _bias(layer, products, moments)
    spec = method.spec(geometry, choice.ranks, bias=bias is not None)
    weights = method.weights(factors)
    owners = [
        place for place, part in build_module(spec, device="meta").named_modules() if "weight" in part._parameters
    ]
    values = {f"{name}.{place}.weight": weight.float() for place, weight in zip(owners, weights, strict=True)}
    if bias is not None:
        values[f"{name}.{owners[-1]}.bias"] = bias.float()
    energy = sum(problem.energy for problem in problems)
    lost = sum(problem.loss(one) * problem.energy for problem, one in zip(problems, products, strict=True))
    label = f"{name} becomes {choice}"
    return ReplaceModule(name, spec, label), values, lost / max(energy, 1e-300)


def problems_of(layer: nn.Module, moments: PairedMoments | None) -> list[Problem]:
    """The least squares of each group of a layer: towards outputs where there are moments, else towards the weight.

    Raises:
        CompressionError: what the layer reads or computes is not finite.
    """
    groups = list(Geometry.of(layer).by_group(layer_weight(layer)))
    if moments is None:
        return [Problem.of_weight(weight) for weight in groups]
    problems = []
    covariances = moments.covariances()
    if not all(bool(one.isfinite().all()) for one in covariances):
        raise CompressionError(f"On the calibration data {layer} reads or computes values that are not finite.")
    for weight, gram, cross, energy in zip(groups, *covariances, strict=True):
        plain = Problem.of_weight(weight)
        ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        wide = plain.cross
        strength = float(energy + ridge * plain.energy)
        problems.append(Problem(plain.weight, gram + ridge * eye, cross + ridge * wide, strength, plain.kernel))
    return problems


def _bias(layer: nn.Module, products: Sequence[Tensor], moments: PairedMoments | None) -> Tensor | None:
    """What is left of the mean: its outputs' less what the new weight makes of its inputs'."""
    if moments is None:
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return None if bias is None else bias.detach().clone()
    x, y = moments.means()
    return torch.cat([mean - product @ inner for mean, product, inner in zip(y, products, x, strict=True)])


def _recalibrated(
    original: nn.Module, changed: nn.Module, calls: Sequence[TracingInput], recalibrate: bool | str
) -> tuple[bool, float]:
    """Whether the BatchNorms of ``changed`` have been estimated anew, and its error."""
    expected = [evaluate(original, call) for call in calls]

    def loss(network: nn.Module) -> float:
        return output_error(expected, network, calls)

    if recalibrate is False:
        return False, loss(changed)
    kept, before, after = recalibrate_if_better_(
        changed, calls, lambda root, call: call.run(root), loss=loss, always=recalibrate is True
    )
    return kept, after if kept else before
