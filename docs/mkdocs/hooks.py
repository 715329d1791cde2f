"""What the site is made of beside docs/*.md: the README, the method cards, the API pages.

Cards lie beside their callbacks and the README at the top: they are taken in as they are, with
their links rewritten, so that nothing is written twice.
"""

import re
import shutil
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
TOP = {
    "README.md": "index.md",
    "README.zh.md": "zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
API = {
    "callbacks": ["callbacks"],
    "module": ["module", "contract", "transforms", "joint_loss", "parameter_groups"],
    "quantize": ["quantize.prepare", "quantize.schemes", "quantize.fake_quantize"],
    "sparsify": ["sparsify.masks", "sparsify.thresholds", "sparsify.settings"],
    "distill": ["distill.divergences", "distill.terms", "distill.features", "distill.router"],
    "teachers": ["teachers.local", "teachers.cached", "teachers.served", "teachers.deepspeed"],
    "export": ["export.write", "export.gate", "export.plan", "export.rules", "export.hub"],
    "integrations": ["integrations.transformers"],
}
SECTIONS = {
    "How to": "how-to/",
    "Methods": "methods/",
    "Reference": "",
    "API": "api/",
}


def on_startup(command, dirty):
    """Lays the packages out as they install, so that docstrings are read without importing them.

    At start-up: the plugin that reads them drops a path that is not there when it is configured.
    """
    place = ROOT / "build" / "api" / "compress"
    shutil.rmtree(place, ignore_errors=True)
    only_code = shutil.ignore_patterns("__pycache__", "*.json", "*.jinja", "*.md")
    shutil.copytree(ROOT / "compress", place, ignore=only_code)
    shutil.copytree(ROOT / "callbacks", place / "callbacks", ignore=only_code)


def on_files(files, config):
    """Adds the pages that lie elsewhere or are made here, and the order of all."""
    made = {page: (ROOT / name).read_text() for name, page in TOP.items() if (ROOT / name).exists()}
    cards = {p.stem: p.read_text() for p in sorted((ROOT / "callbacks").glob("*.md"))}
    made |= {f"methods/{name}.md": text for name, text in cards.items()}
    made["methods/index.md"] = overview(cards)
    made |= {f"api/{name}.md": api_page(name, modules) for name, modules in API.items()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=rewritten(text, uri)))
    for picture in sorted((ROOT / "docs").glob("*.svg")):
        if files.get_file_from_path(picture.name) is None:
            files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    pages = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = nav_of(pages)
    return files


def on_page_markdown(markdown, page, config, files):
    """Shows an example's code below the sentence that links to it; the file is no page itself."""

    def shown(match: re.Match) -> str:
        code = (ROOT / "docs" / "examples" / match[2]).read_text(encoding="utf-8")
        return f"`{match[1]}`{match[3]}\n\n```python\n{code}```"

    link = r"^\[([^\]]*)\]\((?:\.\./)*examples/(\w+\.py)\)(.*)$"
    return re.sub(link, shown, markdown, flags=re.M)


def nav_of(pages: list[str]) -> list:
    """The README first, then each folder as a section; what stands at the top is reference."""
    front = [page for page in ("index.md", "zh.md") if page in pages]
    nav: list = [{"Home": "index.md"}] + [{"中文": page} for page in front[1:]]
    for title, prefix in SECTIONS.items():
        inside = [
            page for page in pages
            if (page.startswith(prefix) if prefix else "/" not in page) and page not in front
        ]  # fmt: skip
        inside.sort(key=lambda page: (not page.endswith("index.md"), page))
        if inside:
            nav.append({title: inside})
    return nav


def overview(cards: dict[str, str]) -> str:
    """One line a method, from each card's title and its `Idea`."""
    lines = ["# Methods", "", "Each is a callback; any of them compose.", "",
             "| method | idea | exports to |", "|---|---|---|"]  # fmt: skip
    for name, text in cards.items():
        title = text.splitlines()[0].removeprefix("# ")
        lines.append(
            f"| [{title}]({name}.md) | {part(text, 'Idea')} | {part(text, 'Exports to')} |"
        )
    return "\n".join(lines) + "\n"


def part(card: str, name: str) -> str:
    """The paragraph of a card that opens with its bold name, as one line for a table."""
    found = re.search(rf"^\*\*{name}\.?\*\*(.*?)(?:\n\n|\Z)", card, re.S | re.M)
    text = " ".join(found[1].split()) if found else "see the card"
    return (text[0].upper() + text[1:]).replace("|", "\\|")


def api_page(name: str, modules: list[str]) -> str:
    """A page that mkdocstrings fills."""
    there = [m for m in modules if _exists(m)]
    return f"# API: {name}\n\n" + "\n\n".join(f"::: compress.{module}" for module in there) + "\n"


def _exists(module: str) -> bool:
    place = ROOT / (
        "callbacks" if module == "callbacks" else f"compress/{module.replace('.', '/')}"
    )
    return place.is_dir() or place.with_suffix(".py").exists()


def rewritten(text: str, uri: str) -> str:
    """Links as they are at the top of the repository or beside a callback, seen from the site.

    A link to a file that is no page keeps its words alone.
    """
    up = "../" if "/" in uri else ""

    def moved(match: re.Match) -> str:
        words, target = match[1], match[2]
        path, hash_, anchor = target.partition("#")
        path = path.removeprefix("../")
        if "://" in path or not path:
            return match[0]
        if path in TOP:
            path = up + TOP[path]
        elif path.startswith("callbacks/") and path.endswith(".md"):
            path = f"{up}methods/{path.rsplit('/', 1)[-1]}"
        elif path.startswith("docs/") and path.endswith((".md", ".svg", ".png")):
            path = up + path.removeprefix("docs/")
        elif "/" in path or not path.endswith(".md"):
            return words
        return f"[{words}]({path}{hash_}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", moved, text)
