"""``lightning-compress inspect|verify|unpack FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from lightning_compress.artifact.container import verify_model
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.model_file import unpack_state
from lightning_compress.artifact.summary import FileSummary, TensorSummary, inspect_compressed
from lightning_compress.errors import CompressionError

COLUMNS = ("tensor", "weights", "kept", "mask", "values", "tables", "headers", "bytes", "bits", "/H", "form")


def inspect(arguments: Sequence[str]) -> None:
    """Print what each file is made of, without decoding it.

    Raises:
        CompressionError: no file named, or one that is not sound.
    """
    for path in _files(arguments, "inspect"):
        summary = inspect_compressed(path)
        console = Console()
        console.print(summary_table(summary))
        console.print(Text(describe_file(path, summary)), soft_wrap=True)


def verify(arguments: Sequence[str]) -> None:
    """Decode every tensor of each file and say whether all is well.

    Raises:
        CompressionError: no file named, or one that is not sound.
    """
    for path in _files(arguments, "verify"):
        file = verify_model(path)
        Console().print(Text(f"{path}: {len(file.entries)} tensors decoded, all checksums right"), soft_wrap=True)


def unpack(arguments: Sequence[str]) -> None:
    """Write each file's tensors into an ordinary safetensors file beside it.

    Raises:
        CompressionError: no file named, one that is not sound, or a target that exists.
    """
    for path in _files(arguments, "unpack"):
        target = path.with_suffix(".safetensors")
        if target.exists():
            raise CompressionError(f"{target} exists already. Move it away first.")
        state = {name: tensor.clone() for name, tensor in unpack_state(path).items()}
        save_file(state, target)
        Console().print(Text(f"{target}: {target.stat().st_size:,} bytes"), soft_wrap=True)


def summary_table(summary: FileSummary) -> Table:
    """One row for each tensor: bytes by what they are for, bits for one weight, share of the entropy bound."""
    rows = [summary_row(row) for row in summary.tensors]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, heading in enumerate(COLUMNS):
        width = max(map(len, [heading, *(row[number] for row in rows)]))
        if 0 < number < len(COLUMNS) - 1:
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
        else:
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*row)
    return table


def summary_row(row: TensorSummary) -> tuple[str, ...]:
    """The cells of one row; a codebook counts as a table here."""
    kept = "" if row.kept is None else f"{row.kept / max(row.weights, 1):.1%}"
    counts = (row.mask, row.values, row.codebook + row.tables, row.headers, row.bytes)
    share = "" if row.bound_share is None else f"{row.bound_share:.3f}"
    cells = (row.name, f"{row.weights:,}", kept, *(f"{count:,}" for count in counts))
    return (*cells, f"{row.bits_per_weight:.2f}", share, row.form)


def describe_file(path: Path, summary: FileSummary) -> str:
    """Size, ratio, overhead, and what was written into the file."""
    lines = [
        f"{path}: {summary.bytes:,} bytes, {summary.ratio:.1f}x smaller than dense fp32; "
        f"{summary.overhead:,} bytes are headers, tables and checksums",
        f"class {summary.class_name}, {summary.plan} edits in its Plan",
    ]
    return "\n".join([*lines, *(f"{key}: {text}" for key, text in sorted(summary.metadata.items()))])


def _files(arguments: Sequence[str], verb: str) -> list[Path]:
    if not arguments:
        raise CompressionError(f"lightning-compress {verb} needs at least one FILE.lcz.")
    missing = [argument for argument in arguments if not Path(argument).is_file()]
    if missing:
        raise FormatError(f"There is no file {missing[0]}.")
    return [Path(argument) for argument in arguments]
