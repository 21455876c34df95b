"""The model file: really small on the disk, safe to open, the same bits in memory; plain torch and numpy."""

from lightning_compress.artifact.container import ModelFile
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.model_file import load_compressed, save_compressed, unpack_state
from lightning_compress.artifact.summary import FileSummary, TensorSummary, inspect_compressed

__all__ = [
    "FileSummary",
    "FormatError",
    "ModelFile",
    "TensorSummary",
    "inspect_compressed",
    "load_compressed",
    "save_compressed",
    "unpack_state",
]
