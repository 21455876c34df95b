"""The bits that layers have been given, for whoever looks at the fit: a table and a figure in its loggers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from io import BytesIO
from typing import Any

from lightning_compress.quantization.bit_allocation import Allocation

TABLE, FIGURE = "compress/bits", "compress/bits_and_costs"


def log_allocation(loggers: Iterable[Any], allocation: Allocation) -> None:
    """To W&B a table and a picture, to TensorBoard a figure; others have no place for them.

    Args:
        loggers: of a Trainer; one with an ``attempt`` is asked to carry it out.
        allocation: what was decided.
    """
    send = partial(_send, allocation)
    for logger in loggers:
        logger.attempt(send) if hasattr(logger, "attempt") else send(logger)


def _send(allocation: Allocation, logger: Any) -> None:
    if hasattr(logger, "log_table") and hasattr(logger, "log_image"):
        logger.log_table(TABLE, columns=list(allocation.columns), data=allocation.rows())
        logger.log_image(FIGURE, [_picture(allocation)])
    elif hasattr(logger.experiment, "add_figure"):
        logger.experiment.add_figure(FIGURE, allocation.figure())


def _picture(allocation: Allocation) -> Any:
    from PIL import Image

    file = BytesIO()
    allocation.figure().savefig(file, format="png", dpi=150)
    file.seek(0)
    return Image.open(file)
