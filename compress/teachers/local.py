"""A teacher that lives whole in this process, and loading one from the Hugging Face format.

Teachers that are sharded, cached on disk or served elsewhere have files of their own.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch, DenseSignal, Trace, Want
from compress.errors import BadInput
from compress.models import (
    check_head_split,
    config_of,
    trace_causal_lm,
    trace_classifier,
    trace_embedding,
)
from compress.taps import taps_of

TRACERS: Mapping[str, Callable[[nn.Module, Batch], Trace]] = {
    "causal_lm": trace_causal_lm,
    "classification": trace_classifier,
    "embedding": trace_embedding,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LocalTeacher:
    """Runs a frozen model beside the student, in the student's process.

    A plain object, no `nn.Module`: a LightningModule that holds it neither saves nor trains it.
    The model becomes the teacher's own: its gradients are switched off for good.

    Args:
        model: a Hugging Face model; it moves to the device of the first batch it sees.
        dtype: `bfloat16` or `float16` casts the weights (half the memory, and far faster on GPUs
            and AMX cores); None keeps them as they are, under the trainer's autocast if any.
        task: `causal_lm` (logits a position), `classification` (logits a sequence) or `embedding`.
        name_or_path: what the run's report calls it; default: the model's own name.

    Raises:
        BadInput: dtype or task is unknown.
        UnsupportedModel: the logits are not the head's on the last hidden states (at first use).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: str | torch.dtype | None = None,
        task: str = "causal_lm",
        name_or_path: str | None = None,
    ) -> None:
        """Freezes the model; it is moved at the first `signal`."""
        if task not in TRACERS:
            raise BadInput(f"task={task!r} is unknown to a teacher; use one of {sorted(TRACERS)}")
        self.dtype = dtype_of(dtype)
        self.model = model.requires_grad_(False).eval()
        self.task = task
        config: Any = config_of(model)
        self.vocab_size = int(config.vocab_size if task == "causal_lm" else config.num_labels)
        self.name_or_path = name_or_path or getattr(config, "_name_or_path", "") or "unnamed"
        if self.dtype is not None:
            cast_parameters(model, self.dtype)
        self._checked = task != "causal_lm"

    @torch.no_grad()  # not inference_mode: autograd must accept these tensors as constants
    def signal(self, batch: Batch, want: Want) -> DenseSignal:
        """One forward pass, without gradients; features by module name.

        Raises:
            BadInput: a wanted feature is no module of the teacher, or did not run.
        """
        tokens = next(iter(batch.values()))
        self.to(tokens.device)
        if want.features:
            taps_of(self.model).open(want.features)
        # weights in a lower dtype need no autocast; it would only cast them back and forth
        lowered = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(tokens.device.type, enabled=False) if lowered else nullcontext():
            if not self._checked:
                check_head_split(self.model)
                self._checked = True
            trace = TRACERS[self.task](self.model, batch)
        return DenseSignal(
            hidden_SLH=trace.hidden_BLH if want.logits else None,
            head=trace.head if want.logits else None,
            features=chosen_features(trace.features, want.features),
        )

    def to(self, device: torch.device) -> None:
        """Move the model, if it is elsewhere."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)


def chosen_features(caught: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The wanted ones of what the taps caught.

    Raises:
        BadInput: a wanted module did not run.
    """
    missing = [name for name in names if name not in caught]
    if missing:
        raise BadInput(
            f"the teacher ran without calling {', '.join(missing)}; "
            "tap a module that its forward pass calls (and tap it before compiling)"
        )
    return {name: caught[name] for name in names}


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters alone: `.to(dtype)` would also round the rotary frequencies."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype of a setting.

    >>> dtype_of("bfloat16")
    torch.bfloat16
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise BadInput(f"teacher dtype={dtype!r} is unknown; use one of {sorted(DTYPES)} or null")
    return DTYPES[dtype]


def load_hf_teacher(
    path: str,
    *,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    task: str = "causal_lm",
    new_head: bool = False,
) -> nn.Module:
    """A frozen model from a folder or a hub name, safetensors only; give it to a `LocalTeacher`.

    Args:
        path: a folder with `config.json` and `*.safetensors`, or a hub name.
        dtype: of its weights in memory; None keeps the checkpoint's own.
        trust_remote_code: run Python that comes with the checkpoint; leave it off.
        task: as for `LocalTeacher`.
        new_head: True lets a classifier begin with a head of random weights, as a student may
            that is trained from an encoder alone.

    Raises:
        BadInput: there is no such folder, it holds pickles alone, weights of the task's model are
            missing in it, or the hub cannot give it.
    """
    import transformers

    check_checkpoint(path)
    classes = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "classification": transformers.AutoModelForSequenceClassification,
        "embedding": transformers.AutoModel,
    }
    if task not in classes:
        raise BadInput(f"task={task!r} is unknown to a teacher; use one of {sorted(classes)}")
    try:
        loaded: tuple[Any, dict[str, Any]] = classes[task].from_pretrained(
            path,
            dtype=dtype_of(dtype) or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file raises whatever its reader likes
        reason = str(error).strip() or repr(error)
        raise BadInput(f"cannot load the teacher {path!r}: {reason}") from error
    model: nn.Module = loaded[0]
    pooled = task == "embedding"  # by the mean: no pooler takes part
    absent = [n for n in loaded[1]["missing_keys"] if not (pooled and n.startswith("pooler."))]
    _refuse_missing(path, model, absent, new_head=new_head)
    return model.requires_grad_(False).eval()


def _refuse_missing(path: str, model: nn.Module, missing: Iterable[str], *, new_head: bool) -> None:
    """Random weights, which the library puts where a file has none, teach nothing."""
    body = f"{getattr(model, 'base_model_prefix', '')}."
    absent = sorted(
        name for name in missing
        if not (new_head and (not name.startswith(body) or ".pooler." in name))
    )  # fmt: skip
    if absent:
        raise BadInput(
            f"{path!r} lacks {len(absent)} tensors of a {type(model).__name__}: "
            f"{', '.join(absent[:5])}; is it a checkpoint for another task?"
        )


def check_checkpoint(path: str) -> None:
    """Refuse early what `from_pretrained` would only find out later, or would unpickle.

    Raises:
        BadInput: no such folder, no config.json, or no safetensors in it.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
        offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE", "yes", "on")
        if looks_local and "/" in path:
            raise BadInput(f"there is no folder {path!r}; teacher.path is a checkpoint's folder")
        if offline and not _in_hub_cache(path):
            raise BadInput(
                f"{path!r} is no folder, and as a hub name it is not in the local cache, "
                "while HF_HUB_OFFLINE is set: give a folder, or unset it to download"
            )
        return
    if not (folder / "config.json").is_file():
        raise BadInput(f"{path!r} holds no config.json: it is no Hugging Face checkpoint")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in folder.glob("*.bin"))
    found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
    raise BadInput(
        f"{path!r} holds {found}; loading runs no code from a checkpoint, so it needs "
        "*.safetensors. Convert where you trust it: "
        "AutoModelForCausalLM.from_pretrained(path).save_pretrained(new_path)"
    )


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def check_vocabulary(
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    *,
    names: tuple[str, str] = ("teacher", "student"),
) -> None:
    """Prove that both tokenizers give every token the same id.

    Rows that only pad a model's head have no token here, so padded vocabularies pass. So do
    special tokens that one alone has, or that both have under another name.

    Args:
        teacher_tokenizer: one of them.
        student_tokenizer: the other.
        names: what an error calls them.

    Raises:
        BadInput: a token has another id, or only one of the two knows it.
    """
    teacher: dict[str, int] = teacher_tokenizer.get_vocab()
    student: dict[str, int] = student_tokenizer.get_vocab()
    shared = teacher.keys() & student.keys()
    moved = sorted(token for token in shared if teacher[token] != student[token])
    special = _added_ids(teacher_tokenizer) | _added_ids(student_tokenizer)
    ids = teacher | student
    alone = sorted(t for t in teacher.keys() ^ student.keys() if ids[t] not in special)
    if not moved and not alone:
        return
    examples = ", ".join(map(repr, (moved + alone)[:5]))
    raise BadInput(
        f"{' and '.join(names)} tokenize differently: {len(teacher)} and {len(student)} tokens, "
        f"{len(moved)} of the {len(shared)} shared ones under another id, "
        f"{len(alone)} known to one alone ({examples}). Every model of a run reads the same ids, "
        "with alignment=uld too: use models of one family, or leave the teacher out"
    )


def _added_ids(tokenizer: Any) -> set[int]:
    """Ids of tokens that were added to the trained vocabulary: special ones as a rule."""
    return set(getattr(tokenizer, "get_added_vocab", dict)().values())
