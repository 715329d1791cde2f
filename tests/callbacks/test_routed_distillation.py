import pytest
import torch

from compress.callbacks import RoutedDistillation
from compress.distill.window import taught_share
from compress.errors import BadInput
from compress.module import CompressionModule
from tests.callbacks.distill_support import Curve, assert_resume_is_bit_exact, fit, teacher
from tests.tiny import tiny_llama

BATCH, STEPS = 8, 10


class Counting:
    """A teacher that counts the rows it was shown; one row at a time is the price being taken."""

    def __init__(self) -> None:
        self.inner, self.rows = teacher(), []
        self.model, self.vocab_size = self.inner.model, self.inner.vocab_size

    def signal(self, batch, want):
        self.rows.append(batch["input_ids"].shape[0])
        return self.inner.signal(batch, want)


def run(callback, *, steps=STEPS, counting=None):
    module = CompressionModule(
        student=tiny_llama(layers=2, hidden=32), teacher=counting or teacher(),
        learning_rate=3e-3, warmup_steps=2,
    )  # fmt: skip
    return fit([callback], steps=steps, module=module)


@pytest.mark.parametrize("router", ["difficulty", "random", "hardest", "easiest"])
def test_every_router_spends_exactly_its_capacity(router):
    callback = RoutedDistillation(router=router, capacities={"full": 0.25}, audit_share=0.05)
    counting = Counting()
    run(callback, counting=counting)
    cost = callback.teacher_cost
    assert cost["rows"]["full"] == 2 * STEPS
    assert cost["rows"]["audit"] == int(0.05 * BATCH * STEPS)
    assert sum(cost["rows"].values()) == BATCH * STEPS
    assert sum(counting.rows) == 2 * STEPS + 4 + 2  # two single rows took the price


def test_cost_is_the_share_of_rows_plus_the_audits():
    callback = RoutedDistillation(capacities={"full": 0.25}, audit_share=0.05, router="random")
    run(callback)
    cost = callback.teacher_cost
    taught = (cost["flops"] - cost["audit_flops"]) / cost["flops_if_always_full"]
    assert taught == pytest.approx((2 * STEPS + 4) / (BATCH * STEPS))
    assert 0 < cost["audit_flops"] < 0.1 * cost["flops_if_always_full"]


def test_the_full_router_spends_all_and_no_more():
    callback = RoutedDistillation(router="full")
    run(callback)
    cost = callback.teacher_cost
    assert cost["flops"] == pytest.approx(cost["flops_if_always_full"])
    assert cost["rows"]["skip"] == 0 and cost["audit_flops"] == 0


@pytest.mark.parametrize(
    ("start", "stop"), [(0.2, 0.7), (2, 7)], ids=["shares of the run", "steps"]
)
def test_a_window_of_half_the_run_costs_exactly_half_the_teacher(start, stop):
    callback, counting = RoutedDistillation(router="full", start=start, stop=stop), Counting()
    run(callback, counting=counting)
    cost = callback.teacher_cost
    assert cost["flops"] == pytest.approx(0.5 * cost["flops_if_always_full"])
    assert cost["flops"] / cost["flops_if_always_full"] == pytest.approx(
        taught_share(total=STEPS, start=2, stop=7)
    )
    assert cost["rows"] == {"audit": 0, "skip": 5 * BATCH, "full": 5 * BATCH}
    assert [n for n in counting.rows if n > 1] == [BATCH] * 5


def test_outside_its_window_rows_learn_from_labels_as_without_a_teacher():
    class Names(Curve):
        def on_train_batch_end(self, trainer, *args, **kwargs):
            self.values.append({k for k in trainer.callback_metrics if "routed" in k})

    seen = Names("any")
    module = CompressionModule(
        student=tiny_llama(layers=2, hidden=32), teacher=teacher(), learning_rate=3e-3
    )
    fit([RoutedDistillation(router="full", start=0.0, stop=2), seen], steps=4, module=module)
    assert seen.values[1] == {"train/routed"} and "train/routed_labels" in seen.values[3]


def test_a_window_past_the_runs_end_or_no_share_is_refused():
    with pytest.raises(BadInput, match="never work"):
        run(RoutedDistillation(start=STEPS))
    with pytest.raises(BadInput, match="shares of the run"):
        RoutedDistillation(stop=1.5)


def test_routing_inside_a_window_resumes_bit_exactly(tmp_path):
    def make():
        return RoutedDistillation(capacities={"full": 0.25}, audit_share=0.125, start=2, stop=8)

    assert_resume_is_bit_exact(make, tmp_path)


def test_full_router_teaches_what_logits_distillation_teaches():
    from compress.callbacks import LogitsDistillation

    routed = run(RoutedDistillation(router="full"))[1].student.state_dict()
    plain = run(LogitsDistillation())[1].student.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, routed[name])


def test_an_exit_is_cheaper_and_closed_until_it_is_worth_something():
    callback = RoutedDistillation(
        capacities={"full": 0.25, "exit2": 0.25}, audit_share=0.125, lens_learning_rate=1e-2
    )
    run(callback, steps=24)
    prices, table = callback.router.ledger.prices, callback.router.table
    assert 0.4 < prices["exit2@16"] / prices["full@16"] < 0.6
    assert table.counts_PQ.sum() > 0 and table.values_PQ().isfinite().any()
    opened = "exit2" in table.open_paths()
    assert (callback.teacher_cost["rows"].get("exit2", 0) > 0) or not opened


def test_exits_are_calibrated_unless_told_otherwise():
    def lens(rate):
        callback = RoutedDistillation(
            capacities={"full": 0.25, "exit1": 0.25}, audit_share=0.25, lens_learning_rate=rate
        )
        run(callback, steps=4)
        return callback.router.paths["exit1"].lens.weight.detach()

    assert not torch.equal(lens(1e-3), torch.eye(32))
    assert torch.equal(lens(0.0), torch.eye(32))


def test_a_second_teacher_is_a_path_of_its_own():
    other = teacher(layers=2)
    callback = RoutedDistillation(
        capacities={"full": 0.125, "small": 0.5}, teachers={"small": other}, audit_share=0.125
    )
    run(callback, steps=16)
    rows = callback.teacher_cost["rows"]
    assert rows["full"] == 16 and rows["small"] > 0


def test_routed_training_learns():
    curve = Curve("train/labels")
    fit([RoutedDistillation(capacities={"full": 0.25}, rescale=True), curve], steps=40)
    assert curve.values[-1] < 0.8 * curve.values[0]


def test_resume_is_bit_exact_table_lens_and_cost_included(tmp_path):
    def make():
        return RoutedDistillation(
            capacities={"full": 0.25, "exit2": 0.25}, audit_share=0.125, lens_learning_rate=1e-2
        )

    assert_resume_is_bit_exact(make, tmp_path, steps=16, cut=9)
    through, path = make(), str(tmp_path / "again.ckpt")
    fit([through], steps=16)
    fit([make()], steps=16, max_steps=9, save=path)
    resumed = make()
    fit([resumed], steps=16, ckpt=path)
    assert through.teacher_cost == resumed.teacher_cost
    assert torch.equal(through.router.table.sums_PQ, resumed.router.table.sums_PQ)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"router": "hard"}, "router='hard'"),
        ({"capacities": {"full": 0.99}}, "add up to 1"),
        ({"capacities": {"exit9": 0.2}}, "the teacher has 4"),
        ({"capacities": {"fll": 0.2}}, "'fll'"),
        ({"audit_share": 0.0}, "audit_share"),
        ({"measure": "loss"}, "measure='loss'"),
    ],
)
def test_what_cannot_be_routed_is_refused(settings, word):
    with pytest.raises(BadInput, match=word):
        run(RoutedDistillation(**settings), steps=1)
