"""The one call that exports: gate, write beside, verify, rename into place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput
from compress.export.card import CardFacts, model_card
from compress.export.folder import replaced_folder
from compress.export.gate import Purpose, gate
from compress.export.modelopt import write_modelopt
from compress.export.plan import collect_plan
from compress.export.pt2 import write_pt2
from compress.export.tensorrt import write_tensorrt
from compress.export.verify import Verification, verify
from compress.export.vllm import write_compressed_tensors

Writer = Callable[..., list[Path]]
WRITERS: Mapping[str, Writer] = {
    "vllm": write_compressed_tensors,
    "transformers": write_compressed_tensors,
    "modelopt": write_modelopt,
    "tensorrt": write_tensorrt,
    "pt2": write_pt2,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A checkpoint that stands under its final name and equals the trained model.

    `bytes` counts the weight files; `notes` are the gate's.
    """

    target: str
    scheme: str
    path: Path
    bytes: int
    dtype: str
    verification: Verification
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """True: a result is made only after the comparison held."""
        return True

    def entry(self, *, relative_to: Path | None = None) -> dict[str, Any]:
        """The entry of `exports` in `report.json`."""
        path = self.path
        if relative_to is not None and path.is_relative_to(relative_to.absolute()):
            path = path.relative_to(relative_to.absolute())
        return {
            "target": self.target,
            "scheme": self.scheme,
            "path": str(path),
            "bytes": self.bytes,
            "dtype": self.dtype,
            "verified": self.verified,
            "max_abs_logit_diff": self.verification.max_abs_logit_diff,
            "codes_equal": self.verification.codes_equal,
            "scales_equal": self.verification.scales_equal,
            "zeros_equal": self.verification.zeros_equal,
        }


def export(
    student: nn.Module,
    *,
    target: str,
    path: str | Path,
    tokenizer: Any = None,
    example_batch: Mapping[str, Tensor] | None = None,
    card: CardFacts | None = None,
    dtype: torch.dtype | str | None = None,
    purpose: Purpose = "size",
    finish: Callable[[Path], object] | None = None,
    **settings: Any,
) -> ExportResult:
    """Write `student` for `target` to the folder `path`, compare it, then put it in place.

    Args:
        student: a Hugging Face model with its transforms attached; left as it was.
        target: `vllm`, `transformers`, `modelopt`, `tensorrt` or `pt2`.
        path: the final folder; an existing one is replaced only after success.
        tokenizer: saved along; None leaves the folder without one.
        example_batch: tokens for the comparison of logits; None draws some.
        card: what the model card should say.
        dtype: of what is not quantised; None takes the student's own.
        purpose: see `gate`.
        finish: adds files to the folder before it gets its name.
        settings: of one target's writer, such as `calibration=True` for `tensorrt`.

    Raises:
        UnsupportedScheme: the target cannot serve the plan.
        ExportMismatch: the file is not what was trained; `path` is as it was before.
        BadInput: `path` cannot be written.
    """
    plan = collect_plan(student)
    chosen = export_dtype(student, dtype)
    verdict = gate(plan, target=target, purpose=purpose, dtype=chosen)
    with replaced_folder(path) as folder:
        files = WRITERS[target](student, plan, folder, dtype=chosen, **settings)
        size = sum(file.stat().st_size for file in files)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        text = model_card(
            plan, card or CardFacts(), target=target, dtype=_word(chosen), weight_bytes=size,
            cache=bool(settings.get("cache")),
        )  # fmt: skip
        (folder / "README.md").write_text(text)
        checked = verify(
            student, folder, plan=plan, target=target, dtype=chosen, example_batch=example_batch
        )
        if finish is not None:
            finish(folder)
    return ExportResult(
        target=target,
        scheme=verdict.scheme,
        path=Path(path).absolute(),
        bytes=size,
        dtype=_word(chosen),
        verification=checked,
        notes=verdict.notes,
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def export_dtype(student: nn.Module, dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype asked for, else the one that the configuration or the weights name.

    Raises:
        BadInput: no floating dtype of that name.
    """
    chosen = dtype or getattr(student.config, "dtype", None) or next(student.parameters()).dtype
    if isinstance(chosen, str):
        chosen = DTYPES.get(chosen.removeprefix("torch."))
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES.values():
        raise BadInput(f"dtype={dtype!r} cannot be exported; use one of {', '.join(DTYPES)}")
    return chosen
