"""Composable compression callbacks; the mathematics lives in `compress`."""

from compress.callbacks.base import CompressionCallback
from compress.callbacks.dynamic_sparsity import DynamicSparsity
from compress.callbacks.feature_distillation import FeatureDistillation
from compress.callbacks.logits_distillation import LogitsDistillation
from compress.callbacks.number_guard import NumberGuard
from compress.callbacks.on_policy_distillation import OnPolicyDistillation
from compress.callbacks.quantization_aware_training import QuantizationAwareTraining
from compress.callbacks.routed_distillation import RoutedDistillation
from compress.callbacks.structured_pruning import StructuredPruning

__all__ = [
    "CompressionCallback",
    "DynamicSparsity",
    "FeatureDistillation",
    "LogitsDistillation",
    "NumberGuard",
    "OnPolicyDistillation",
    "QuantizationAwareTraining",
    "RoutedDistillation",
    "StructuredPruning",
]
