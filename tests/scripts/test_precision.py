"""`auto` is bfloat16 where the device has instructions for it, and float32 elsewhere."""

import pytest
import yaml
from omegaconf import OmegaConf

from compress.errors import BadInput
from compress.scripts.lib import precision
from compress.scripts.lib.config import compose
from compress.scripts.lib.precision import processor_flags, settle_precision


def settled(monkeypatch, tmp_path, *words, native=True, recorded=None):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda accelerator: native)
    path = tmp_path / "config.yaml"
    if recorded:
        path.write_text(yaml.safe_dump(recorded))
    config = compose(["recipe=distill_qat", *words])
    settle_precision(config, recorded=path)
    return config.trainer.precision, config.teacher.dtype


def test_auto_follows_the_processor(monkeypatch, tmp_path):
    assert settled(monkeypatch, tmp_path, native=True) == ("bf16-mixed", "bfloat16")
    assert settled(monkeypatch, tmp_path, native=False) == ("32-true", "float32")


def test_what_is_asked_for_is_taken(monkeypatch, tmp_path):
    words = ["trainer.precision=bf16-mixed", "teacher.dtype=bfloat16"]
    assert settled(monkeypatch, tmp_path, *words, native=False) == ("bf16-mixed", "bfloat16")


def test_a_run_goes_on_in_the_precision_it_began_in(monkeypatch, tmp_path):
    began = {"trainer": {"precision": "bf16-mixed"}, "teacher": {"dtype": "bfloat16"}}
    going_on = settled(monkeypatch, tmp_path, "ckpt=last", native=False, recorded=began)
    assert going_on == ("bf16-mixed", "bfloat16")
    # another run's folder says nothing about a new run
    assert settled(monkeypatch, tmp_path, native=False, recorded=began)[0] == "32-true"


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "is damaged"), ("- 1", "no trainer, teacher"), ("", "no trainer")]
)
def test_a_damaged_record_is_told_where_it_is_needed(monkeypatch, tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        settled(monkeypatch, tmp_path, "ckpt=last")
    words = ["ckpt=last", "trainer.precision=32-true", "teacher.dtype=float32"]
    assert settled(monkeypatch, tmp_path, *words) == ("32-true", "float32")


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx2 f16c", False),
        ("flags\t\t: avx512f avx512_bf16", True),
        ("Features\t: asimd bf16", True),
    ],
)
def test_a_processor_tells_by_its_flags(tmp_path, line, native):
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\n{line}\n")
    flags = processor_flags(tmp_path / "cpuinfo")
    assert precision.MULTIPLIES.isdisjoint(flags) is not native
    assert list(processor_flags(tmp_path / "absent")) == []


def test_a_teacher_that_is_none_has_no_dtype_to_settle(tmp_path):
    config = OmegaConf.create(
        {"ckpt": None, "trainer": {"precision": "auto", "accelerator": "cpu"}, "teacher": {}}
    )
    settle_precision(config, recorded=tmp_path / "config.yaml")
    assert config.trainer.precision in ("32-true", "bf16-mixed") and "dtype" not in config.teacher
