"""Models are counted right from their configuration alone."""

import pytest
from transformers import (
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from compress.errors import BadInput
from compress.plan.shapes import load_config, shape_of
from tests.tiny import tiny_llama

LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8,
)  # fmt: skip
MIXTRAL = MixtralConfig(vocab_size=32000)
QWEN3_30B = Qwen3MoeConfig(
    vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
    num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
    num_experts=128, num_experts_per_tok=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        (LLAMA_8B, 8.03, 7.50),  # Llama 3.1 8B: the input table of 0.53 is read, not multiplied
        (MIXTRAL, 46.7, 12.7),  # Jiang et al. 2024: 47B, 13B active
        (QWEN3_30B, 30.5, 3.0),  # Qwen3-30B-A3B: 30.5B, 3.3B active with the input table
    ],
)
def test_published_parameter_counts_are_met(config, billions, active):
    shape = shape_of(config)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert shape.active_parameters / 1e9 == pytest.approx(active, rel=0.03)


def test_every_parameter_of_a_real_model_is_counted_once():
    for tied in (False, True):
        model = tiny_llama(tie_word_embeddings=tied)
        assert shape_of(model.config).parameters == sum(p.numel() for p in model.parameters())


def test_a_tied_table_counts_as_the_head_it_is_multiplied_with():
    tied = shape_of(tiny_llama(tie_word_embeddings=True).config)
    assert tied.active_parameters == tied.parameters


def test_grouped_heads_shrink_the_cache():
    # 2 (keys, values) x 2 bytes x 32 layers x 8 heads x 128
    assert shape_of(LLAMA_8B).kv_bytes_16 == 131072


def test_windowed_layers_are_told_apart():
    config = Gemma3TextConfig(num_hidden_layers=12, sliding_window=512)
    shape = shape_of(config)
    full = sum(kind == "full_attention" for kind in config.layer_types)
    layer = 2 * 2 * config.num_key_value_heads * config.head_dim
    assert shape.kv_bytes_16 == full * layer
    assert shape.windows == ((512, (12 - full) * layer),)


def test_encoders_have_no_cache():
    shape = shape_of(BertConfig(architectures=["BertForSequenceClassification"]))
    assert not shape.generates
    assert shape.kv_bytes_16 == 0


def test_the_output_head_is_not_quantised():
    shape = shape_of(GPT2Config())
    assert sum(m.size for m in shape.matrices if m.quantizable) == 12 * 12 * 768 * 768


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        load_config(tmp_path)


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(BadInput, match="reads no configuration"):
        load_config(tmp_path)


def test_a_run_folder_stands_for_its_export(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path / "export" / "vllm")
    assert load_config(tmp_path).num_hidden_layers == 2
