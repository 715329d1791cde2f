"""Sparsity: thresholds, masks, budgets, growth."""
