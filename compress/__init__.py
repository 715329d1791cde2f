"""Training-time compression of language models: quantisation, sparsity, pruning, distillation."""

__version__ = "0.1.0"
