"""Claims about the documents: links lead somewhere, code runs, the site builds warning-free."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compress.callbacks
from compress.scripts.lib.sweep_definition import list_sweeps

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("callbacks/*.md"), *ROOT.glob("docs/**/*.md")])
READMES = ["README.md", "README.zh.md"]


def links_of(text: str) -> list[str]:
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in t]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    lost = [
        link for link in links_of(page.read_text(encoding="utf-8"))
        if (target := link.partition("#")[0])
        and not (page.parent / target).exists()
    ]  # fmt: skip
    assert lost == []


@pytest.mark.parametrize("name", READMES)
def test_the_code_of_the_readme_runs(name, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 2
    program = "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_both_readmes_show_the_same_code_and_commands():
    def code(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        return [
            re.sub(r"\s*#.*", "", block) for block in re.findall(r"```\w*\n(.*?)```", text, re.S)
        ]

    assert code("README.md") == code("README.zh.md")


def test_every_callback_has_a_card_with_all_its_parts():
    parts = (
        "Idea", "Settings at their extremes", "Composes with", "Exports to", "Measured", "Paper",
    )  # fmt: skip
    for name in compress.callbacks.__all__:
        source = getattr(compress.callbacks, name).__module__.rpartition(".")[2]
        if source == "base":
            continue
        card = ROOT / "callbacks" / f"{source}.md"
        text = card.read_text(encoding="utf-8") if card.exists() else ""
        assert [p for p in parts if f"**{p}" not in text] == [], card.name


@pytest.mark.parametrize("name", READMES)
def test_a_readme_names_every_callback(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    absent = [n for n in compress.callbacks.__all__ if n not in text and n != "CompressionCallback"]
    assert absent == []


def test_sweeps_are_listed_where_they_are_explained():
    assert "sweep=bits_vs_density" in (ROOT / "docs/how-to/sweeps.md").read_text()
    assert "bits_vs_density" in list_sweeps()


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the docs extra")
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f",
         "docs/mkdocs/mkdocs.yml", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr and (tmp_path / "site" / "methods" / "index.html").exists()
    absent = [
        page for page, example in EXAMPLES.items()
        if not shows(tmp_path / "site" / page, ROOT / "docs" / "examples" / example)
    ]  # fmt: skip
    assert absent == []


EXAMPLES = {
    "how-to/own-callback.html": "own_callback.py",
    "how-to/own-lightning-module.html": "own_lightning_module.py",
    "how-to/own-target.html": "own_target.py",
    "how-to/from-hf-trainer.html": "hf_trainer.py",
}


def shows(page: Path, example: Path) -> bool:
    """Whether the page holds the example's code, whatever the colours around its words."""
    text = html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))
    return example.read_text(encoding="utf-8").strip() in text
