"""A checkpoint is told apart, and a student made of it, without loading the whole."""

import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from compress.checkpoint_student import student_from_checkpoint
from compress.contract import TopKSignal
from compress.errors import BadInput, UnsupportedModel
from compress.evaluate.quality import token_loss
from compress.scripts.lib.hosts import identity_of
from compress.students import student_from_teacher
from compress.teachers.cached import fingerprint_of_model
from compress.teachers.checkpoints import fingerprint_of_checkpoint, skeleton_of
from compress.teachers.local import LocalTeacher, load_hf_teacher
from compress.teachers.quality import teacher_loss
from tests.tiny import tiny_batch, tiny_llama


def saved(folder, **settings):
    tiny_llama(layers=5, **settings).save_pretrained(folder)
    return folder


def test_the_fingerprint_does_not_depend_on_how_tensors_are_spread(tmp_path):
    whole = saved(tmp_path)
    first = fingerprint_of_checkpoint(whole)
    tensors = load_file(whole / "model.safetensors")
    (whole / "model.safetensors").unlink()
    for index, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, whole / f"model-{index}.safetensors")
    assert fingerprint_of_checkpoint(whole) == first


def test_another_teacher_has_another_fingerprint(tmp_path):
    prints = {fingerprint_of_checkpoint(saved(tmp_path / str(s), seed=s)) for s in range(3)}
    assert len(prints) == 3


def changed(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    "settings",
    [{"rms_norm_eps": 0.1}, {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}],
)
def test_equal_weights_that_are_computed_with_otherwise_are_another_teacher(tmp_path, settings):
    first = fingerprint_of_checkpoint(saved(tmp_path))
    assert fingerprint_of_checkpoint(changed(tmp_path, **settings)) != first


def test_an_adapters_factor_and_the_checkpoints_own_code_are_of_the_fingerprint(tmp_path):
    prints = [fingerprint_of_checkpoint(saved(tmp_path))]
    for name, text in (("adapter_config.json", '{"lora_alpha": 8}'), ("modeling_own.py", "x = 1")):
        (tmp_path / name).write_text(text)
        prints.append(fingerprint_of_checkpoint(tmp_path))
    assert len(set(prints)) == 3


def test_the_fingerprint_does_not_depend_on_names_and_versions(tmp_path):
    first = fingerprint_of_checkpoint(saved(tmp_path))
    changed(tmp_path, _name_or_path="elsewhere", transformers_version="9.9", architectures=["X"])
    assert fingerprint_of_checkpoint(tmp_path) == first


def test_a_configuration_that_is_no_json_is_told(tmp_path):
    (saved(tmp_path) / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json is no JSON"):
        fingerprint_of_checkpoint(tmp_path)


def test_models_in_memory_are_told_apart_by_their_configuration_too():
    prints = [fingerprint_of_model(tiny_llama(seed=0, rms_norm_eps=e)) for e in (1e-6, 1e-6, 0.1)]
    assert prints[0] == prints[1] != prints[2]


def test_a_teacher_in_another_dtype_makes_another_cache(tmp_path):
    data = SimpleNamespace(tokenizer=Words(), fingerprint="d")
    known = [
        identity_of(OmegaConf.create({"dtype": dtype}), saved(tmp_path), data).teacher
        for dtype in (None, "float32", "bfloat16")
    ]
    assert len(set(known)) == 3 and known[2].endswith(".bfloat16")


class Words:
    def get_vocab(self):
        return {"a": 0}


def test_a_cut_checkpoint_is_refused(tmp_path):
    file = saved(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="is cut"):
        fingerprint_of_checkpoint(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [1, 3, 5])
def test_a_student_read_alone_equals_one_cut_from_the_teacher(tmp_path, layers, tied):
    folder = saved(tmp_path, tie_word_embeddings=tied)
    read = student_from_checkpoint(folder, layers=layers)
    cut = student_from_teacher(load_hf_teacher(str(folder)), layers=layers)
    for (name, ours), theirs in zip(
        read.state_dict().items(), cut.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert json.loads(read.config.to_json_string())["num_hidden_layers"] == layers
    batch = tiny_batch()
    assert torch.equal(
        read(input_ids=batch["input_ids"]).logits, cut(input_ids=batch["input_ids"]).logits
    )


def test_more_layers_than_there_are_are_refused(tmp_path):
    with pytest.raises(BadInput, match="use 1 to 5"):
        student_from_checkpoint(saved(tmp_path), layers=6)


def test_tensors_of_another_naming_are_refused_with_examples(tmp_path):
    file = saved(tmp_path) / "model.safetensors"
    save_file({f"other.{k}": v for k, v in load_file(file).items()}, file)
    with pytest.raises(UnsupportedModel, match=r"student=hf"):
        student_from_checkpoint(tmp_path, layers=2)


def test_a_skeleton_holds_names_and_widths_but_no_weight(tmp_path):
    skeleton = skeleton_of(saved(tmp_path))
    assert all(p.is_meta for p in skeleton.parameters())
    assert skeleton.get_submodule("model.layers.4.mlp.down_proj").out_features == 32


def test_a_teachers_loss_by_its_signal_is_its_loss(tmp_path):
    model = tiny_llama()
    batches = [tiny_batch(seed=seed) for seed in range(3)]
    batches[1]["labels"][:, :7] = -100
    found = teacher_loss(LocalTeacher(model), batches, device=torch.device("cpu"))
    assert found == pytest.approx(token_loss(model, batches).loss, rel=1e-6)


def test_a_teacher_that_only_tells_its_likeliest_tokens_has_no_loss():
    class Sparse:
        vocab_size = 4

        def signal(self, batch, want):
            shape = (*batch["input_ids"].shape, 2)
            return TopKSignal(
                tokens_BLK=torch.zeros(shape, dtype=torch.long), log_probs_BLK=torch.zeros(shape)
            )

    assert teacher_loss(Sparse(), [tiny_batch()], device=torch.device("cpu")) is None
