"""Evaluation: quality, latency, cost."""
