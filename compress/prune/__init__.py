"""Structured pruning: importance and physical shrinking."""
