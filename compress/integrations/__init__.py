"""Compression callbacks under other trainers than Lightning's."""
