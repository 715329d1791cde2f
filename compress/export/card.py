"""The model card (`README.md`) of an export: what it is, how good, how big, how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.export.plan import ExportPlan
from compress.export.schemes import ignored, plan_name
from compress.export.sparsity import sparsity_manifest, speed_note


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the exporter cannot read from the model; every field may stay empty.

    Attributes:
        name: title of the card.
        base_model: hub name or description of what was compressed.
        teacher: what it was distilled from.
        data: what it was trained on.
        licence: an SPDX name (`apache-2.0`) for the weights; empty says "not stated".
        language: ISO codes for the hub's index.
        recipe: the command that made it.
        quality: name -> number, or a text with its interval.
        speed: name -> number or text, e.g. `{"latency (transformers)": "0.45x [0.44, 0.46]"}`.
        deployed: whether `deploy/` lies beside.
        notes: further lines.
    """

    name: str = ""
    base_model: str = ""
    teacher: str = ""
    data: str = ""
    licence: str = ""
    language: tuple[str, ...] = ()
    recipe: str = ""
    quality: Mapping[str, float | str | None] = field(default_factory=dict)
    speed: Mapping[str, float | str | None] = field(default_factory=dict)
    deployed: bool = False
    notes: tuple[str, ...] = ()


KINDS = {
    "ForCausalLM": (
        "AutoModelForCausalLM", 'llm.generate("Once upon a time")[0].outputs[0].text',
        "text-generation",
    ),
    "ForSequenceClassification": (
        "AutoModelForSequenceClassification", 'llm.classify("A text")[0].outputs.probs',
        "text-classification",
    ),
    "ForTokenClassification": (
        "AutoModelForTokenClassification", 'llm.encode("A text")[0].outputs.data',
        "token-classification",
    ),
    "ForMaskedLM": ("AutoModelForMaskedLM", "", "fill-mask"),
    "Model": ("AutoModel", 'llm.embed("A text")[0].outputs.embedding', "feature-extraction"),
}  # fmt: skip
"""End of a class's name -> transformers' loader, what to ask vLLM, the hub's task."""

LIBRARIES = {
    "vllm": ("transformers", "compressed-tensors"),
    "transformers": ("transformers", "compressed-tensors"),
    "modelopt": ("Model Optimizer", "ModelOpt"),
    "tensorrt": ("onnx", "onnx"),
    "pt2": ("pytorch", "pt2"),
}
"""Target -> the hub's word for what loads the folder, the tag of its format."""

POOLED = (
    "A text's embedding is the mean of its last hidden states over all tokens but padding, "
    "not normalised (`modules.json` tells vLLM and sentence-transformers, where it lies beside)."
)


def _kind(architecture: str) -> tuple[str, str, str]:
    architecture = architecture.replace("LMHeadModel", "ForCausalLM")  # GPT-2's older name for it
    known = (kind for ending, kind in KINDS.items() if architecture.endswith(ending))
    return next(known, KINDS["Model"])


def model_card(
    plan: ExportPlan, facts: CardFacts, *, target: str, dtype: str, weight_bytes: int,
    cache: bool = False,
) -> str:  # fmt: skip
    """The card as Markdown with the hub's YAML header; `cache`: an ONNX file takes a past."""
    title = facts.name or f"{plan.architecture} {plan_name(plan)}"
    sections = [
        _header(plan, facts, target),
        f"# {title}",
        _table(_about(plan, facts, dtype=dtype, weight_bytes=weight_bytes)),
        _figures("Quality", facts.quality),
        _figures("Speed", facts.speed),
        _sparsity(plan),
        _loading(target, plan.architecture, cache=cache),
        "## Deployment\n\nSee `deploy/README.md`." if facts.deployed else "",
        "\n".join(facts.notes),
        f"Made by:\n```\n{facts.recipe}\n```" if facts.recipe else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(plan: ExportPlan, facts: CardFacts, target: str) -> str:
    _, _, task = _kind(plan.architecture)
    library, tag = LIBRARIES.get(target, ("", target))  # a target of one's own names no library
    lines = ["---", *([f"library_name: {library}"] if library else []), f"pipeline_tag: {task}"]
    if facts.licence:
        lines.append(f"license: {facts.licence}")
    if facts.language:
        lines += ["language:", *(f"- {code}" for code in facts.language)]
    # the hub resolves base_model, so a description or a folder of one's own does not belong here
    if facts.base_model.count("/") == 1 and not facts.base_model.startswith((".", "/", "~")):
        relation = "quantized" if plan.quantized else "finetune"
        lines += [f"base_model: {facts.base_model}", f"base_model_relation: {relation}"]
    # a checkpoint without quantised layers is a plain one
    tags = [tag] if plan.quantized or tag != "compressed-tensors" else []
    tags += [] if plan.quantized else ["dense"]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines)


def _about(plan: ExportPlan, facts: CardFacts, *, dtype: str, weight_bytes: int) -> dict[str, Any]:
    dense = ignored(plan)
    return {
        "Base model": facts.base_model or "not stated",
        "Teacher": facts.teacher,
        "Data": facts.data or "not stated",
        "Scheme": plan_name(plan),
        "Quantised layers": f"{len(plan.quantized)} of {len(plan.linears)} linear layers",
        "Left dense": ", ".join(dense) if 0 < len(dense) <= 4 else f"{len(dense)} layers",
        "Dtype of the rest": dtype,
        "Weights": f"{weight_bytes:,} bytes",
        "Licence": facts.licence or "not stated",
    }


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items() if v)])


def _figures(title: str, figures: Mapping[str, float | str | None]) -> str:
    rows = {k: _number(v) for k, v in figures.items() if v is not None}
    return f"## {title}\n\n{_table(rows)}" if rows else ""


def _number(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sparsity(plan: ExportPlan) -> str:
    manifest = sparsity_manifest(plan)
    if manifest is None:
        return ""
    share = f"{manifest['pattern']}, density {manifest['density']:.3f} in {len(plan.sparse)} layers"
    return f"## Sparsity\n\n{share} (`sparsity.json`). {speed_note(plan)}"


def program_lines(place: object) -> str:
    """Three lines that run an exported program: its folder's tokenizer, its logits."""
    return (
        "import torch, transformers\n"
        f'tokens = transformers.AutoTokenizer.from_pretrained("{place}")'
        '("Once upon a time", return_tensors="pt")\n'
        f'logits = torch.export.load("{place}/model.pt2").module()'
        "(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)"
    )


def onnx_lines(place: object, *, cache: bool) -> str:
    """Lines that run an ONNX file on three tokens, with a past of length 0 where it takes one."""
    past = (
        "past = {x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), np.float32)"
        " for x in session.get_inputs()[2:]}\n"
    )
    return (
        "import numpy as np, onnxruntime\n"
        f'session = onnxruntime.InferenceSession("{place}/model.onnx")\n'
        "tokens = np.array([[1, 2, 3]])\n"
        'inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}\n'
        + (f"{past}logits, *present = session.run(None, {{**inputs, **past}})" if cache
           else "(logits,) = session.run(None, inputs)")
    )  # fmt: skip


def _loading(target: str, architecture: str, *, cache: bool) -> str:
    auto, ask, _ = _kind(architecture)
    transformers = (
        f"```python\nfrom transformers import {auto}, AutoTokenizer\n"
        f'model = {auto}.from_pretrained("PATH")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\n```'
    )
    vllm = f'```python\nfrom vllm import LLM\nllm = LLM("PATH")\nprint({ask})\n```'
    onnx = (
        f"```python\n{onnx_lines('PATH', cache=cache)}\n```\n\n"
        "Or build a TensorRT engine on the GPU that serves: `sh trtexec.sh`."
    )
    served = [vllm] if ask else []  # vLLM has no masked language models
    program = (
        f"```python\n{program_lines('PATH')}\n```\n\n`torch.export.load` unpickles: use it for "
        "files that you made, for others `compress.export.pt2_archive.open_program`."
    )
    pooled = [POOLED] if (auto, ask) == KINDS["Model"][:2] else []
    ways = {
        "vllm": [*served, transformers], "modelopt": [vllm], "tensorrt": [onnx], "pt2": [program]
    }  # fmt: skip
    return "\n\n".join(["## Loading", *ways.get(target, [transformers]), *pooled])
