"""Teachers: local, sharded (DeepSpeed ZeRO-3), cached on disk, served; one interface."""
