"""Data: documents to packed token sequences."""
