"""Opens whatever lies at a path as a model whose quality can be measured.

Dense and compressed checkpoints load through transformers, ONNX files through onnxruntime, exported
programs through PyTorch itself; the fake-quantised model of a run folder is put together by the
scripts, which know its recipe.

Legend: B sequences, L positions, V vocabulary, C classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from compress.classes import class_names
from compress.contract import Batch, Head, Trace
from compress.errors import BadInput
from compress.evaluate.engines import Engine, EngineSettings, load_engine
from compress.export.pt2 import PROGRAM_FILE
from compress.export.reload import quiet

WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data", "*.onnx_data", "*.pt2")


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model ready to be measured.

    Args:
        name: its path, as given.
        kind: `dense`, `compressed` (compressed-tensors), `onnx`, `pt2` or `fake_quantized`.
        module: takes `input_ids` and `attention_mask`; its output has `logits`.
        tokenizer: the one that lies beside it; None where there is none.
        bytes: of its weight files; None where it has none of its own.
        task: `causal_lm`, `classification` or `embedding`.
        classes: names of a classifier's classes in the order of their numbers; empty for others.
    """

    name: str
    kind: str
    module: nn.Module
    tokenizer: Any
    bytes: int | None
    task: str
    classes: tuple[str, ...] = ()


class _AsTheyAre(Head):
    """The head of a model that gives logits: there is nothing left to multiply."""

    def __call__(self, hidden_CH: Tensor) -> Tensor:
        """The logits themselves."""
        return hidden_CH


class EngineModel(nn.Module):
    """A model that runs in another runtime, as far as measures of quality are concerned."""

    def __init__(self, engine: Engine) -> None:
        """`engine` is used, not owned."""
        super().__init__()
        self.engine = engine

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """An object with `logits`, which a model without a head calls its last hidden states."""
        padded = attention_mask is not None and not bool(attention_mask.all())
        mask = attention_mask if padded else None
        answer = self.engine.forward(input_ids.cpu(), mask)
        return SimpleNamespace(logits=answer, last_hidden_state=answer)

    def trace_batch(self, batch: Batch) -> Trace:
        """Logits in the place of hidden states."""
        logits_BLV = self(batch["input_ids"], batch.get("attention_mask")).logits
        head = _AsTheyAre(weight_VH=torch.empty(logits_BLV.shape[-1], 0))
        return Trace(hidden_BLH=logits_BLV, head=head)


def open_model(
    path: str | Path, *, device: str = "cpu", dtype: str = "float32", threads: int = 1,
    trust_remote_code: bool = False,
) -> OpenModel:  # fmt: skip
    """The model at a path.

    Args:
        path: a checkpoint folder, an ONNX or `.pt2` file or its folder, or a hub's name.
        device: where a checkpoint runs.
        dtype: of what is not quantised.
        threads: of onnxruntime.
        trust_remote_code: let a checkpoint bring Python code of its own and run it.

    Raises:
        BadInput: there is nothing, or it is damaged: with what is missing.
    """
    place = Path(path).expanduser()
    settings = EngineSettings(threads=threads, device=device, dtype=dtype)
    for kind, engine, file in (
        ("onnx", "onnxruntime", onnx_file(place)), ("pt2", "eager", pt2_file(place))
    ):  # fmt: skip
        if file is not None:
            beside = file.parent
            config = read_config(beside)
            return OpenModel(
                name=str(path), kind=kind, module=EngineModel(load_engine(engine, file, settings)),
                tokenizer=find_tokenizer(beside), bytes=weight_bytes(beside),
                task=task_of(config), classes=classes_of(config),
            )  # fmt: skip
    config = config_at(path, trust_remote_code=trust_remote_code)
    task = task_of(config)
    return OpenModel(
        name=str(path), kind="compressed" if "quantization_config" in config else "dense",
        module=load_checkpoint(
            path, task=task, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        ),
        tokenizer=find_tokenizer(path), bytes=weight_bytes(place) if place.exists() else None,
        task=task, classes=classes_of(config),
    )  # fmt: skip


def onnx_file(place: Path) -> Path | None:
    """The ONNX file that a path means: itself, or the one in a folder without a checkpoint."""
    if place.suffix == ".onnx":
        return place
    if place.is_dir() and not any(place.glob("*.safetensors")):
        return next(iter(sorted(place.glob("*.onnx"))), None)
    return None


def pt2_file(place: Path) -> Path | None:
    """The exported program a path means: itself, or the one in a folder without a checkpoint."""
    file = place / PROGRAM_FILE if place.is_dir() else place
    beside = place.is_dir() and any(place.glob("*.safetensors"))
    return file if file.suffix == ".pt2" and file.is_file() and not beside else None


def config_at(path: str | Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """What the configuration of a checkpoint folder, or of a hub's name, says.

    Raises:
        BadInput: there is none, it is damaged, or the hub is not reached.
    """
    place = Path(path).expanduser()
    return read_config(place) if place.exists() else hub_config(str(path), trust_remote_code)


def read_config(place: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    file = place / "config.json"
    if not file.is_file():
        raise BadInput(f"{place} is no checkpoint: it has no config.json (and no .onnx file)")
    try:
        read: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise BadInput(f"{file} is damaged: {error}") from error
    return read


def hub_config(name: str, trust: bool) -> dict[str, Any]:
    """The same by a hub's name.

    Raises:
        BadInput: there is no such model, or the hub is not reached.
    """
    from transformers import AutoConfig

    try:
        read: dict[str, Any] = AutoConfig.from_pretrained(name, trust_remote_code=trust).to_dict()
    except Exception as error:  # the errors of the hub's transports have no common base
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{name} is no folder here, and from the hub: {said}") from error
    return read


def task_of(config: dict[str, Any]) -> str:
    """`classification` for sequence classifiers, `embedding` for bare models, or `causal_lm`."""
    name = (config.get("architectures") or [""])[0]
    if name.endswith("Model") and not name.endswith("LMHeadModel"):
        return "embedding"
    return "classification" if name.endswith("ForSequenceClassification") else "causal_lm"


def classes_of(config: dict[str, Any]) -> tuple[str, ...]:
    """Names of a classifier's classes in the order of their numbers; empty for other models."""
    return class_names(config) if task_of(config) == "classification" else ()


def find_tokenizer(place: str | Path) -> Any:
    """The tokenizer beside a model; None where there is none."""
    if Path(place).is_dir() and not (Path(place) / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(place))
    except (OSError, ValueError) as error:
        raise BadInput(f"no tokenizer at {place}: {str(error).splitlines()[0]}") from error


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern))


def _is_unused_pooler(name: str, task: str) -> bool:
    return task == "embedding" and str(name).startswith("pooler.")


def load_checkpoint(
    path: str | Path, *, task: str, device: str = "cpu", dtype: str = "float32",
    trust_remote_code: bool = False,
) -> nn.Module:  # fmt: skip
    """A checkpoint by transformers, in eval mode; what it has no weights for is never made up.

    Raises:
        BadInput: it is damaged, or tensors of the task's model are missing.
    """
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    if task == "classification":
        kind = transformers.AutoModelForSequenceClassification
    elif task == "embedding":
        kind = transformers.AutoModel
    try:
        with quiet():
            model, info = kind.from_pretrained(
                str(path), dtype=getattr(torch, dtype), output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
    except Exception as error:  # damaged files raise whatever their readers like
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "ignore_mismatched_sizes" in said:  # its advice would fill the rest with noise
            said = "tensors have other shapes than its config.json says; is that another model's?"
        raise BadInput(f"{path} does not load: {said}") from error
    # an embedding is a mean: no pooler takes part
    needed = (n for n in info.get("missing_keys", ()) if not _is_unused_pooler(n, task))
    absent = sorted(map(str, needed)) + sorted(
        str(wrong) for wrong in info.get("mismatched_keys", ())
    )
    if absent:
        raise BadInput(f"{path} is not whole: {len(absent)} tensors are missing: {absent[:5]}")
    loaded: nn.Module = model.to(device).eval()
    with torch.no_grad(), quiet():
        # compressed weights unpack when the whole model first runs; measures call its parts
        loaded(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    return loaded
