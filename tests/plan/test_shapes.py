"""Models are counted right from their configuration alone."""

from collections import Counter

import pytest
from transformers import (
    BertConfig,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    T5Config,
    XLNetConfig,
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


@pytest.mark.parametrize(
    ("config", "generates"),
    [(BertConfig(), False), (BertConfig(is_decoder=True), True), (GPTNeoXConfig(), True)],
    ids=["encoder", "made a decoder", "decoder"],
)
def test_a_configuration_that_names_no_class_is_what_its_kind_is_used_for(config, generates):
    config.num_hidden_layers = 1
    assert shape_of(config).generates == generates


def test_bert_base_is_counted_as_by_hand():
    tables = (30522 + 512 + 2) * 768
    block = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    head = 768 * 768 + 768 + 2 * 768 + 30522  # its matrix is the input table
    shape = shape_of(BertConfig(architectures=["BertForMaskedLM"]))
    assert shape.parameters == tables + 2 * 768 + 12 * block + head
    assert shape.active_parameters == shape.parameters - (512 + 2) * 768
    assert sum(m.size for m in shape.matrices if m.head) == 30522 * 768 + 30522
    assert (shape.generates, shape.positions) == (False, 512)


def test_the_output_head_is_not_quantised():
    shape = shape_of(QWEN_TIED)
    block = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864
    assert sum(m.size for m in shape.matrices if m.quantizable) == 24 * block
    assert sum(m.size for m in shape.matrices if m.head) == 151936 * 896


def test_weights_that_lie_transposed_are_covered_by_no_scheme():
    shape = shape_of(GPT2Config())
    assert (shape.conv1d, shape.compressible) == (4 * 12, False)
    assert Counter(m.shape for m in shape.matrices)[2304, 768] == 12  # (O, I), as of a linear layer


# by hand: Falcon 7B has one key for all heads, 40B eight; 2 x 2 bytes x layers x keys x width
@pytest.mark.parametrize(
    ("config", "billions", "cache"),
    [
        (FalconConfig(), 6.92, 4 * 32 * 1 * 64),
        (
            FalconConfig(hidden_size=8192, num_hidden_layers=60, num_attention_heads=128,
                         num_kv_heads=8, new_decoder_architecture=True),
            41.3, 4 * 60 * 8 * 64,
        ),
        (MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432), 6.65, 4 * 32 * 4096),
        (GPTJConfig(), 6.05, 4 * 28 * 4096),
        (GPTNeoConfig(), 1.32, 4 * 24 * 2048),
        (BloomConfig(hidden_size=4096, n_layer=30, n_head=32), 7.07, 4 * 30 * 4096),
    ],
    ids=["falcon-7b", "falcon-40b", "mpt-7b", "gpt-j-6b", "gpt-neo-1.3b", "bloom-7b1"],
)  # fmt: skip
def test_models_that_write_their_own_attention_are_counted(config, billions, cache):
    shape = shape_of(config)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert shape.kv_bytes_16 == cache
    assert shape.transient(batch=2, length=64) > 2 * 64 * shape.hidden * 2


def test_positions_without_a_limit_are_none():
    assert shape_of(XLNetConfig(n_layer=1)).positions == 0


def test_what_does_not_run_on_sizes_is_refused_without_a_stack_trace(capfd):
    shape = shape_of(BertConfig(num_hidden_layers=1))
    with pytest.raises(
        UnsupportedModel, match=r"BertModel \(model_type bert\).*1 sequences of 600"
    ):
        shape.transient(batch=1, length=600)
    assert "Traceback" not in "".join(capfd.readouterr())


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
