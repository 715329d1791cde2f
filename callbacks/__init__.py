"""Composable compression callbacks; the mathematics lives in `compress`."""

from compress.callbacks.base import CompressionCallback

__all__ = ["CompressionCallback"]
