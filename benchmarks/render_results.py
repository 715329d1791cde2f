"""Makes docs/results.md and docs/results.json of the measured tables in docs/results/*.json.

    python benchmarks/render_results.py          # writes both
    python benchmarks/render_results.py --check  # fails where they are not what would be written

A table is written by the program that measured it; here nothing is measured and nothing rounded.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEYS = ("title", "question", "command", "machine", "date", "columns", "rows", "notes")
HEADLINE = ("latency_ratio", "throughput_ratio", "size_ratio", "quality_kept")
HEAD = """\
# Results

Every table was written by the command above it. Losses are nats a token on held-out text; ratios
compare two arms of one run on one machine. What was not measured is not here; nothing here was
measured on a GPU unless its machine says so.
"""


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Every table by its file's name.

    Raises:
        ValueError: a table lacks a key, or a row has another length than the columns.
    """
    tables = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for name, table in tables.items():
        missing = [key for key in KEYS if key not in table]
        if missing:
            raise ValueError(f"docs/results/{name}.json lacks {', '.join(missing)}")
        uneven = [row for row in table["rows"] if len(row) != len(table["columns"])]
        if uneven:
            raise ValueError(f"docs/results/{name}.json: {len(uneven)} rows of another length")
    return tables


def page(tables: dict[str, dict[str, Any]]) -> str:
    """The Markdown page."""
    return "\n".join([HEAD, *(section(name, table) for name, table in tables.items())])


def section(name: str, table: dict[str, Any]) -> str:
    """One table with its question, command, machine, date and notes."""
    lines = [f"## {table['title']}", "", table["question"], "", "```", table["command"], "```"]
    lines += [f"{table['machine']}, {table['date']} (`docs/results/{name}.json`)", ""]
    lines.append("| " + " | ".join(table["columns"]) + " |")
    lines.append("|" + "---|" * len(table["columns"]))
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in table["rows"]]
    lines += ["", *(f"- {note}" for note in table["notes"]), ""]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A number in at most four digits after the point, a dash for what is not there."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return str(value).replace("|", "\\|").replace("\n", " ")


def summary(tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What docs/results.json holds: the headline, if it was measured, and every table."""
    measured = tables.get("headline", {}).get("headline", {})
    return {"headline": {key: measured.get(key) for key in HEADLINE}, "tables": tables}


def main() -> int:
    """Writes, or with `--check` compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    check = parser.parse_args().check
    tables = load(DOCS / "results")
    wanted = {
        DOCS / "results.md": page(tables),
        DOCS / "results.json": json.dumps(summary(tables), indent=1, ensure_ascii=False) + "\n",
    }
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    if check:
        print("\n".join(f"{p.name} is stale: run benchmarks/render_results.py" for p in stale))
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
