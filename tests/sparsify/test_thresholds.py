"""The k-th largest magnitude is exact, additive over shards, and breaks ties by index."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.sparsify.thresholds import Shards, keep_largest, kth_largest

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=40), data=st.data())
def test_kth_largest_equals_sorting(values, data):
    weight = torch.tensor(values)
    kept = data.draw(st.integers(1, len(values)))
    expected = weight.abs().sort(descending=True).values[kept - 1]
    assert kth_largest([weight], kept=kept).magnitude == expected


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=40), data=st.data())
def test_exact_count_and_lowest_index_wins_among_ties(values, data):
    weight = torch.tensor(values, dtype=torch.float32)
    kept = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[order[:kept]] = True
    assert keep_largest([weight], kept=kept)[0].equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_density_over_many_chunks_in_every_dtype(dtype):
    torch.manual_seed(0)
    weight = torch.randn(600, 1000).to(dtype)  # bf16 has thousands of ties here
    kept = weight.numel() // 5
    (mask,) = keep_largest([weight], kept=kept)
    assert int(mask.sum()) == kept
    assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_the_textbook_snippet_prunes_20_percent_where_80_were_asked():
    """`k = numel * (1 - sparsity); |w| > kthvalue(k)`: k counts from the small end."""
    weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    sparsity = 0.8
    k = int(weight.numel() * (1 - sparsity))
    wrong = weight.abs() > weight.abs().flatten().kthvalue(k)[0]
    assert (~wrong).float().mean() == pytest.approx(0.2, abs=1e-3)
    (right,) = keep_largest([weight], kept=round(weight.numel() * (1 - sparsity)))
    assert int((~right).sum()) == 8000


@pytest.mark.parametrize("kept", [0, 1, 57, 119, 120])
def test_shards_together_keep_what_one_rank_would(kept):
    """Two ranks, two layers, many ties; the all-reduce is simulated by running ranks in turn."""
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randint(-2, 3, (10, n), generator=generator).float() for n in (4, 8)]
    whole = keep_largest(layers, kept=kept)
    pieces = [[layer.chunk(2)[rank] for layer in layers] for rank in (0, 1)]
    masks = run_ranks(pieces, kept)
    for index, expected in enumerate(whole):
        assert torch.cat([masks[0][index], masks[1][index]]).equal(expected)


def run_ranks(pieces, kept):
    """Threads with a barrier stand in for ranks."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, slots = Barrier(len(pieces)), [None] * len(pieces)

    def on_rank(rank):
        def all_reduce(counts):
            slots[rank] = counts
            barrier.wait()
            total = sum(slots)
            barrier.wait()
            return total

        shards = Shards(rank=rank, world_size=len(pieces), all_reduce=all_reduce)
        return keep_largest(pieces[rank], kept=kept, shards=shards)

    with ThreadPoolExecutor(len(pieces)) as pool:
        return list(pool.map(on_rank, range(len(pieces))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 weights"):
        keep_largest([torch.tensor([1.0, bad, 2.0])], kept=1)


def test_keeping_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="cannot keep 4 of 3"):
        keep_largest([torch.zeros(3)], kept=4)


def test_zeros_of_both_signs_tie():
    (mask,) = keep_largest([torch.tensor([0.0, -0.0, 0.0])], kept=2)
    assert mask.tolist() == [True, True, False]
