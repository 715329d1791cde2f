"""Teachers: local, cached, sharded and served, behind one interface."""
