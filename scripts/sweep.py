"""Search settings without a server: `python scripts/sweep.py sweep=bits_vs_density trials=20`."""

import sys
from pathlib import Path
from typing import Any

HELP = """\
Run a sweep of recipes/sweep/ (or of your own W&B sweep file) without a server.

  python scripts/sweep.py sweep=NAME [trials=20] [key=value ...]

  sweep=NAME|FILE.yaml   what is varied; `sweep=` lists all
  trials=20              how many trials end in all, earlier ones counted (default: the file's
                         run_cap, else 20, a grid: all)
  parallel=1             trials at a time
  storage=FILE|URL       where the search is kept (default: study.log in run_dir; sqlite:///... too)
  run_dir=PATH           default: runs/sweep/NAME, one sweep each; the same command goes on after a
                         stop or a kill
  seed=0                 of what is drawn
  anything else          goes to train.py in every trial, e.g. trainer.max_steps=100; nothing that
                         the sweep varies

With a server the same file runs as: wandb sweep recipes/sweep/NAME.yaml, then wandb agent ...
"""

OWN = ("sweep", "trials", "parallel", "storage", "run_dir", "seed")


def main(words: list[str] | None = None) -> int:
    """Answers the exit status: 0 done, 1 no trial finished, 2 bad input, 130 interrupted."""
    from compress.errors import CompressError
    from compress.scripts.lib.sweep_definition import list_sweeps

    words = sys.argv[1:] if words is None else words
    if not words or any(word in ("-h", "--help", "sweep=") for word in words):
        listed = "\n".join(f"  {name:20} {text}" for name, text in list_sweeps().items())
        print(f"{HELP}\nSweeps:\n{listed}")
        return 0
    try:
        return _sweep(*_settings(words))
    except CompressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the trials kept their checkpoints. Go on with the same command.",
              file=sys.stderr)  # fmt: skip
        return 130


def _settings(words: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of the sweep, and those that every trial gets."""
    from compress.errors import BadInput

    said: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"{word!r} is no key=value; write e.g. sweep=bits_vs_density")
        said[key] = value
    if "sweep" not in said:
        raise BadInput("sweep=NAME is missing; `sweep=` lists all")
    own = {key: said.pop(key) for key in OWN if key in said}
    for key in ("trials", "parallel", "seed"):
        if key in own and not (own[key].isdigit() and (int(own[key]) or key == "seed")):
            raise BadInput(f"{key}={own[key]}: a whole number is expected, from 1 on")
    return own, said


def _sweep(own: dict[str, str], fixed: dict[str, str]) -> int:
    from compress.scripts.lib.run_folder import RunFolder
    from compress.scripts.lib.sweep_definition import read_sweep

    sweep = read_sweep(own["sweep"])
    refuse_overrides(sweep, fixed)
    check_parameters(sweep, fixed)
    folder = Path(own.get("run_dir", f"runs/sweep/{sweep.name}"))
    with RunFolder(folder, resuming=True):
        return _search(sweep, folder, own, fixed)


def _search(sweep: Any, folder: Path, own: dict[str, str], fixed: dict[str, str]) -> int:
    from compress.scripts.lib.sweep_folder import claim_folder
    from compress.scripts.lib.sweep_front import write_front
    from compress.scripts.lib.sweep_study import finished_trials, open_study, take_up
    from compress.scripts.lib.sweep_trials import run_trials

    trials = int(own["trials"]) if "trials" in own else None
    if trials is None and sweep.method != "grid" and sweep.run_cap is None:
        trials = 20
    if trials and sweep.run_cap and sweep.run_cap < trials:
        print(f"{sweep.run_cap} trials instead of {trials}: the sweep's run_cap", flush=True)
    study = open_study(
        sweep, storage=own.get("storage", str(folder / "study.log")),
        seed=int(own.get("seed", "0")), fixed=fixed,
    )  # fmt: skip
    claim_folder(study, folder)
    left, done = take_up(study), len(finished_trials(study))
    if left or done:
        print(f"Goes on: {done} trials have ended, {left} were stopped on their way", flush=True)
    try:
        run_trials(
            study, sweep, folder=folder, trials=trials, parallel=int(own.get("parallel", "1")),
            fixed=fixed, say=lambda text: print(text, flush=True),
        )  # fmt: skip
    finally:
        found = write_front(study, sweep, folder)
    _print_front(found, folder)
    return 0 if found["front"] else 1


def refuse_overrides(sweep: Any, fixed: dict[str, str]) -> None:
    """A fixed word wins over a varied value, and every trial would be the same under other names.

    Raises:
        BadInput: lists the words that name what the sweep varies, or the whole that holds it.
    """
    from compress.errors import BadInput

    def hides(word: str, name: str) -> bool:
        key = word.lstrip("+~")
        whole = "." in key or fixed[word].startswith("{")  # else it chooses a group, as student=
        return name == key or (whole and name.startswith(f"{key}."))

    found = [
        f"  {word}={value} would override {name}, which {sweep.name} varies"
        for word, value in fixed.items()
        for name in sweep.parameters
        if hides(word, name)
    ]
    if found:
        raise BadInput(
            f"{len(found)} words name what the sweep varies:\n" + "\n".join(found) + "\n"
            "Leave them out, or give each one {value: ...} in a sweep file of your own"
        )  # fmt: skip


def check_parameters(sweep: Any, fixed: dict[str, str]) -> None:
    """Composes every value, and both ends of every range, before the first trial.

    Raises:
        BadInput: every setting that the recipe does not know, or that it refuses.
    """
    from compress.errors import BadInput
    from compress.scripts.lib.config import compose
    from compress.scripts.lib.sweep_trials import trial_words

    first = {name: p.extremes[0] for name, p in sweep.parameters.items()}
    tried = [{**first, name: v} for name, p in sweep.parameters.items() for v in p.extremes]
    problems = []
    for values in tried or [{}]:
        try:
            compose(trial_words(sweep, values, fixed))
        except BadInput as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    if problems:
        raise BadInput("\n".join(problems))


def _print_front(found: dict[str, Any], folder: Path) -> None:
    from compress.scripts.lib.sweep_front import note_of, table_of
    from compress.scripts.lib.tables import print_grid

    print_grid(table_of(found))
    print(note_of(found))
    for point in (p for p in found["points"] if p["on_front"]):
        print(f"{point['trial']}: {point['command']}")
    for name in ("pareto.json", "pareto.svg", "sweep.html"):
        if (folder / name).exists():
            print(f"{name + ':':12} {folder / name}")


if __name__ == "__main__":
    sys.exit(main())
