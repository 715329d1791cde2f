"""The bytes that a report names, from the teacher's files or its modules alone."""

import pytest
import torch
from omegaconf import OmegaConf

from compress.scripts.lib.build import build_student
from compress.scripts.lib.facts import model_bytes, stored_bytes, teacher_bytes, weight_files
from compress.teachers.checkpoints import skeleton_of
from compress.teachers.local import load_hf_teacher
from tests.tiny import tiny_llama


def held(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("tied", [False, True])
def test_modules_without_weights_count_as_the_model_does(tied, tmp_path):
    model = tiny_llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    parameters = {p.data_ptr(): p.numel() for p in model.parameters()}
    skeleton = skeleton_of(tmp_path)
    assert model_bytes(skeleton) == model_bytes(model) == 4 * sum(parameters.values())
    assert teacher_bytes(skeleton, checkpoint=None) == model_bytes(model)


def test_a_16_bit_checkpoint_counts_two_bytes_a_weight_though_it_is_computed_in_float32(tmp_path):
    tiny_llama().bfloat16().save_pretrained(tmp_path)
    teacher = load_hf_teacher(str(tmp_path)).float()
    for model in (teacher, skeleton_of(tmp_path)):
        assert teacher_bytes(model, checkpoint=tmp_path) == held(tmp_path)
        assert teacher_bytes(model, checkpoint=None) == model_bytes(teacher) // 2


def test_the_shards_of_a_checkpoint_count_once_and_other_variants_do_not(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = held(tmp_path)
    assert len(weight_files(tmp_path)) > 1
    (tmp_path / "consolidated.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "model.onnx").write_bytes(b"0" * 1000)
    assert teacher_bytes(model, checkpoint=tmp_path) == shards


def test_a_folder_without_weight_files_counts_by_the_dtype_of_the_configuration(tmp_path):
    model = tiny_llama()
    model.config.dtype = torch.float16
    assert teacher_bytes(model, checkpoint=tmp_path) == model_bytes(model) // 2


def test_a_dense_student_counts_as_its_16_bit_checkpoint_holds_it(tmp_path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    settings = {"student": {"kind": "hf", "path": str(tmp_path)}, "task": "causal_lm"}
    student = build_student(OmegaConf.create(settings), None)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert stored_bytes(student) == model_bytes(student) // 2
