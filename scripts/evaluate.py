"""How good a model is: `python scripts/evaluate.py model=... baseline=... data=...`."""

import sys

HELP = """\
How good a model is, and how close to a baseline, on held-out data.

  python scripts/evaluate.py model=PATH [baseline=PATH] [data=text data.path=FILES] [key=value ...]

A path is a run folder (its fake-quantised model), a checkpoint folder (dense or compressed), an
ONNX file, or a name on the hub. Without `data`, a run folder brings its own; else it is the
embedded default.

Often used:
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
    from compress.errors import BadInput
    from compress.scripts.lib.config import compose
    from compress.scripts.lib.settings import check_installed, check_model_path, check_writable

    config = compose(words, primary="evaluate")
    problems = [
        *([] if config.model else ["model must be given: model=PATH"]),
        *check_model_path("model", config.model),
        *check_model_path("baseline", config.baseline),
        *check_model_path("questions", config.questions, remote=False),
        *check_writable("out", config.out),
    ]
    if config.part not in ("train", "validation", "test"):
        problems.append(f"part={config.part}: use train, validation or test")
    if config.tasks:
        problems += check_installed("lm_eval", "tasks", "pip install 'lm-eval[hf]'")
    if problems:
        raise BadInput("\n".join(problems))
    from compress.scripts.lib.evaluate_run import run  # heavy: only once the settings are sound

    run(config, own_data=not any(w.partition("=")[0].split(".")[0] == "data" for w in words))


if __name__ == "__main__":
    sys.exit(main())
