"""Networks as ONNX files, each verified against the network itself."""

from lightning_compress.export.onnx_file import export_onnx
from lightning_compress.export.router import ExitRouter
from lightning_compress.export.segments import export_exits

__all__ = ["ExitRouter", "export_exits", "export_onnx"]
