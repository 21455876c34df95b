"""What a finished run hands to W&B: the tables, the figures, and the model as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lightning_compress.app.loggers import GuardedLogger
from lightning_compress.app.run_folder import RunFolder
from lightning_compress.report import Report


def publish(logger: GuardedLogger, report: Report, figures: Mapping[str, bytes], folder: RunFolder) -> None:
    """Log the report, if the logger is one of W&B's, and end its run.

    Args:
        logger: any.
        report: of the run.
        figures: PNG files by name.
        folder: where the checkpoint of the last network and its file are.
    """

    def send(inner: Any) -> None:
        if isinstance(inner, WandbLogger):
            _send_tables(inner, report)
            _send_figures(inner, figures)
            _send_model(inner, report, folder)

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
    if report.file is not None:
        summary.update({"compress/file_bytes": report.file.bytes, "compress/file_ratio": report.file.ratio})


def _send_figures(inner: WandbLogger, figures: Mapping[str, bytes]) -> None:
    from PIL import Image

    for name, picture in figures.items():
        inner.log_image(f"report/{name}", [Image.open(BytesIO(picture))])


def _send_model(inner: WandbLogger, report: Report, folder: RunFolder) -> None:
    import wandb

    metadata = {**report.after.cost, **report.after.metrics}
    if report.file is not None:
        metadata |= {"file_bytes": report.file.bytes, "file_ratio": report.file.ratio}
    artifact = wandb.Artifact(f"{report.recipe}-{inner.experiment.id}", type="model", metadata=metadata)
    artifact.add_file(str(folder.stage(report.after.stage).final))
    if report.file is not None:
        artifact.add_file(str(folder.path / report.file.name))
    inner.experiment.log_artifact(artifact, aliases=["latest"])
