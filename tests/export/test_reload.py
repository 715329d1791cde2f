"""A reloaded export may differ by a code that flipped, and by nothing else."""

import pytest
import torch

from compress.errors import ExportMismatch
from compress.export.plan import collect_plan
from compress.export.reload import TOLERANCE, compare_logits
from compress.export.write import export
from tests.export.onnx_models import quantised, tiny_bert


@pytest.fixture
def made(tmp_path):
    student = quantised(tiny_bert(layers=2), scheme="W8A8", exclude="*classifier,*pooler*")
    result = export(student, target="transformers", path=tmp_path / "out", dtype="bfloat16")
    return student, result.path


def compared(student, folder):
    return compare_logits(student, folder, collect_plan(student), dtype=torch.bfloat16)


def test_an_encoder_in_bfloat16_reloads_exactly(made):
    assert compared(*made) <= TOLERANCE


def off_by(monkeypatch, *, with_rounding, without_rounding=0.0):
    """The reloaded model's logits, moved: by one amount as it is, by another with inputs whole."""
    from compress.export import reload

    honest = reload._logits

    def moved(model, inputs):
        logits = honest(model, inputs)
        if getattr(model, "hf_quantizer", None) is None:
            return logits
        whole = not all(getattr(m, "quantization_enabled", True) for m in model.modules())
        logits[0, 0] += without_rounding if whole else with_rounding
        return logits

    monkeypatch.setattr(reload, "_logits", moved)


def test_a_flipped_code_is_no_difference_of_the_export(made, monkeypatch):
    off_by(monkeypatch, with_rounding=0.002)
    assert compared(*made) == pytest.approx(0.002, abs=1e-4)


@pytest.mark.parametrize(
    "moved",
    [{"with_rounding": 0.1}, {"with_rounding": 0.002, "without_rounding": 0.002}],
    ids=["too far", "not by rounding"],
)
def test_what_no_flipped_code_explains_is_refused(made, monkeypatch, moved):
    off_by(monkeypatch, **moved)
    with pytest.raises(ExportMismatch, match="reloaded logits differ"):
        compared(*made)
