"""Planning: memory and hardware sizing."""
