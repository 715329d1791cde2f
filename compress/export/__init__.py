"""Export: plan, gate, writers, verification."""
