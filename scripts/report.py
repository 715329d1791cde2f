"""Render a run's page again, or one page for several runs: `python scripts/report.py run_dir=PATH`."""  # noqa: E501

import sys
from pathlib import Path

HELP = """\
Render report.html of a run folder again, or compare runs on one page.

  python scripts/report.py run_dir=PATH
  python scripts/report.py compare=runA,runB[,runC] [out=compare.html]
"""

KEYS = ("run_dir", "compare", "out")


def main(words: list[str] | None = None) -> int:
    """Answers the exit status: 0 done, 2 bad input."""
    from compress.errors import CompressError

    words = sys.argv[1:] if words is None else words
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    try:
        print(f"Report: {_render(_settings(words))}")
    except CompressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _settings(words: list[str]) -> dict[str, str]:
    from compress.errors import BadInput, did_you_mean
    from compress.scripts.lib.settings import check_writable

    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise BadInput(f"{word!r} is no key=value; write run_dir=PATH or compare=runA,runB")
        if key not in KEYS:
            raise BadInput(f"there is no setting {key!r}.{did_you_mean(key, KEYS)}")
        settings[key] = value
    if ("run_dir" in settings) == ("compare" in settings):
        raise BadInput("give one of run_dir=PATH and compare=runA,runB")
    if "out" in settings and "compare" not in settings:
        raise BadInput("out= belongs to compare=; run_dir= writes report.html into that folder")
    if "out" in settings and (problems := check_writable("out", settings["out"])):
        raise BadInput("\n".join(problems))
    return settings


def _render(settings: dict[str, str]) -> Path:
    from compress.errors import BadInput

    try:
        if "run_dir" in settings:
            from compress.scripts.lib.html_report import write_html

            return write_html(Path(settings["run_dir"]))
        from compress.scripts.lib.report_compare import write_comparison

        folders = [Path(part) for part in settings["compare"].split(",") if part]
        return write_comparison(folders, Path(settings.get("out", "compare.html")))
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
