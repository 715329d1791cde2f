"""The results page says what the tables hold, and no table is left out of it."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("render", ROOT / "benchmarks" / "render_results.py")
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)

TABLE = {
    "title": "T", "question": "Q?", "command": "python x.py", "machine": "m", "date": "2026-01-01",
    "columns": ["arm", "loss"], "rows": [["plain", 2.5], ["other", None]], "notes": ["n"],
}  # fmt: skip


def test_the_committed_page_is_what_the_tables_hold(monkeypatch):
    monkeypatch.setattr("sys.argv", ["render_results.py", "--check"])
    assert render.main() == 0


def test_every_row_is_shown_and_what_is_missing_is_a_dash():
    text = render.page({"t": TABLE})
    assert "| plain | 2.5 |" in text and "| other | - |" in text


@pytest.mark.parametrize("change", [{"rows": [["plain"]]}, {"command": ...}])
def test_a_broken_table_is_refused(tmp_path, change):
    table = {k: v for k, v in {**TABLE, **change}.items() if v is not ...}
    (tmp_path / "t.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"t\.json"):
        render.load(tmp_path)


def test_the_headline_has_all_its_keys_even_unmeasured():
    assert set(render.summary({"t": TABLE})["headline"]) == set(render.HEADLINE)
