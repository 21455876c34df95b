"""What a finished run hands to W&B: the tables, the figures, and the model as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lightning_compress.app.loggers import GuardedLogger
from lightning_compress.report import Report


def publish(logger: GuardedLogger, report: Report, figures: Mapping[str, bytes], model: Path) -> None:
    """Log the report, if the logger is one of W&B's, and end its run.

    Args:
        logger: any.
        report: of the run.
        figures: PNG files by name.
        model: checkpoint of the last network.
    """

    def send(inner: Any) -> None:
        if isinstance(inner, WandbLogger):
            _send_tables(inner, report)
            _send_figures(inner, figures)
            _send_model(inner, report, model)

    logger.attempt(send)


def close(logger: GuardedLogger, *, exit_code: int = 0) -> None:
    """End the W&B run, so that another job of this process begins its own."""

    def end(inner: Any) -> None:
        if isinstance(inner, WandbLogger):
            inner.experiment.finish(exit_code=exit_code)

    logger.attempt(end)


def _send_tables(inner: WandbLogger, report: Report) -> None:
    after = {layer.name: layer for layer in report.after.layers}
    rows = [
        [
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.weights,
            after[layer.name].kept if layer.name in after else 0,
        ]
        for layer in report.before.layers
    ]
    inner.log_table("report/layers", columns=["layer", "shape before", "weights before", "kept"], data=rows)
    summary = inner.experiment.summary
    for prefix, network in (("before", report.before), ("after", report.after)):
        summary.update({f"{prefix}/{name}": value for name, value in {**network.cost, **network.metrics}.items()})
    summary.update({"compress/network_sparsity": report.after.sparsity})


def _send_figures(inner: WandbLogger, figures: Mapping[str, bytes]) -> None:
    from PIL import Image

    for name, picture in figures.items():
        inner.log_image(f"report/{name}", [Image.open(BytesIO(picture))])


def _send_model(inner: WandbLogger, report: Report, model: Path) -> None:
    import wandb

    metadata = {**report.after.cost, **report.after.metrics}
    artifact = wandb.Artifact(f"{report.recipe}-{inner.experiment.id}", type="model", metadata=metadata)
    artifact.add_file(str(model))
    inner.experiment.log_artifact(artifact, aliases=["latest"])
