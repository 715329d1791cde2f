"""A package compiled ahead of time computes what the trained student computes."""

import pytest
import torch

from compress.errors import BadInput
from compress.export.inductor import compile_package, open_package
from compress.transforms import INPUT_QUANTIZER
from tests.export.onnx_models import student_of


@pytest.mark.nightly
def test_a_fake_quantised_student_compiles_with_its_quantisers(tmp_path):
    student = student_of("decoder", "int8")
    run = open_package(compile_package(student, tmp_path / "model.pt2", threads=1))
    tokens = torch.randint(0, 128, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        told = student(input_ids=tokens, attention_mask=mask).logits
    # an input on the edge between two codes may fall to either side
    assert (run(tokens, mask) - told).abs().max() < 0.01
    kept = [layer for layer in student.modules() if hasattr(layer, INPUT_QUANTIZER)]
    assert len(kept) == 7  # the student is left as it was


def test_a_package_has_its_own_ending(tmp_path):
    with pytest.raises(BadInput, match=r"ends in \.pt2"):
        compile_package(student_of("decoder", "int8"), tmp_path / "model.so")
