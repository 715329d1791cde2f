import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.distill.assignment import ValueTable, assign, audit_rows
from compress.errors import BadInput

NAN = float("nan")


@settings(deadline=None)
@given(share=st.floats(0, 1), sequences=st.integers(1, 64), calls=st.integers(1, 200))
def test_audits_keep_to_their_share(share, sequences, calls):
    total = sum(audit_rows(share, sequences=sequences, calls=n) for n in range(calls))
    assert abs(total - share * sequences * calls) <= 1.0


def routes(router, difficulty, capacities, values=None):
    rows = torch.tensor(difficulty)
    worth = {p: torch.tensor(v) for p, v in (values or {}).items()}
    return assign(
        router, difficulty_B=rows, capacities=capacities, values_BP=worth,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.mark.parametrize(("router", "rows"), [("hardest", [1, 3]), ("easiest", [0, 2])])
def test_fixed_routers_go_by_difficulty(router, rows):
    assert routes(router, [1.0, 4.0, 2.0, 3.0], {"full": 2})["full"].tolist() == rows


def test_worth_decides_and_not_difficulty():
    chosen = routes("difficulty", [9.0, 1.0, 5.0], {"full": 1}, {"full": [0.1, 0.7, 0.2]})
    assert chosen["full"].tolist() == [1]


def test_a_cheap_path_that_is_as_good_leaves_the_dear_one_to_others():
    values = {"full": [1.0, 1.0], "exit": [0.95, 0.1]}
    chosen = routes("difficulty", [1.0, 1.0], {"full": 1, "exit": 1}, values)
    assert chosen["full"].tolist() == [1] and chosen["exit"].tolist() == [0]


def test_what_was_never_measured_is_tried_first_and_ties_go_to_the_harder_row():
    chosen = routes("difficulty", [1.0, 2.0, 3.0], {"full": 1}, {"full": [0.5, NAN, 0.5]})
    assert chosen["full"].tolist() == [1]
    chosen = routes("difficulty", [1.0, 2.0, 3.0], {"full": 1}, {"full": [0.5, 0.5, 0.5]})
    assert chosen["full"].tolist() == [2]


@settings(deadline=None)
@given(
    hardness=st.lists(st.floats(0, 10), min_size=1, max_size=12),
    full=st.integers(0, 12), small=st.integers(0, 12),
)  # fmt: skip
def test_no_row_takes_two_paths_and_no_path_more_than_its_capacity(hardness, full, small):
    chosen = routes("random", hardness, {"full": full, "exit": small})
    rows = torch.cat(list(chosen.values()))
    assert len(rows) == len(set(rows.tolist())) == min(len(hardness), full + small)
    assert len(chosen["full"]) <= full and len(chosen["exit"]) <= small


def table(sums, counts):
    made = ValueTable(paths=["full", "exit"], bins=2, decay=0.5)
    made.update(torch.tensor(sums).double(), torch.tensor(counts).double())
    return made


def test_a_path_opens_when_its_mean_worth_is_above_zero():
    assert table([[1.0, 2.0], [0.5, -0.1]], [[1.0, 1.0]] * 2).open_paths() == ["full", "exit"]
    assert table([[1.0, 2.0], [-0.5, 0.1]], [[1.0, 1.0]] * 2).open_paths() == ["full"]
    assert table([[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]).open_paths() == ["full"]


def test_old_audits_fade_and_unmeasured_bins_stay():
    made = table([[4.0, 2.0], [0.0, 0.0]], [[1.0, 1.0]] * 2)
    made.update(torch.tensor([[0.0, 0.0]] * 2).double(), torch.tensor([[1.0, 0.0]] * 2).double())
    assert made.values_PQ()[0].tolist() == pytest.approx([4 * 0.5 / 1.5, 2.0])


def test_a_table_of_other_settings_is_refused():
    state = table([[1.0, 2.0]] * 2, [[1.0, 1.0]] * 2).state_dict()
    with pytest.raises(BadInput, match=r"\(2, 2\).*this run's is \(1, 4\)"):
        ValueTable(paths=["full"], bins=4).load_state_dict(state)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_an_audit_that_is_no_number_leaves_no_trace(bad):
    seen, plain = (ValueTable(paths=["full", "exit4"], bins=1) for _ in range(2))
    for table in (seen, plain):
        table.update(torch.tensor([[0.5], [0.25]]), torch.ones(2, 1))
    seen.update(torch.tensor([[bad], [0.25]]), torch.ones(2, 1))
    plain.update(torch.tensor([[0.0], [0.25]]), torch.tensor([[0.0], [1.0]]))
    assert torch.equal(seen.sums_PQ, plain.sums_PQ)
    assert torch.equal(seen.counts_PQ, plain.counts_PQ)
    assert seen.open_paths() == ["full", "exit4"]
