"""Distillation: one chunked loss core, divergences, features, routing."""
