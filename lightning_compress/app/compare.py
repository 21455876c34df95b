"""``lightning-compress compare RUN RUN``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lightning_compress.errors import CompressionError
from lightning_compress.report import read_report
from lightning_compress.report.comparison import compare_reports


def compare(places: Sequence[str]) -> None:
    """Print what differs between two runs.

    Args:
        places: two folders of finished runs, or their ``report.json``.

    Raises:
        CompressionError: not two of them, or no finished run in one.
    """
    if len(places) != 2:
        raise CompressionError(
            f"compare takes two runs, not {len(places)}: lightning-compress compare FOLDER FOLDER. For more of them: "
            "lightning-compress pareto FOLDER, or summarize FOLDER for seeds."
        )
    one, other = (read_report(place) for place in places)
    Console().print(compare_reports(one, other))
