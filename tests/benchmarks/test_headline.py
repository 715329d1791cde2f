"""The headline says what was missed, and why; onnxruntime's table writes its own notes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def program(name, monkeypatch):
    """A benchmark's module, its folder last on the path, as when it runs as a script."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def headline(monkeypatch):
    return program("headline", monkeypatch)


def measured(latency=0.5, throughput=2.0, floor=None):
    def ratio(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    arms = {who: {"latency_ms": {"mean": 10.0}} for who in ("model", "baseline")}
    return {
        "one": {**arms, "ratios": {"latency": ratio(latency)}},
        "several": {"ratios": {"throughput": ratio(throughput)}},
        "peaks": {"model": 1, "baseline": 2}, "load": {"batch": 8}, "floor": floor,
    }  # fmt: skip


def subject(kept=1.0):
    told = {"metric": "loss", "model": 2.0, "original": 2.0, "rows": 16,
            "kept": {"value": kept, "low": kept, "high": kept}}  # fmt: skip
    return {"bytes": 100, "original_bytes": 500, "quality": told}


def filled(headline, **figures):
    table = headline.table_of([], headline.Settings())
    headline.add(table, "decoder", "vllm", subject(), measured(**figures))
    return table


def test_a_row_has_every_column_and_the_decoder_makes_the_headline(headline):
    table = filled(headline)
    assert len(table["rows"][0]) == len(table["columns"])
    assert table["headline"]["latency_ratio"] == 0.5 and table["headline"]["size_ratio"] == 5.0


def test_what_was_missed_is_named_with_its_goal(headline):
    notes = "\n".join(filled(headline)["notes"])
    assert "misses latency 0.50 (goal 0.3), throughput 2.00 (goal 3.0)" in notes
    assert "misses" not in "\n".join(filled(headline, latency=0.2, throughput=4.0)["notes"])


def test_the_engines_own_time_is_told_beside_the_originals(headline):
    notes = "\n".join(filled(headline, floor=4.0)["notes"])
    assert "4.00 ms, 0.40 of the original's latency" in notes


def test_onnxruntimes_table_says_where_two_arms_cannot_be_told_apart(monkeypatch):
    onnx = program("onnx_table", monkeypatch)

    def line(arm, low, high, size):
        return {"model": "m", "batch": 1, "arm": arm, "low": low, "high": high, "bytes": size}

    lines = [line("fp32", 1, 1, 400), line("int8, a product a layer", 0.4, 0.5, 200)]
    assert "undecided" in onnx.undecided([*lines, line("int8", 0.45, 0.6, 100)])
    assert onnx.undecided([*lines, line("int8", 0.6, 0.7, 100)]) == ""
    assert onnx.shrunk([*lines, line("int8", 0.6, 0.7, 100)], "int8") == "4.0x (m)"


def test_the_size_with_berts_vocabulary_is_counted(headline, tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 2048, "hidden_size": 384}')
    small = {"original": str(tmp_path), "original_bytes": 46_000_000, "bytes": 7_000_000}
    # 28,474 rows more: 43.7 MB in float32, 21.9 in bfloat16, 10.9 and their scales in int8
    assert "would be 3.11 (table in bfloat16" in headline.with_berts_vocabulary("vllm", small)
    assert "would be 4.97 (table in int8" in headline.with_berts_vocabulary("onnxruntime", small)


def test_rows_that_are_not_measured_again_stay_with_their_notes(headline, tmp_path):
    path, old = tmp_path / "headline.json", filled(headline, latency=0.2)
    headline.add(old, "decoder", "onnxruntime-cached", subject(), measured())
    path.write_text(json.dumps({**old, "date": "2001-01-01"}))
    new = headline.table_of([], headline.Settings())
    headline.add(new, "decoder", "onnxruntime", subject(), measured(latency=0.9))
    table = headline.with_kept(path, new)
    assert [row[:2] for row in table["rows"]] == [
        ["decoder", "vllm"], ["decoder", "onnxruntime-cached"], ["decoder", "onnxruntime"],
    ]  # fmt: skip
    assert table["headline"]["latency_ratio"] == 0.2
    dated = [f"decoder in {e} was measured on 2001-01-01." for e in ("vllm", "onnxruntime-cached")]
    assert [note for note in table["notes"] if "was measured" in note] == dated
    # the same run writes once more, after its next row
    path.write_text(json.dumps(table))
    again = headline.with_kept(path, new)
    assert [note for note in again["notes"] if "was measured" in note] == dated
    assert any(note.startswith("decoder in onnxruntime-cached misses") for note in table["notes"])


def test_schemes_that_are_not_measured_again_stay_in_their_table(tmp_path, monkeypatch):
    table = program("quantization_table", monkeypatch)
    path = tmp_path / "quantization.json"
    rows = [["W8A8", 1], ["W4A8 g32", 2]]
    notes = ["W8A8, qat: a", "W4A8 g32, qat: b", "W4A8 g32: recovers little"]
    path.write_text(json.dumps({"date": "2001-01-01", "rows": rows, "notes": notes}))
    kept, told = table.with_kept(path, [["W4A16 g32", 3], ["W4A8 g32", 4]])
    assert kept == [["W8A8", 1], ["W4A16 g32", 3], ["W4A8 g32", 4]]
    assert told == ["Measured 2001-01-01: W8A8.", "W8A8, qat: a"]
