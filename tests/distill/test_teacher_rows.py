import pytest
import torch

from compress.distill.teacher_rows import TeacherRows, common_vocabulary
from compress.errors import BadInput
from tests.distill.support import make_signal


def test_rows_of_a_part_of_the_batch_are_found():
    signal = make_signal(rows=2, sequences=torch.tensor([2, 0]))
    rows = TeacherRows(signal, sequences=3, length=5)
    assert rows.covered(torch.tensor([0, 6, 10])).tolist() == [0, 2]
    found = rows.logits(torch.tensor([11, 1]), size=11)
    expected = signal.head(torch.stack([signal.hidden_SLH[0, 1], signal.hidden_SLH[1, 1]]))
    torch.testing.assert_close(found, expected)


def test_what_exceeds_the_common_vocabulary_takes_no_mass():
    rows = TeacherRows(make_signal(vocab=11), sequences=3, length=5)
    log_probs = rows.log_probs(torch.arange(15), size=7)
    assert log_probs.shape == (15, 7)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(15, dtype=torch.float64))


def test_other_positions_are_refused():
    with pytest.raises(BadInput, match=r"\(3, 5\) are not the student's \(3, 6\)"):
        TeacherRows(make_signal(), sequences=3, length=6)


def test_padding_is_told_from_another_tokenizer():
    assert common_vocabulary(32000, 32064) == 32000
    assert common_vocabulary(32064, 32128, vocab_size=32000) == 32000
    with pytest.raises(BadInput, match="token by token"):
        common_vocabulary(32000, 128256)
    with pytest.raises(BadInput, match="vocab_size=33000 exceeds"):
        common_vocabulary(32000, 32064, vocab_size=33000)
