"""Write a trained run for a runtime: `python scripts/export.py run_dir=... target=tensorrt`."""

import re
import sys
from typing import Any

TARGETS = ("vllm", "transformers", "modelopt", "tensorrt", "pt2")

HELP = """\
Write a trained run for a runtime; it is compared with the trained model before it gets its name.

  python scripts/export.py run_dir=FOLDER target=vllm|modelopt|tensorrt|pt2|transformers [...]

Often used:
  target=tensorrt         ONNX with Q/DQ and trtexec commands; pip install 'compress-lm[onnx]'
  target=pt2              torch.export: integer codes and scales, run by PyTorch alone
  calibration=true        tensorrt: also an INT8 calibration cache, for implicit quantisation
  cache=true              tensorrt: key-value cache as inputs and outputs, to write token by token
  batch=8 length=2048     tensorrt: the largest input that the engine is built for
  bundle=true             a model card with measured quality, Kubernetes and Triton files
  gpu=H100                bundle: degrees, MIG slice and device for it; node_label=: its nodes
  licence=apache-2.0      bundle: of the weights
  path=FOLDER             where to (default: RUN_DIR/export/TARGET)
  dtype=bfloat16          of what is not quantised
  checkpoint=PATH         other than the last
All settings: recipes/export.yaml
"""


def main(words: list[str] | None = None) -> int:
    """Exports; answers the exit status."""
    from compress.scripts.lib.settings import program

    return program(words, usage=HELP, run=_run)


def _run(words: list[str]) -> None:
    settings = checked(words)
    from compress.scripts.lib.export_run import run  # heavy: only once the settings are sound

    run(settings, words)


def checked(words: list[str]) -> dict[str, Any]:
    """The settings, every problem that can be seen without loading anything refused.

    Raises:
        BadInput: lists them.
    """
    from pathlib import Path

    from compress.errors import BadInput, did_you_mean
    from compress.scripts.lib.settings import check_installed, read_settings

    settings = read_settings(words, name="export", required=("run_dir",))
    problems = []
    run_dir, target = settings["run_dir"], settings["target"]
    if not (Path(run_dir) / "config.yaml").is_file():
        problems.append(f"run_dir={run_dir}: no run folder: there is no config.yaml in it")
    if target is not None and target not in TARGETS:
        hint = did_you_mean(target, TARGETS)
        problems.append(f"target={target} is unknown.{hint} There are: {', '.join(TARGETS)}")
    if target == "tensorrt":
        command = "pip install 'compress-lm[onnx]'"
        for module in ("onnx", "onnxscript", "onnx_ir", "onnxruntime"):
            problems += check_installed(module, "target=tensorrt", command)
    for key in ("quality_batches", "batch", "length"):
        if settings[key] is not None and settings[key] < 1:
            problems.append(f"{key}={settings[key]}: must be at least 1")
    if not 0 < settings["level"] < 1:
        problems.append(f"level={settings['level']}: a share between 0 and 1, such as 0.95")
    licence = settings["licence"]
    if licence and not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
        problems.append(f"licence={licence!r}: one SPDX name is expected, such as apache-2.0")
    if settings["calibration"] and target not in (None, "tensorrt"):
        problems.append(f"calibration=true is for target=tensorrt, not for {target}")
    if settings["cache"] and target not in (None, "tensorrt"):
        problems.append(f"cache=true is for target=tensorrt, not for {target}")
    if settings["cache"] and settings["bundle"]:
        problems.append(
            "cache=true bundle=true: Triton's TensorRT backend would have to carry the cache from "
            "request to request; bundle without cache=true, or serve the text with target=vllm"
        )
    if problems:
        raise BadInput("\n".join(problems))
    return settings


if __name__ == "__main__":
    sys.exit(main())
