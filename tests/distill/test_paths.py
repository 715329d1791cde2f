import pytest
import torch

from compress.distill.ledger import Ledger
from compress.distill.paths import ExitPath, FullPath, make_paths, only_layers
from compress.errors import BadInput
from compress.teachers.local import LocalTeacher
from tests.tiny import tiny_batch, tiny_llama


def test_an_exit_runs_the_first_layers_and_leaves_the_teacher_whole():
    model = tiny_llama(layers=4)
    batch = tiny_batch(rows=2)
    before = model(input_ids=batch["input_ids"]).logits
    with only_layers(model, 2):
        assert len(model.model.layers) == 2
    assert len(model.model.layers) == 4
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, before)


def test_an_exit_with_its_first_lens_is_the_shallow_model():
    teacher, batch = LocalTeacher(tiny_llama(layers=4)), tiny_batch(rows=2)
    signal = ExitPath(teacher, layers=3)(batch)
    with only_layers(teacher.model, 3), torch.no_grad():
        expected = teacher.model(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(signal.head(signal.hidden_SLH), expected)


def test_paths_are_told_by_their_names():
    teacher = LocalTeacher(tiny_llama(layers=4))
    other = LocalTeacher(tiny_llama(layers=1))
    paths = make_paths(teacher, {"small": other}, ["small", "exit2"])
    assert list(paths) == ["full", "small", "exit2"]
    assert paths["small"].teacher is other and paths["exit2"].layers == 2
    with pytest.raises(BadInput, match="'smal'"):
        make_paths(teacher, {"small": other}, ["smal"])
    with pytest.raises(BadInput, match="use 1 to 3"):
        make_paths(teacher, {}, ["exit4"])


def test_prices_are_the_flops_of_the_matrix_products():
    model, batch = tiny_llama(layers=2, hidden=32), tiny_batch(rows=3, length=8)
    path, ledger = FullPath(LocalTeacher(model)), Ledger()
    price = ledger.price("full", path, batch)
    linear = sum(
        m.weight.numel() for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )  # fmt: skip
    # fused attention kernels of the CPU are not counted by torch
    assert price == pytest.approx(2 * linear * 8, rel=0.15)
    assert ledger.head_price("full") == 2 * 32 * 128
    half = Ledger()
    lens = 2 * 32 * 32 * 8
    exit_price = half.price("exit1", ExitPath(path.teacher, layers=1), batch)
    assert exit_price == pytest.approx(price / 2 + lens, rel=0.01)


def test_books_are_taken_up_again():
    ledger = Ledger()
    ledger.add("flops", 5.0)
    ledger.add_rows("full", 2)
    again = Ledger()
    again.load_state_dict(ledger.state_dict())
    assert again.as_dict() == ledger.as_dict()
