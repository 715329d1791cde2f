"""What a model needs and where it fits: `python scripts/plan.py model=FOLDER [gpu=H100,L4]`."""

import sys

HELP = """\
What a model needs and where it fits, from its configuration alone.

  python scripts/plan.py model=FOLDER [key=value ...]
  python scripts/plan.py sensitivity model=FOLDER [...]   bits by layer; see `sensitivity --help`

Often used:
  model=PATH              a checkpoint, a run folder, a config.json, or a name on the hub
  teacher=PATH            counted beside the student in training
  gpu=H100,L4             accelerators of the table (default: all)
  accelerators=FILE       your own figures: JSON of NAME -> {"memory_gb": ...}
  schemes=[dense,W8A8]    batch=[1,16]  length=4096  kv_bits=8
  train=false             serving alone
  train_batch=8  train_length=1024  precision=bf16-mixed  qat=W8A8  checkpointing=true
  out=plan.json           all figures
"""


def main(words: list[str] | None = None) -> int:
    """Counts and prints; answers the exit status."""
    from compress.scripts.lib.settings import program

    words = sys.argv[1:] if words is None else words
    if words[:1] == ["sensitivity"]:
        from compress.scripts.lib.plan_sensitivity import main as sensitivity

        return int(sensitivity(words[1:]))
    return program(words, usage=HELP, run=_run)


def _run(words: list[str]) -> None:
    from compress.errors import BadInput
    from compress.scripts.lib.limits import COUNT, NOT_NEGATIVE, SHARE, SHARE_OF_SOME
    from compress.scripts.lib.settings import (
        check_model_path,
        check_writable,
        out_of_limits,
        read_settings,
        unknown_words,
    )

    settings = read_settings(words, name="plan")
    counts = ("batch", "length", "prefill_tokens", "train_batch", "train_length")
    limits = {
        **dict.fromkeys(counts, COUNT), "usable": SHARE_OF_SOME, "trainable_share": SHARE,
        "optimizer_bytes": NOT_NEGATIVE,
    }  # fmt: skip
    known = {"precision": ("32-true", "bf16-mixed", "bf16-true")}
    problems = [
        *out_of_limits(settings, limits),
        *unknown_words(settings, known),
        *unknown_words({"kv_bits": str(settings["kv_bits"])}, {"kv_bits": ("8", "16")}),
        *check_model_path("model", settings["model"]),
        *check_model_path("teacher", settings["teacher"]),
        *check_model_path("accelerators", settings["accelerators"], remote=False),
        *check_writable("out", settings["out"]),
    ]
    if problems:
        raise BadInput("\n".join(problems))
    from compress.scripts.lib.plan_run import run  # heavy: only once the settings are sound

    run(settings)


if __name__ == "__main__":
    sys.exit(main())
