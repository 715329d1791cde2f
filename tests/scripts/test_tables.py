"""Claims about the two tables on the terminal."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from compress.scripts.lib.tables import first_table, last_table
from tests.scripts.fixture_runs import synthetic_report
from tests.tiny import TinyData, tiny_llama


def plain(encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=stream, width=120, markup=False), stream


def printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


def last(report, *, encoding="utf-8", **settings) -> str:
    console, stream = plain(encoding)
    last_table(report, console=console, **settings)
    return printed(stream)


def first(config, **settings) -> str:
    console, stream = plain()
    data = SimpleNamespace(train=TinyData(rows=64), validation=TinyData(rows=8))
    settings = {"teacher": tiny_llama(layers=4), **settings}
    first_table(config, data=data, student=tiny_llama(), console=console, **settings)
    return printed(stream)


def test_the_last_table_tells_quality_size_proof_and_the_next_command(tmp_path):
    text = last(synthetic_report(), run_dir=tmp_path, page=tmp_path / "report.html")
    row = next(line for line in text.splitlines() if "Compressed student" in line)
    assert "3.4210" in row and "4.81 MB" in row and "4.41x smaller" in row
    assert "Verified:   yes" in text and "99.1 % of the dense student kept" in text
    assert f"--model {tmp_path / 'export/vllm'}" in text and str(tmp_path / "report.html") in text


def test_the_rows_of_a_comparison_stand_only_where_it_was_made():
    report = synthetic_report()
    assert "Compressed, labels only" in last(report)
    del report["quality"]["compare"]
    assert "labels only" not in last(report)


@pytest.mark.parametrize("report", [{}, {"status": "failed", "error": "no space", "exports": None}])
def test_missing_figures_are_dashes(report):
    text = last(report)
    assert "—" in text and "None" not in text and "nothing exported" in text


def test_a_share_of_what_ptq_lost_is_told_only_where_it_means_something():
    report = synthetic_report()
    assert "83.9 % is won back" in last(report)
    report["quality"]["compare"] |= {"ptq": 3.41209, "recovered": -99.0}
    text = last(report)
    assert "-9" not in text and "lost nothing that could be won back" in text


def test_settings_are_told_where_they_differ_from_the_recipe():
    qat = {"_target_": "compress.callbacks.QuantizationAwareTraining", "scheme": "W8A8"}
    text = first({"callbacks": {"qat": {**qat, "init": "rtn", "percentile": 0.9}}})
    assert "scheme=W8A8, percentile=0.9" in text and "init=" not in text


def test_a_failed_run_says_so():
    assert "failed: no space" in last({"status": "failed", "error": "no space"})


def test_no_next_command_leads_to_an_unverified_export():
    text = last(synthetic_report(exports=[{"target": "vllm", "path": "p", "verified": False}]))
    assert "Next:" not in text and "Verified:   NO" in text


def test_where_no_terminal_is_the_text_is_plain():
    text = last(synthetic_report(), encoding="ascii")
    assert "\x1b" not in text and text.isascii() and "Compressed student" in text


def test_brackets_in_names_are_no_markup():
    assert "[red]x[/red]" in last({"recipe": "[red]x[/red]", "status": "finished"})


def test_a_long_path_is_not_broken_over_lines(tmp_path):
    folder = tmp_path / ("deep/" * 40)
    assert f"--model {folder / 'export/vllm'}\n" in last(synthetic_report(), run_dir=folder)


def test_the_first_table_tells_what_will_happen():
    config = {
        "trainer": {"max_steps": 10, "batch_size": 4, "accumulate": 2}, "target": "vllm",
        "callbacks": {"qat": {"_target_": "x", "scheme": "W4A16"}, "sparse": {"density": 0.5}},
    }  # fmt: skip
    text = first(config)
    assert "scheme=W4A16" in text and "density=0.5" in text and "_target_" not in text
    assert "10 of 4 x 16 tokens: 1,280 tokens, 1.2 times the data" in text
    assert "1,024 tokens to train on; 128 held out" in text


def test_the_least_memory_counts_adam_for_the_student_and_weights_for_the_teacher():
    student = sum(p.numel() for p in tiny_llama().parameters())
    teacher = sum(p.numel() for p in tiny_llama(layers=4).parameters())
    assert f"{(16 * student + 4 * teacher) / 1e3:.0f} kB and activations" in first({})


@pytest.mark.parametrize(
    ("host", "said"), [("cached", "its signals are cached"), ("deepspeed", "over the ranks")]
)
def test_a_teacher_without_weights_here_takes_no_memory_here(host, said):
    with torch.device("meta"):
        skeleton = tiny_llama(layers=4)
    text = first({"teacher": {"host": host}}, teacher=skeleton)
    student = sum(p.numel() for p in tiny_llama().parameters())
    assert f"{16 * student / 1e3:.0f} kB" in text
    assert said in text


def test_a_served_teacher_is_named_without_its_key():
    served = {"url": "https://me:hunter2@host:8000", "model": "big"}
    logits = {"_target_": "compress.callbacks.LogitsDistillation"}
    config = {"teacher": {"host": "served", "served": served}, "callbacks": {"logits": logits}}
    text = first(config, teacher=None)
    assert "big, served by https://" in text and "hunter2" not in text
    assert "none" in first({**config, "callbacks": {}}, teacher=None)


def test_quiet_prints_nothing():
    assert first({}, quiet=True) == "" and last(synthetic_report(), quiet=True) == ""
