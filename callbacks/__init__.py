"""Composable compression callbacks; the mathematics lives in `compress`."""

from compress.callbacks.base import CompressionCallback
from compress.callbacks.dynamic_sparsity import DynamicSparsity
from compress.callbacks.feature_distillation import FeatureDistillation
from compress.callbacks.logits_distillation import LogitsDistillation
from compress.callbacks.quantization_aware_training import QuantizationAwareTraining
from compress.callbacks.routed_distillation import RoutedDistillation

__all__ = [
    "CompressionCallback",
    "DynamicSparsity",
    "FeatureDistillation",
    "LogitsDistillation",
    "QuantizationAwareTraining",
    "RoutedDistillation",
]
