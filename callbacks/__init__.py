"""Composable compression callbacks; the mathematics lives in `compress`."""

from compress.callbacks.base import CompressionCallback
from compress.callbacks.dynamic_sparsity import DynamicSparsity

__all__ = ["CompressionCallback", "DynamicSparsity"]
