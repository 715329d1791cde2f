"""Placements: what fits where, over how many devices, and the dated table behind it."""

import json

import pytest
from transformers import BertConfig, DeepseekV3Config, LlamaConfig, MixtralConfig, Qwen2Config

from compress.errors import BadInput
from compress.plan.accelerators import accelerators, read_overrides, table
from compress.plan.fit import best_case, number_format, place_serving, place_training
from compress.plan.memory import cache_bytes, serving_memory, training_memory, weight_bytes
from compress.plan.shapes import shape_of

ASKED = ["A100", "H100", "H200", "B200", "MI300X", "L4", "L40S", "Gaudi2", "TPUv4", "Ascend910B"]


@pytest.fixture(scope="module")
def llama_70b():
    return shape_of(
        LlamaConfig(
            vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
            num_attention_heads=64, num_key_value_heads=8,
        )
    )  # fmt: skip


def serve(shape, gpu, **settings):
    wanted = {"batch": 4, "length": 4096, "prefill_tokens": 2048, **settings}
    return place_serving(shape, serving_memory(shape, **wanted), accelerators(gpu)[gpu])


def test_the_table_has_every_accelerator_with_source_and_date():
    date, known = table()
    assert set(ASKED) <= set(known)
    assert date.count("-") == 2
    assert all(device.source and device.tflops["bf16"] for device in known.values())


def test_fewer_bits_need_fewer_devices(llama_70b):
    dense, int8, int4 = (serve(llama_70b, "H100", scheme=s) for s in ("dense", "W8A8", "W4A16"))
    assert (dense.devices, int8.devices, int4.devices) == (4, 2, 1)


def test_a_larger_device_needs_none_beside_it(llama_70b):
    assert serve(llama_70b, "MI300X").devices == 1


def test_beyond_a_node_layers_are_spread(llama_70b):
    small = accelerators("L4")["L4"]
    memory = serving_memory(llama_70b, batch=16, length=8192, prefill_tokens=512)
    placed = place_serving(llama_70b, memory, small)
    assert placed.tensor_parallel == 8
    assert placed.pipeline_parallel > 1
    assert placed.bytes_per_device <= small.memory * 0.9


def test_tensor_parallel_degrees_divide_the_heads():
    shape = shape_of(
        LlamaConfig(
            vocab_size=32000, hidden_size=6144, intermediate_size=16384, num_hidden_layers=40,
            num_attention_heads=6, num_key_value_heads=2, head_dim=1024,
        )
    )  # fmt: skip
    assert serve(shape, "L4").tensor_parallel in (1, 2)


def test_a_small_model_gets_a_slice_of_a_device():
    shape = shape_of(LlamaConfig(hidden_size=512, intermediate_size=1024, num_hidden_layers=4))
    assert serve(shape, "A100", length=256).mig == "1g.10gb"
    assert serve(shape, "L4", length=256).mig is None


def test_the_largest_slice_is_no_slice():
    # 27 GB of weights: too much for half of the card, and all of the card needs no cutting
    shape = shape_of(
        LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
                    num_attention_heads=40)
    )  # fmt: skip
    memory = serving_memory(shape, batch=16, length=1024, prefill_tokens=512)
    placed = place_serving(shape, memory, accelerators("A100")["A100"])
    assert (placed.devices, placed.mig) == (1, None)


def test_a_slice_reads_with_its_share_of_the_bandwidth():
    shape = shape_of(LlamaConfig(hidden_size=512, intermediate_size=1024, num_hidden_layers=4))
    asked = {"scheme": "dense", "batch": 1, "length": 64, "kv_bytes": 0}
    device = accelerators("H100")["H100"]
    whole, slice_ = (best_case(shape, device, mig=m, **asked) for m in (None, "1g.10gb"))
    assert slice_["token_ms"] == pytest.approx(8 * whole["token_ms"])
    assert slice_["prefill_ms"] == pytest.approx(7 * whole["prefill_ms"])


def test_a_tensor_parallel_share_is_whole_groups_of_the_scheme():
    # Llama 2 7B: 11008 / 128 = 86 groups, which two devices can share and four cannot
    shape = shape_of(
        LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008,
                    num_hidden_layers=32, num_attention_heads=32)
    )  # fmt: skip
    asked = {"batch": 64, "length": 4096, "prefill_tokens": 512}
    grouped, dense = (serve(shape, "H100", scheme=s, **asked) for s in ("W4A16", "dense"))
    assert dense.tensor_parallel == 4
    assert (grouped.tensor_parallel, grouped.pipeline_parallel) == (2, 1)
    wider = {**asked, "batch": 96}
    placed = serve(shape, "H100", scheme="W4A16", **wider)
    assert placed.tensor_parallel == 2
    assert placed.pipeline_parallel == 2


def test_the_fullest_stage_of_a_pipeline_is_planned_for():
    shape = shape_of(
        LlamaConfig(vocab_size=1000, hidden_size=1024, intermediate_size=4096,
                    num_hidden_layers=5, num_attention_heads=8)
    )  # fmt: skip
    memory = serving_memory(shape, batch=1, length=64, runtime=0)
    layer = (memory.sharded["weights"] - sum(memory.outside)) / 5
    room = sum(memory.kept.values()) + max(memory.outside) + 2.7 * layer
    figures = {"memory_gb": room / 1e9, "bandwidth_gb_s": 1, "tflops": {"bf16": 1}, "formats": []}
    device = accelerators("Mine", overrides={"Mine": figures})["Mine"]
    placed = place_serving(shape, memory, device, usable=1.0)
    # in two stages one would hold three layers, which half of five does not tell
    assert placed.pipeline_parallel == 3
    assert placed.bytes_per_device >= 2 * layer + max(memory.outside)


def test_every_device_holds_a_whole_latent_cache():
    shape = shape_of(
        DeepseekV3Config(num_hidden_layers=4, hidden_size=1024, intermediate_size=2048,
                         num_attention_heads=16, num_key_value_heads=16, first_k_dense_replace=4)
    )  # fmt: skip
    cache = cache_bytes(shape, batch=64, length=100_000)
    memory = serving_memory(shape, batch=64, length=100_000, prefill_tokens=512)
    device = accelerators("L4")["L4"]
    assert cache > device.memory
    placed = place_serving(shape, memory, device)
    assert placed.pipeline_parallel > 1  # more of a node would not help
    assert placed.bytes_per_device >= cache / placed.pipeline_parallel


def test_a_batch_reads_the_experts_that_it_reaches():
    shape = shape_of(MixtralConfig(num_hidden_layers=2, vocab_size=1000))
    experts = sum(2 * m.size for m in shape.matrices if m.active < m.count and m.active)
    rest = sum(2 * m.size for m in shape.matrices if m.active == m.count)
    device = accelerators("H100")["H100"]
    for batch, share in ((1, 1 / 4), (4, 1 - (3 / 4) ** 4), (64, 1)):
        found = best_case(shape, device, scheme="dense", batch=batch, length=1, kv_bytes=0)
        least = (experts * share + rest) / (3350e9) * 1e3
        assert found["token_ms"] == pytest.approx(least, rel=1e-6)
    assert experts + rest < weight_bytes(shape)  # the input table is looked up, not read


def test_training_shards_until_it_fits(llama_70b):
    memory = training_memory(llama_70b, batch=1, length=2048, checkpointing=True)
    placed = place_training(llama_70b, memory, accelerators("H100")["H100"])
    # 16 bytes a parameter: 1129 GB over 72 GB usable, in powers of two
    assert placed.sharding in (16, 32)
    assert placed.bytes_per_device <= 72e9


def test_what_never_fits_is_said():
    shape = shape_of(LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=4))
    memory = training_memory(shape, batch=64, length=8192)
    assert place_training(shape, memory, accelerators("L4")["L4"]) is None


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [("dense", "bf16"), ("W8A8", "int8"), ("W4A16", "int4"), ("FP8", "fp8"), ("NVFP4", "fp4")],
)
def test_schemes_name_the_kernels_they_need(scheme, wanted):
    assert number_format(scheme) == wanted


def test_decoding_is_bound_by_bandwidth(llama_70b):
    h100, h200 = accelerators("H100")["H100"], accelerators("H200")["H200"]
    cache = cache_bytes(llama_70b, batch=1, length=1024)
    settings = {"scheme": "W8A8", "batch": 1, "length": 1024, "kv_bytes": cache}
    ratio = (
        best_case(llama_70b, h100, **settings)["token_ms"]
        / best_case(llama_70b, h200, **settings)["token_ms"]
    )
    assert ratio == pytest.approx(4800 / 3350)


def test_a_prompt_is_multiplied_with_the_head_once():
    shape = shape_of(
        Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864,
                    num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                    tie_word_embeddings=True)
    )  # fmt: skip
    # Qwen2.5-0.5B by hand: q and o, k and v with the biases of all three, the FFN, two norms
    block = 2 * 896 * 896 + 2 * 896 * 128 + 896 + 2 * 128 + 3 * 896 * 4864 + 2 * 896
    least = 2 * ((24 * block + 896) * 4096 + 151936 * 896) / 989e12 * 1e3
    device = accelerators("H100")["H100"]
    found = best_case(shape, device, scheme="dense", batch=1, length=4096, kv_bytes=0)
    assert found["prefill_ms"] == pytest.approx(least)
    assert least == pytest.approx(2.96, abs=0.005)
    # a token that is answered needs the head: all of the 494 M weights are read
    assert found["token_ms"] == pytest.approx(2 * 494032768 / 3350e9 * 1e3)


def test_an_encoder_multiplies_every_token_with_its_head():
    shape = shape_of(BertConfig(architectures=["BertForMaskedLM"]))
    device = accelerators("H100")["H100"]
    found = best_case(shape, device, scheme="dense", batch=1, length=512, kv_bytes=0)
    least = 2 * (109514298 - (512 + 2) * 768) * 512 / 989e12 * 1e3
    assert found["prefill_ms"] == pytest.approx(least)
    assert found["token_ms"] is None


def test_a_user_may_know_better(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "L4": {"memory_gb": 22},
                "Mine": {
                    "memory_gb": 16,
                    "bandwidth_gb_s": 500,
                    "tflops": {"bf16": 50},
                    "formats": ["bf16"],
                },
            }
        )
    )
    known = accelerators(overrides=read_overrides(path))
    assert known["L4"].memory_gb == 22
    assert known["L4"].source.endswith("overridden")
    assert known["Mine"].devices_per_node == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"L4": {"memory": 22}}, "unknown figures memory"),
        ({"Mine": {"memory_gb": 1}}, "give its bandwidth_gb_s"),
        ({"L4": {"memory_gb": "80"}}, "memory_gb='80' must be a number"),
        ({"L4": {"memory_gb": -1, "tflops": {}}}, "at least 0.001; tflops must give bf16"),
        ({"L4": {"tflops": {"bf16": "x"}}}, "expected number format -> number"),
        ({"L4": {"formats": ["fp32"]}}, "expected a list of bf16"),
        ({"L4": {"mig": {"half": 12}}}, "expected profile -> GB"),
    ],
)
def test_wrong_overrides_are_refused(overrides, said):
    with pytest.raises(BadInput, match=said):
        accelerators(overrides=overrides)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("h1000", "h1000: Did you mean 'H100'"),
        ("H100,Gaudi3", "Gaudi3: Did you mean 'Gaudi2'"),
        ("NVIDIA-H200-SXM,zzz", "Did you mean 'H200'.*zzz: nothing here is called so"),
        ("H100,", "nothing: nothing here"),
    ],
)
def test_every_misspelt_accelerator_is_named_with_the_nearest(names, said):
    with pytest.raises(BadInput, match=f"(?s){said}"):
        accelerators(names)


def test_accelerators_may_be_written_as_their_makers_do():
    found = accelerators("Gaudi 2, TPU v4, ascend-910b, a100 40gb")
    assert list(found) == ["Gaudi2", "TPUv4", "Ascend910B", "A100-40GB"]
