"""A sparse INT4 student and its exported program, made once: the exporter is slow."""

import functools
import tempfile
from pathlib import Path

import torch

from compress.export.gate import gate
from compress.export.write import ExportResult, export
from compress.quantize import prepare, start
from compress.sparsify.masks import topk_mask
from compress.transforms import attach_transform
from tests.export.fakes import FakeMask
from tests.tiny import TinyData, tiny_batch, tiny_llama


class TwoOfFour(FakeMask):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight, pattern="2:4")
        self.mask = topk_mask(weight.detach().abs(), density=0.5, pattern="2:4")


def masked(scheme: str, **settings: object) -> torch.nn.Module:
    model = tiny_llama(layers=1, hidden=64)
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            attach_transform(layer, TwoOfFour(layer.weight))
    prepare(model, scheme=scheme, **settings)
    start(model, TinyData(), samples=4)
    return model.eval()


def written(student: torch.nn.Module, place: Path, **settings: object) -> ExportResult:
    gate(student, target="pt2")
    return export(student, target="pt2", path=place, example_batch=tiny_batch(), **settings)


@functools.cache
def sparse_int4() -> tuple[torch.nn.Module, ExportResult, tempfile.TemporaryDirectory]:
    """One student and its folder, for all that asks about a finished program; both must outlive."""
    student, place = masked("W4A16", group_size=32), tempfile.TemporaryDirectory()
    return student, written(student, Path(place.name) / "out", dtype="float32"), place
