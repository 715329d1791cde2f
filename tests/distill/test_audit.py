import torch

from compress.contract import DenseSignal, Head, Step, Trace, Want
from compress.distill.audit import LensFit, distance_to, sub_step, trace_signal
from compress.distill.paths import ExitPath, FullPath
from compress.models import trace_causal_lm
from tests.callbacks.distill_support import teacher
from tests.distill.support import make_step
from tests.tiny import TinyData, tiny_llama


def counting_step(*, rows=8):
    tokens = TinyData(rows=rows, seed=5).tokens
    batch = {"input_ids": tokens, "labels": tokens}
    student = tiny_llama()
    return Step(
        batch=batch, student=trace_causal_lm(student, batch), teacher=None, want=Want(), number=0
    )  # fmt: skip


def test_nothing_is_nearer_to_itself():
    step = make_step()
    signal = trace_signal(step.student)
    torch.testing.assert_close(
        distance_to(signal, signal, step), torch.zeros(3), atol=1e-6, rtol=0.0
    )


def test_distance_is_the_mean_over_positions_that_count():
    step = make_step(rows=2, length=3, vocab=5)
    other = DenseSignal(
        hidden_SLH=torch.zeros(2, 3, 4, dtype=torch.float64),
        head=Head(weight_VH=torch.ones(5, 4, dtype=torch.float64)),
    )
    found = distance_to(other, trace_signal(step.student), step)
    log_p = step.student.head(step.student.hidden_BLH).log_softmax(-1)
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    gaps_BL = (uniform * (uniform.log() - log_p)).sum(-1).detach()
    # of length 3 the first two positions have a next token; row 0's third token is no label
    expected = torch.stack([gaps_BL[0, 0], gaps_BL[1, :2].mean()])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_step_of_some_rows_has_their_labels_and_no_gradient():
    step = make_step(rows=3)
    few = sub_step(step, torch.tensor([2, 0]))
    assert few.batch["labels"].equal(step.batch["labels"][[2, 0]])
    assert not few.student.hidden_BLH.requires_grad
    assert not few.student.head.weight_VH.requires_grad


def test_calibration_brings_an_exit_nearer_to_the_whole_teacher():
    strong, step = teacher(), counting_step()
    path = ExitPath(strong, layers=1)
    raw, whole = path.raw(step.batch), FullPath(strong)(step.batch)
    before = distance_to(whole, path.through_lens(raw), step).mean()
    fit = LensFit(path, learning_rate=2e-3)
    for _ in range(30):
        fit.step(raw, whole, step)
    assert distance_to(whole, path.through_lens(raw), step).mean() < 0.7 * before


def test_a_fit_taken_up_again_goes_on_to_the_bit():
    strong, step = teacher(), counting_step()

    def fits(count, state=None):
        path = ExitPath(strong, layers=1)
        fit = LensFit(path, learning_rate=1e-2)
        if state is not None:
            fit.load_state_dict(state)
        for _ in range(count):
            fit.step(path.raw(step.batch), FullPath(strong)(step.batch), step)
        return path, fit

    through, _ = fits(4)
    _, cut = fits(2)
    resumed, _ = fits(2, cut.state_dict())
    assert torch.equal(through.lens.weight, resumed.lens.weight)


def test_a_trace_of_the_student_is_no_teacher_of_gradients():
    step = counting_step(rows=2)
    few = sub_step(step, torch.tensor([0]))
    assert isinstance(few.student, Trace) and few.student.hidden_BLH.shape[0] == 1
