"""How good a model is: `python scripts/evaluate.py model=... baseline=... data=...`."""

import sys
from typing import Any

HELP = """\
How good a model is, and how close to a baseline, on held-out data.

  python scripts/evaluate.py model=PATH [baseline=PATH] [data=text data.path=FILES] [key=value ...]

A path is a run folder (its fake-quantised model), a checkpoint folder (dense or compressed), an
ONNX or .pt2 file or its folder, or a name on the hub. Without `data`, a run folder brings its own,
and data.KEY=VALUE changes a setting of that; else it is the embedded default.

Often used:
  checkpoint=PATH  baseline_checkpoint=PATH   of a run folder, other than the last
  part=validation|test    batch_size=8  max_batches=32 (null: all)
  data=classification     accuracy and F1, for sequence classifiers
  data=sentences          for encoders: cosine to the baseline's embeddings, agreement of rankings
  questions=FILE          multiple choice: jsonl of {"prompt": ..., "choices": [...], "answer": 0}
  tasks=[arc_easy]        tasks of lm-evaluation-harness, where it is installed
  device=cuda  dtype=bfloat16  threads=4
  out=FILE.json           all figures
"""


def main(words: list[str] | None = None) -> int:
    """Measures and prints; answers the exit status."""
    from compress.scripts.lib.settings import program

    return program(words, usage=HELP, run=_run)


def _run(words: list[str]) -> None:
    from compress.scripts.lib.config import compose
    from compress.scripts.lib.evaluate_data import changes_of, names_data
    from compress.scripts.lib.settings import at_home

    words = [f"{k}{equals}{at_home(v)}" for k, equals, v in (w.partition("=") for w in words)]
    own_data = not names_data(words)
    # of a run's own data, maybe: that has other settings than the default data
    changes = changes_of(words) if own_data else []
    config = compose([w for w in words if w not in changes], primary="evaluate")
    _check(config)
    from compress.scripts.lib.evaluate_run import run  # heavy: only once the settings are sound
    from compress.scripts.lib.restore import is_run_folder

    if changes and not any(p and is_run_folder(p) for p in (config.model, config.baseline)):
        config, changes = compose(words, primary="evaluate"), []
    run(config, own_data=own_data, changes=changes)


def _check(config: Any) -> None:
    from compress.errors import BadInput
    from compress.scripts.lib.limits import COUNT, SEED, SHARE_INSIDE
    from compress.scripts.lib.settings import (
        check_device,
        check_file,
        check_installed,
        check_model_path,
        check_writable,
        out_of_limits,
        unknown_words,
    )

    counts = dict.fromkeys(("batch_size", "max_batches", "threads", "resamples"), COUNT)
    known = {
        "part": ("train", "validation", "test"), "dtype": ("float32", "bfloat16", "float16"),
        "task": ("causal_lm", "classification", "embedding", None),
    }  # fmt: skip
    problems = [
        *([] if config.model else ["model must be given: model=PATH"]),
        *check_model_path("model", config.model),
        *check_model_path("baseline", config.baseline),
        *check_file("questions", config.questions),
        *check_writable("out", config.out),
        *out_of_limits(config, {**counts, "level": SHARE_INSIDE, "seed": SEED}),
        *unknown_words(config, known),
        *check_device(config.device),
    ]
    if config.tasks:
        problems += check_installed("lm_eval", "tasks", "pip install 'lm-eval[hf]'")
    if problems:
        raise BadInput("\n".join(problems))


if __name__ == "__main__":
    sys.exit(main())
