"""The embedded teachers, untrained: a small Llama, or a small BERT to classify or embed with."""

from typing import Any

import torch
from omegaconf import DictConfig

from compress.errors import BadInput


def embedded_model(config: DictConfig, data: Any) -> torch.nn.Module:
    """The model of the teacher's shape that fits the data and the task."""
    torch.manual_seed(config.teacher.seed)
    if config.task == "causal_lm":
        return _decoder(config, data)
    classifier = _encoder(config, data)
    return classifier if config.task == "classification" else classifier.bert


def _decoder(config: DictConfig, data: Any) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    width = config.teacher.hidden
    length = len(data.train[0]["input_ids"])
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(data.tokenizer),
            hidden_size=width,
            # a multiple of 128, so that every group size divides it
            intermediate_size=-(-width * 8 // 3 // 128) * 128,
            num_hidden_layers=config.teacher.layers,
            num_attention_heads=max(width // 32, 1),
            num_key_value_heads=max(width // 64, 1),
            max_position_embeddings=max(2 * length, 512),
            tie_word_embeddings=False,
            bos_token_id=data.tokenizer.bos_token_id,
            eos_token_id=data.tokenizer.eos_token_id,
            pad_token_id=data.tokenizer.pad_token_id,
        )
    )


def _encoder(config: DictConfig, data: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    if len(data.labels) < 2:
        raise BadInput(
            "teacher=embedded learns to embed by telling classes apart, and this data has no "
            "labels: use data=classification, data=python_families, or teacher=hf teacher.path=..."
        )
    width = config.teacher.hidden
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(data.tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=config.teacher.layers,
            num_attention_heads=max(width // 32, 1),
            max_position_embeddings=max(len(data.train[0]["input_ids"]), 128),
            pad_token_id=data.tokenizer.pad_token_id or data.tokenizer.eos_token_id,
            id2label=dict(enumerate(data.labels)),
            label2id={name: number for number, name in enumerate(data.labels)},
        )
    )
