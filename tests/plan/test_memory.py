"""Planned bytes are those that files, caches and training steps take."""

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import BertConfig, GPT2Config, MixtralConfig

from compress.errors import BadInput, UnsupportedModel
from compress.export.write import export
from compress.plan.activations import LiveBytes, saved_bytes, transient_bytes
from compress.plan.memory import (
    cache_bytes,
    serving_memory,
    training_memory,
    weight_bytes,
)
from compress.plan.shapes import shape_of
from compress.quantize.prepare import prepare
from compress.quantize.schemes import SCHEMES
from tests.tiny import tiny_llama

WIDE = {"hidden": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}


def tensor_bytes(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(
            tensor.numel() * tensor.element_size()
            for key in file.keys()  # noqa: SIM118
            if not (tensor := file.get_tensor(key), key.startswith("input"))[1]
        )


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in ("MXFP4", "FP8", "NVFP4")])
def test_planned_weights_are_the_files(scheme, tmp_path):
    model = tiny_llama(**WIDE)
    grouped = {"group_size": 64} if scheme in ("W4A16", "W3A16", "W2A16", "W4A8") else {}
    narrow = torch.bfloat16 if scheme[1] in "234" else None
    prepare(model, scheme=scheme, scale_dtype=narrow, **grouped)
    folder = export(model, target="transformers", path=tmp_path / "out", dtype="bfloat16").path
    planned = weight_bytes(shape_of(model.config), scheme=scheme, **grouped)
    assert planned == tensor_bytes(folder)


def test_a_dense_checkpoint_takes_two_bytes_a_weight():
    model = tiny_llama(tie_word_embeddings=True)
    assert weight_bytes(shape_of(model.config)) == 2 * sum(p.numel() for p in model.parameters())


def test_the_planned_cache_is_that_of_a_real_one():
    model = tiny_llama(**WIDE).bfloat16()
    cache = model(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = shape_of(model.config)
    assert cache_bytes(shape, batch=3, length=40) == held
    assert cache_bytes(shape, batch=3, length=40, bits=8) == held // 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_counted_activations_are_what_a_real_step_saves(precision):
    model = tiny_llama(**WIDE, attn_implementation="sdpa").train()
    if precision == "bf16-true":
        model = model.bfloat16()
    tokens = torch.zeros(2, 64, dtype=torch.long)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            held[storage._cdata] = storage
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        model.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    real = sum(storage.nbytes() for storage in held.values())
    counted = saved_bytes(model.config, batch=2, length=64, precision=precision)
    assert counted == pytest.approx(real, rel=0.02)


def test_the_live_peak_of_a_real_forward_is_as_counted():
    model = tiny_llama(**WIDE, attn_implementation="sdpa").bfloat16().eval()
    tokens = torch.zeros(4, 64, dtype=torch.long)
    live = LiveBytes()
    live.ignore(model)
    with torch.no_grad(), live:
        model.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    assert transient_bytes(model.config, batch=4, length=64) == pytest.approx(live.peak, rel=0.15)


def test_the_planned_peak_is_that_of_a_training_step():
    model = tiny_llama(**WIDE, layers=4, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 128, (4, 64))

    def step():
        hidden = model.model(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).last_hidden_state
        nn.functional.mse_loss(hidden, torch.zeros_like(hidden)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimizer's state is there
    live = LiveBytes()
    live.ignore(model)
    with live:
        step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    weights = sum(p.nbytes for p in model.parameters())
    planned = training_memory(
        shape_of(model.config), batch=4, length=64, precision="32-true", runtime=0
    )
    measured = live.peak + state + weights
    assert planned.total == pytest.approx(measured, rel=0.15)


def test_activations_grow_with_tokens_and_not_with_a_multiple_of_the_parameters():
    config = tiny_llama(**WIDE).config
    one, two = (saved_bytes(config, batch=b, length=64, precision="32-true") for b in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)


def test_checkpointing_saves_memory():
    config = tiny_llama(**WIDE, layers=8).config
    kept = saved_bytes(config, batch=4, length=64, checkpointing=True)
    assert kept < 0.4 * saved_bytes(config, batch=4, length=64)


def test_rounded_inputs_cost_memory_in_training():
    shape = shape_of(tiny_llama(**WIDE).config)
    dense, qat = (
        training_memory(shape, batch=2, length=64, scheme=s).kept["activations"]
        for s in (None, "W8A8")
    )
    assert qat > dense


def test_a_teacher_is_counted_without_gradients():
    shape = shape_of(tiny_llama(**WIDE).config)
    alone = training_memory(shape, batch=2, length=64)
    taught = training_memory(shape, batch=2, length=64, teacher=shape)
    assert taught.sharded["teacher"] == 2 * shape.parameters
    assert taught.total > alone.total


def test_checkpointed_blocks_keep_inputs_of_the_residual_streams_width():
    model = tiny_llama(**WIDE, layers=8)
    for precision, width in (("32-true", 4), ("bf16-mixed", 4), ("bf16-true", 2)):
        asked = {"batch": 4, "length": 64, "precision": precision}
        whole = saved_bytes(model.config, **asked)
        kept = saved_bytes(model.config, **asked, checkpointing=True)
        assert kept - -(-whole // 8) == 8 * 4 * 64 * 256 * width


def test_autocast_leaves_the_residual_stream_in_fp32():
    model = tiny_llama(**WIDE)
    kinds = []
    block = model.model.layers[1]
    block.register_forward_pre_hook(lambda _, args: kinds.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert kinds == [torch.float32]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_mixture_of_experts_is_planned_as_a_teacher_and_not_as_a_student(precision):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}  # fmt: skip
    experts, dense = shape_of(MixtralConfig(**sizes)), shape_of(tiny_llama().config)
    asked = {"batch": 1, "length": 32, "precision": precision}
    with pytest.raises(UnsupportedModel, match=r"MixtralForCausalLM.*teachers, not students"):
        training_memory(experts, **asked)
    taught = training_memory(dense, teacher=experts, **asked)
    assert taught.sharded["teacher"] == 2 * experts.parameters


def test_a_scheme_takes_nothing_from_layers_that_it_does_not_cover():
    shape = shape_of(GPT2Config(n_layer=2))
    assert weight_bytes(shape, scheme="W8A8") == weight_bytes(shape)
    asked = {"batch": 1, "length": 32, "precision": "32-true"}
    qat, dense = (training_memory(shape, scheme=s, **asked) for s in ("W8A8", None))
    assert qat == dense


def test_bert_base_serves_its_longest_texts_as_by_hand():
    shape = shape_of(BertConfig(architectures=["BertForMaskedLM"]))
    memory = serving_memory(shape, batch=16, length=512, prefill_tokens=2048, runtime=0)
    tokens = 2048  # four texts of 512
    # the table's rows, a block's input and what its attention made of it; the FFN before and after
    # GELU; tokens and mask
    live = tokens * (3 * 768 + 2 * 3072) * 2 + 2 * tokens * 8
    assert memory.as_dict() == {"weights": 2 * 109514298, "kv_cache": 0, "activations": live,
                                "runtime": 0, "total": 2 * 109514298 + live}  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "length", "tokens", "rows"),
    [(1, 512, 8192, 1), (16, 512, 8192, 16), (16, 512, 600, 2), (16, 512, 100, 1)],
)
def test_an_encoder_reads_whole_texts(batch, length, tokens, rows):
    shape = shape_of(BertConfig(num_hidden_layers=2))
    asked = {"batch": batch, "length": length, "prefill_tokens": tokens, "runtime": 0}
    live = serving_memory(shape, **asked).kept["activations"]
    assert live == transient_bytes(shape.config, batch=rows, length=length)


def test_a_decoders_pass_is_filled_without_a_sequence_beyond_its_positions():
    shape = shape_of(GPT2Config(n_layer=2, vocab_size=100))
    for batch, length, rows, each in ((1, 4096, 2, 1024), (16, 100, 16, 100), (4, 1000, 3, 683)):
        asked = {"batch": batch, "length": length, "prefill_tokens": 2048, "runtime": 0}
        live = serving_memory(shape, **asked).kept["activations"] - batch * 100 * 4  # the logits
        assert live == transient_bytes(shape.config, batch=rows, length=each)


def test_a_text_beyond_an_encoders_positions_is_refused():
    shape = shape_of(BertConfig(num_hidden_layers=1))
    dense = shape_of(tiny_llama().config)
    said = r"length=600 lies beyond the 512 tokens that BertModel takes: plan with 512"
    for refused in (
        lambda: serving_memory(shape, batch=1, length=600),
        lambda: training_memory(shape, batch=1, length=600),
        lambda: training_memory(dense, batch=1, length=600, teacher=shape),
    ):
        with pytest.raises(BadInput, match=said):
            refused()


def test_counts_below_one_are_refused():
    shape = shape_of(tiny_llama().config)
    with pytest.raises(BadInput, match=r"batch=0 must be at least 1"):
        serving_memory(shape, batch=0, length=8)
