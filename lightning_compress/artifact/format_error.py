"""What is raised for a file that is not a sound model file."""

from lightning_compress.errors import CompressionError


class FormatError(CompressionError):
    """The file is damaged, not of this format, of a later version, or larger than allowed; nothing has been loaded."""
