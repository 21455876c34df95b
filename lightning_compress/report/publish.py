"""What a finished run hands to W&B: tables, figures, pictures of masks, and the model as an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from torch import nn

from lightning_compress.report.drawing import to_png
from lightning_compress.report.history import read_history
from lightning_compress.report.layer_figures import file_bytes, pair_layers
from lightning_compress.report.report import Report
from lightning_compress.report.weight_figures import draw_masks

LAYER_COLUMNS = (
    "layer", "shape before", "shape after", "weights before", "kept", "zeros, %", "MACs before", "MACs after",
    "bits of a kept weight", "bytes before", "bytes after",
)  # fmt: skip
CUT_COLUMNS = ("epoch", "what", "callback", "before", "target", "reached", "why")
SEED_COLUMNS = ("seed", "command", "metric", "before", "after", "parameters not zero", "MACs", "file bytes")


@dataclass(frozen=True)
class ModelFiles:
    """One version of the model artifact.

    Attributes:
        paths: its files.
        aliases: "best", "latest" or both.
        metadata: figures of this version.
    """

    paths: Sequence[Path]
    aliases: Sequence[str]
    metadata: Mapping[str, Any]


def send_report(
    logger: WandbLogger,
    report: Report,
    figures: Mapping[str, Figure],
    *,
    module: nn.Module | None = None,
    models: Sequence[ModelFiles] = (),
    others: Sequence[Report] = (),
) -> None:
    """Add the report to the logger's W&B run: what was done to ``config``, figures of both networks to the summary.

    Tables are ``report/layers``, ``report/cuts`` and ``report/seeds``; figures are ``report/NAME``, masks
    ``masks/PARAMETER``; the artifact is of type ``model``.

    Args:
        logger: whose run is running.
        report: of the run.
        figures: by name.
        module: the network that is left, for pictures of its masks.
        models: versions of the artifact, oldest first.
        others: reports of the runs that differ in their seed alone, this one among them.
    """
    run = logger.experiment
    run.config.update({"plan": list(report.plan), "environment": dict(report.environment)}, allow_val_change=True)
    logger.log_table("report/layers", columns=list(LAYER_COLUMNS), data=layer_rows(report))
    logger.log_table("report/cuts", columns=list(CUT_COLUMNS), data=cut_rows(report))
    logger.log_table("report/seeds", columns=list(SEED_COLUMNS), data=[seed_row(one) for one in others or (report,)])
    run.summary.update(summary_figures(report))
    masks = {} if module is None else draw_masks(module)
    for name, figure in {
        **{f"report/{name}": figure for name, figure in figures.items()},
        **{f"masks/{name}": figure for name, figure in masks.items()},
    }.items():
        logger.log_image(name, [_picture(figure)])
    for model in models:
        _send_model(logger, report, model)


def summary_figures(report: Report) -> dict[str, float]:
    """What stands beside the run's name: costs and metrics ``before/`` and ``after/``, totals under ``compress/``."""
    figures: dict[str, float] = {}
    for prefix, network in (("before", report.before), ("after", report.after)):
        figures |= {f"{prefix}/{name}": value for name, value in {**network.cost, **network.metrics}.items()}
    figures["compress/network_sparsity"] = report.after.sparsity
    if report.file is not None:
        figures |= {"compress/file_bytes": report.file.bytes, "compress/file_ratio": report.file.ratio}
    if report.answers is not None:
        figures["compress/same_answers"] = report.answers.agreement
    return figures


def layer_rows(report: Report) -> list[list[Any]]:
    """Rows under :data:`LAYER_COLUMNS`."""
    coded = file_bytes(report)
    rows = []
    for old, new in pair_layers(report.before.layers, report.after.layers):
        name = (old or new).name  # type: ignore[union-attr]
        before = (_shape(old), old.weights, old.macs, old.bytes) if old is not None else ("", 0, None, 0)
        after = (_shape(new), new.kept, new.macs, coded.get(new.parameter, new.bytes)) if new else ("gone", 0, None, 0)
        zeros = 100 * (1 - new.kept / new.weights) if new is not None else 100.0
        bits = new.bits if new is not None else None
        rows.append(
            [name, before[0], after[0], before[1], after[1], zeros, before[2], after[2], bits, before[3], after[3]]
        )
    return rows


def _shape(layer: Any) -> str:
    return "x".join(map(str, layer.shape))


def cut_rows(report: Report) -> list[list[Any]]:
    """Rows under :data:`CUT_COLUMNS`: every cut, recovery, rollback and stop, in epochs since the run began."""
    return [
        [
            event.time,
            event.kind,
            str(event.data.get("callback", "")),
            *(event.data.get(n) for n in ("before", "target", "reached")),
            event.text,
        ]
        for event in read_history(report).events
    ]


def seed_row(report: Report) -> list[Any]:
    """A row under :data:`SEED_COLUMNS`."""
    from lightning_compress.report.page import headline_metric

    metric = headline_metric(report)
    values = (None, None) if metric is None else (report.before.metrics[metric], report.after.metrics[metric])
    size = None if report.file is None else report.file.bytes
    cost = report.after.cost
    return [report.seed, report.command, metric, *values, cost["nonzero_parameters"], cost["macs"], size]


def _picture(figure: Figure) -> Any:
    from PIL import Image

    return Image.open(BytesIO(to_png(figure)))


def _send_model(logger: WandbLogger, report: Report, model: ModelFiles) -> None:
    import wandb

    run = logger.experiment
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in f"{report.recipe}-{run.id}")
    artifact = wandb.Artifact(name, type="model", metadata=dict(model.metadata))
    for path in model.paths:
        artifact.add_file(str(path))
    run.log_artifact(artifact, aliases=list(model.aliases))
