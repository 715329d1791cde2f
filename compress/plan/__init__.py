"""Planning: memory and hardware sizing."""

from compress.plan.accelerators import Accelerator, accelerators, read_overrides
from compress.plan.fit import Placement, place_serving, place_training
from compress.plan.memory import Memory, serving_memory, training_memory, weight_bytes
from compress.plan.shapes import ModelShape, load_config, shape_of

__all__ = [
    "Accelerator",
    "Memory",
    "ModelShape",
    "Placement",
    "accelerators",
    "load_config",
    "place_serving",
    "place_training",
    "read_overrides",
    "serving_memory",
    "shape_of",
    "training_memory",
    "weight_bytes",
]
