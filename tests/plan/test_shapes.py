"""Models are counted right from their configuration alone."""

import pytest
from transformers import (
    BertConfig,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    T5Config,
)

from compress.errors import BadInput, UnsupportedModel
from compress.plan.kv_cache import cache_layout
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

QWEN_MOE = Qwen2MoeConfig(
    vocab_size=151936, hidden_size=2048, intermediate_size=5632, moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16,
    num_key_value_heads=16, num_experts=60, num_experts_per_tok=4,
)  # fmt: skip
QWEN_TIED = Qwen2Config(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        (LLAMA_8B, 8.03, 7.50),  # Llama 3.1 8B: the input table of 0.53 is read, not multiplied
        (MIXTRAL, 46.7, 12.7),  # Jiang et al. 2024: 47B, 13B active
        (QWEN_MOE, 14.3, 2.38),  # Qwen1.5-MoE-A2.7B: 14.3B, 2.7B active with the input table
        (QWEN_TIED, 0.494, 0.494),  # Qwen2.5-0.5B: one table, looked up and multiplied with
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


@pytest.mark.parametrize(
    ("config", "full", "windows"),
    [
        # no layer_types: the window is every layer's, 2 x 2 bytes x 32 x 8 x 128
        (MistralConfig(sliding_window=4096), 0, ((4096, 131072),)),
        (MistralConfig(sliding_window=None), 131072, ()),
        # a window that is switched off: 2 x 2 x 24 x 2 x 64
        (QWEN_TIED, 12288, ()),
        # the last 15 of 35 layers read the keys of earlier ones: 4 and 16 of the first 20
        (Gemma3nTextConfig(), 4 * 4 * 2 * 256, ((512, 16 * 4 * 2 * 256),)),
        # full layers have wider heads: 5 of 30, each 2 x 2 x 4 x 512; the others 2 x 2 x 4 x 256
        (Gemma4TextConfig(), 5 * 8192, ((512, 25 * 4096),)),
        # a latent of 512 and a rotary key of 64, over 61 layers
        (DeepseekV3Config(), 61 * 2 * (512 + 64), ()),
    ],
    ids=["window", "no_window", "off", "shared_keys", "two_widths", "latent"],
)
def test_the_cache_of_each_kind_of_layer_is_as_by_hand(config, full, windows):
    layout = cache_layout(config)
    assert (layout.bytes_16, layout.windows) == (full, windows)


def test_a_latent_cache_cannot_be_divided_among_heads():
    assert cache_layout(DeepseekV3Config()).parts == 1
    assert cache_layout(LLAMA_8B).parts == 8


def test_a_model_that_also_sees_has_the_cache_of_its_text_and_the_weights_of_both():
    text = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 32}  # fmt: skip
    config = Gemma3Config(text_config=text, architectures=["Gemma3ForConditionalGeneration"])
    shape, alone = shape_of(config), shape_of(config.get_text_config())
    assert shape.generates
    assert (shape.kv_bytes_16, shape.windows) == (alone.kv_bytes_16, alone.windows)
    assert shape.parameters > alone.parameters
    assert shape.transient(batch=1, length=8) == alone.transient(batch=1, length=8)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (T5Config(architectures=["T5ForConditionalGeneration"]), "encoder-decoders"),
        (MambaConfig(num_hidden_layers=1), "without attention heads"),
    ],
)
def test_models_that_would_be_counted_wrong_are_refused(config, said):
    with pytest.raises(UnsupportedModel, match=said):
        shape_of(config)


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
