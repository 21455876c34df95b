"""What two networks answer on the same samples: agreement, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.report.drawing import BLUE, FAINT, INK, RED, new_figure
from lightning_compress.report.report import Answers
from lightning_compress.surgery import evaluation_mode
from lightning_compress.surgery.tracing import call_with_batch, tensors_in

MOST_CLASSES = 50
MOST_NUMBERS = 16


@torch.no_grad()
def predict(module: nn.Module, batches: Iterable[Any], samples: int) -> tuple[Tensor, Tensor]:
    """Answers and true classes, both (N,), of the first ``samples`` of ``batches``; the network is left as it is.

    Args:
        module: a classifier: inputs to scores (N, C).
        batches: of inputs and classes (N,).
        samples: most of them to look at.

    Raises:
        CompressionError: the batches have no classes, the outputs are no scores, or the forward fails.

    >>> predict(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 1]))], 2)
    (tensor([0, 1]), tensor([0, 1]))
    """
    answers: list[Tensor] = []
    classes: list[Tensor] = []
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with isolated_random_states(), evaluation_mode(module):
        for batch in batches:
            if not isinstance(batch, list | tuple) or len(batch) < 2 or not _are_classes(batch[1]):
                raise CompressionError("the validation data are no pairs of inputs and classes")
            scores = _scores(module, batch[0].to(device) if isinstance(batch[0], Tensor) else batch[0])
            if scores is None or scores.dim() != 2 or len(scores) != len(batch[1]):
                raise CompressionError("the network's outputs are no scores (N, classes)")
            answers.append(scores.argmax(1).cpu())
            classes.append(batch[1].cpu())
            if sum(map(len, classes)) >= samples:
                break
    if not answers:
        raise CompressionError("there are no validation data")
    return torch.cat(answers)[:samples], torch.cat(classes)[:samples].long()


def _are_classes(labels: object) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()


def _scores(module: nn.Module, inputs: Any) -> Tensor | None:
    try:
        return next(tensors_in(call_with_batch(module, inputs)), None)
    except Exception as error:  # whatever a user's forward may raise: the report then says less
        raise CompressionError(f"calling the module with a batch's inputs fails: {error}") from error


def compare_answers(before: Tensor, after: Tensor, classes: Tensor) -> Answers:
    """The comparison of two networks' answers (N,) on samples of these true classes (N,).

    >>> found = compare_answers(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    >>> found.agreement, found.lost, found.gained, found.after
    (0.5, 1, 0, ((1, 0), (1, 0)))
    """
    right, still = before == classes, after == classes
    count = int(torch.stack([before, after, classes]).max()) + 1
    small = count <= MOST_CLASSES and int(classes.min()) >= 0
    return Answers(
        samples=len(classes),
        agreement=float((before == after).float().mean()),
        lost=int((right & ~still).sum()),
        gained=int((~right & still).sum()),
        before=_confusion(before, classes, count) if small else (),
        after=_confusion(after, classes, count) if small else (),
    )


def _confusion(answers: Tensor, classes: Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    counts = torch.bincount(classes * count + answers, minlength=count * count).view(count, count)
    return tuple(tuple(row) for row in counts.tolist())


def draw_confusion(answers: Answers) -> Figure:
    """Confusion of the last network, and how it differs from that of the first: blue more, red less often.

    Raises:
        CompressionError: there are no matrices.
    """
    if not answers.after:
        raise CompressionError("The report has no confusion matrices: there are too many classes.")
    after = torch.tensor(answers.after)
    change = after - torch.tensor(answers.before)
    with new_figure(4.1) as figure:
        left, right = figure.subplots(1, 2)
        _matrix(left, after.tolist(), "after", signed=False)
        _matrix(right, change.tolist(), "change against before", signed=True)
        left.set_ylabel("true class")
    return figure


def _matrix(axes: Any, rows: Sequence[Sequence[int]], title: str, *, signed: bool) -> None:
    """Cells tinted by their number, so that light and dark paper both show through."""
    count = len(rows)
    off = [abs(rows[i][j]) for i in range(count) for j in range(count) if signed or i != j]
    largest = max([*off, 1])
    for i in range(count):
        for j in range(count):
            value = rows[i][j]
            if not value:
                continue
            strength = min(abs(value) / largest, 1.0) if signed or i != j else 0.12
            color = (BLUE if value > 0 else RED) if signed else (RED if i != j else FAINT)
            axes.add_patch(_square(j, i, color, 0.15 + 0.7 * strength))
            if count <= MOST_NUMBERS:
                text = f"{value:+d}" if signed else str(value)
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=INK)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    ticks = range(0, count, 1 if count <= MOST_NUMBERS else 5)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_linewidth(0.5)
    axes.set_xlabel("answer")
    axes.set_title(title, loc="left")


def _square(column: int, row: int, color: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=color, alpha=alpha, linewidth=0)
