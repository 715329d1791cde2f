"""A local teacher answers as its model, stays frozen and outside the LightningModule."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from compress.contract import Want
from compress.errors import BadInput, UnsupportedModel
from compress.evaluate.models import open_model
from compress.module import CompressionModule
from compress.teachers.local import (
    LocalTeacher,
    check_checkpoint,
    check_vocabulary,
    load_hf_teacher,
)
from tests.tiny import VOCAB, tiny_batch, tiny_llama

LOGITS = Want(logits=True)


def logits_of(signal):
    return signal.head(signal.hidden_SLH)


def test_logits_are_the_models_own():
    model, batch = tiny_llama(), tiny_batch()
    teacher = LocalTeacher(model)
    assert teacher.vocab_size == VOCAB
    expected = model(input_ids=batch["input_ids"]).logits
    assert torch.equal(logits_of(teacher.signal(batch, LOGITS)), expected)


def test_features_are_the_modules_outputs():
    model, batch = tiny_llama(), tiny_batch()
    names = ("model.layers.0", "model.layers.1.mlp")
    found = LocalTeacher(model).signal(batch, Want(features=names))
    assert found.hidden_SLH is None and tuple(found.features) == names
    states = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
    assert torch.equal(found.features["model.layers.0"], states[1])


def test_a_misspelt_feature_is_refused():
    with pytest.raises(BadInput, match=r"Did you mean 'model.layers.1'"):
        LocalTeacher(tiny_llama()).signal(tiny_batch(), Want(features=("model.layer.1",)))


def test_nothing_of_it_is_trained_or_saved():
    teacher = LocalTeacher(tiny_llama())
    module = CompressionModule(student=tiny_llama(seed=1), teacher=teacher)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training
    module.train()
    assert not teacher.model.training
    assert all(key.startswith("student.") for key in module.state_dict())


def test_its_signal_meets_autograd_as_a_constant():
    signal = LocalTeacher(tiny_llama()).signal(tiny_batch(), LOGITS)
    scale = torch.ones((), requires_grad=True)
    (logits_of(signal) * scale).sum().backward()
    assert scale.grad is not None


def test_a_lower_dtype_casts_weights_and_spares_the_rotary_frequencies():
    model, batch = tiny_llama(), tiny_batch()
    expected = model(input_ids=batch["input_ids"]).logits
    teacher = LocalTeacher(model, dtype="bfloat16")
    signal = teacher.signal(batch, LOGITS)
    assert signal.hidden_SLH.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert 0 < (logits_of(signal).float() - expected).abs().max() < 0.05


def test_tied_weights_stay_tied_in_a_lower_dtype():
    model = tiny_llama(tie_word_embeddings=True)
    LocalTeacher(model, dtype="bfloat16").signal(tiny_batch(), LOGITS)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_model_that_caps_its_logits_is_refused():
    model = tiny_llama()
    model.lm_head.register_forward_hook(lambda _m, _a, out: torch.tanh(out) * 0.01)
    with pytest.raises(UnsupportedModel, match="cap or scale"):
        LocalTeacher(model).signal(tiny_batch(), LOGITS)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(BadInput, match="int3"):
        LocalTeacher(tiny_llama(), dtype="int3")


def test_a_saved_model_loads_frozen_and_equal(tmp_path):
    model, batch = tiny_llama(), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = load_hf_teacher(str(tmp_path))
    assert not any(p.requires_grad for p in loaded.parameters())
    expected = model(input_ids=batch["input_ids"]).logits
    assert torch.equal(logits_of(LocalTeacher(loaded).signal(batch, LOGITS)), expected)
    assert LocalTeacher(loaded).name_or_path == str(tmp_path)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(BadInput, match=r"pytorch_model.bin.*save_pretrained"):
        load_hf_teacher(str(tmp_path))


def tiny_bert(**changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=64, intermediate_size=64, **sizes, num_labels=3, **changes)
    return BertForSequenceClassification(config)


def test_an_encoder_without_a_head_teaches_no_classes_and_begins_a_student(tmp_path):
    tiny_bert().bert.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"lacks 2 tensors of a Bert.*classifier\.bias"):
        load_hf_teacher(str(tmp_path), task="classification")
    student = load_hf_teacher(str(tmp_path), task="classification", new_head=True)
    assert student.classifier.weight.shape[0] == 3


def test_a_layer_that_is_missing_is_no_new_head(tmp_path):
    model = tiny_bert()
    weights = {k: v for k, v in model.state_dict().items() if "layer.0.output.dense" not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(BadInput, match=r"bert\.encoder\.layer\.0\.output\.dense\.bias"):
        load_hf_teacher(str(tmp_path), task="classification", new_head=True)


def test_an_encoder_without_a_pooler_embeds(tmp_path):
    tiny_bert().bert.save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in whole.items() if not k.startswith("pooler.")}
    assert len(kept) < len(whole)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_hf_teacher(str(tmp_path), task="embedding").config.hidden_size == 32
    assert open_model(tmp_path).task == "embedding"


@pytest.mark.parametrize(
    ("path", "message"),
    [("./no/such/folder", "there is no folder"), ("{tmp}", "holds no config.json")],
)
def test_a_wrong_path_is_refused_early(tmp_path, path, message):
    with pytest.raises(BadInput, match=message):
        check_checkpoint(path.format(tmp=tmp_path))


def test_a_hub_name_offline_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE"):
        check_checkpoint("nobody/nothing")


class Words:
    def __init__(self, *words, added=()):
        self.words, self.added = words, added

    def get_vocab(self):
        return {word: index for index, word in enumerate((*self.words, *self.added))}

    def get_added_vocab(self):
        return {word: index for word, index in self.get_vocab().items() if word in self.added}


def test_equal_vocabularies_pass():
    check_vocabulary(Words("a", "b"), Words("a", "b"))


def test_different_vocabularies_are_refused_with_numbers():
    with pytest.raises(BadInput, match=r"3 and 3 tokens, 2 of the 2 shared .* 2 known to one"):
        check_vocabulary(Words("a", "b", "c"), Words("b", "a", "d"))


@pytest.mark.parametrize(
    "student",
    [
        Words("a", "b", added=["<end>"]),
        Words("a", "b"),
        Words("a", "b", added=["<s>", "<pad>"]),
        Words("a", "b", "[unused]"),
    ],
)
def test_special_tokens_of_another_name_or_of_one_alone_pass(student):
    check_vocabulary(Words("a", "b", added=["<s>"]), student)


def test_a_special_token_under_another_id_is_refused():
    with pytest.raises(BadInput, match=r"2 of the 4 shared .*'<pad>', '<s>'"):
        check_vocabulary(
            Words("a", "b", added=["<s>", "<pad>"]), Words("a", "b", added=["<pad>", "<s>"])
        )
