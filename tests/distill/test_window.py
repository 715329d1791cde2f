import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.distill.window import check_window, taught_share, teaches
from compress.errors import BadInput


@settings(deadline=None)
@given(total=st.integers(1, 300), start=st.integers(0, 300), length=st.integers(1, 300))
def test_the_share_told_beforehand_is_the_share_of_steps_that_teach(total, start, length):
    stop = start + length
    taught = sum(teaches(step, start=start, stop=stop) for step in range(total))
    assert taught_share(total=total, start=start, stop=stop) == pytest.approx(taught / total)


def test_no_window_is_the_whole_run_and_rows_scale_it():
    assert all(teaches(step, start=0, stop=None) for step in (0, 10**9))
    assert taught_share(total=10, rows=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize(("start", "stop"), [(4, 4), (5, 2), (-1, None), (10, None), (12, 20)])
def test_a_window_without_a_step_is_refused(start, stop):
    with pytest.raises(BadInput, match="never work"):
        check_window(start=start, stop=stop, total=10)
