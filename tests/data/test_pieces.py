import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.pieces import check_shares, cut_pieces, split_by_key, stable_key
from compress.errors import BadInput


@given(st.lists(st.text()), st.integers(1, 9))
def test_pieces_joined_are_the_text_and_none_is_too_long(blocks, longest):
    pieces = list(cut_pieces(blocks, longest=longest))
    assert "".join(pieces) == "".join(blocks)
    assert all(0 < len(piece) <= longest for piece in pieces)


def test_keys_are_the_same_on_every_machine():
    assert stable_key("os.py", seed=0) == 4298168646527498464
    assert stable_key("os.py", seed=1) != stable_key("os.py", seed=0)


def test_a_new_row_moves_no_old_row_to_another_part():
    keys = [stable_key(str(i), seed=0) for i in range(200)]
    before = split_by_key(keys[:150], validation_share=0.1, test_share=0.1)
    after = split_by_key(keys, validation_share=0.1, test_share=0.1)
    for part, rows in before.items():
        assert set(rows) == {row for row in after[part] if row < 150}


def test_parts_have_about_their_shares_and_share_no_row():
    keys = [stable_key(str(i), seed=3) for i in range(4000)]
    parts = split_by_key(keys, validation_share=0.1, test_share=0.2)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(4000))
    assert 300 < len(parts["validation"]) < 500
    assert 700 < len(parts["test"]) < 900


def test_few_rows_still_fill_every_part():
    keys = [2**62 + 1, 2**62 + 2, 2**62 + 3]
    parts = split_by_key(keys, validation_share=0.05, test_share=0.05)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 1, "validation": 1, "test": 1,
    }  # fmt: skip


def test_equal_keys_are_never_torn_apart():
    parts = split_by_key([5 * 2**59] * 4 + [2**62], validation_share=0.01, test_share=0)
    assert len(parts["validation"]) in (1, 4)


@pytest.mark.parametrize("shares", [(0, 0.1), (0.5, 0.5), (-0.1, 0), (1.0, 0)])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(BadInput, match="validation_share"):
        check_shares(*shares)
