"""Quantised tiny students and their TensorRT exports, each made once: the exporter is slow."""

import functools
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from compress.export.write import ExportResult, export
from compress.quantize import prepare, start
from tests.tiny import VOCAB, TinyData, tiny_batch, tiny_llama

SCHEMES = {
    "int8": {"scheme": "W8A8", "activations": "static"},
    "fp8": {"scheme": "FP8"},
    "int4": {"scheme": "W4A16", "group_size": 64},
}


def tiny_bert(*, layers: int = 1, hidden: int = 64, labels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCAB, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=64, num_labels=labels,
        )
    )  # fmt: skip


def tiny_encoder(*, layers: int = 1) -> torch.nn.Module:
    """A model without a head, as `task=embedding` trains."""
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64,
        )
    )  # fmt: skip


def quantised(model: torch.nn.Module, **scheme: object) -> torch.nn.Module:
    """Calibrated on counting sequences, in eval mode."""
    prepare(model, **scheme)
    data = [{"input_ids": row["input_ids"]} for row in TinyData(rows=8)]
    start(model, data, samples=8)
    return model.eval()


@functools.cache
def student_of(kind: str, scheme: str) -> torch.nn.Module:
    model = tiny_llama(layers=1, hidden=64) if kind == "decoder" else tiny_bert()
    return quantised(model, **SCHEMES[scheme])


@functools.cache
def folder_of(kind: str, scheme: str) -> tuple[tempfile.TemporaryDirectory, ExportResult]:
    """The folder must outlive its path, so both come back."""
    place = tempfile.TemporaryDirectory()
    batch = {"input_ids": tiny_batch()["input_ids"]}
    result = export(
        student_of(kind, scheme), target="tensorrt", path=Path(place.name) / "out",
        example_batch=batch, dtype="float32",
    )  # fmt: skip
    return place, result


def exported(kind: str, scheme: str) -> ExportResult:
    return folder_of(kind, scheme)[1]
