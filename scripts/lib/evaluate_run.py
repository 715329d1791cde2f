"""One evaluation: open the models, measure them on the same rows, print and write the figures."""

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from compress.classes import class_names, shared_names
from compress.errors import BadInput
from compress.evaluate.classify import (
    Accuracy,
    Question,
    choice_accuracy,
    classification_accuracy,
)
from compress.evaluate.embed import embedding_agreement, embeddings_of
from compress.evaluate.intervals import bootstrap_interval
from compress.evaluate.models import OpenModel, open_model
from compress.evaluate.quality import Comparison, Quality, compare, token_loss
from compress.scripts.lib import build
from compress.scripts.lib.evaluate_checks import (
    CHECKPOINTS,
    check_checkpoints,
    check_rows,
    check_together,
)
from compress.scripts.lib.evaluate_data import changed
from compress.scripts.lib.facts import environment, model_bytes
from compress.scripts.lib.progress import quiet_libraries
from compress.scripts.lib.restore import Restored, is_run_folder, restore_student, run_config
from compress.scripts.lib.run_folder import write_json
from compress.scripts.lib.tables import _console, _say, _table


def run(config: DictConfig, *, own_data: bool, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Measure all that is asked; what is written holds every figure that was reached.

    Args:
        config: as `recipes/evaluate.yaml` says it.
        own_data: a run is measured on its own data.
        changes: `data.KEY=VALUE` words, put over the settings of that.
    """
    opened, data = _open(config, own_data=own_data, changes=changes)
    result: dict[str, Any] = {
        "schema": 1, "environment": environment(), "data": data.source, "part": config.part,
        "models": {who: _facts(model) for who, model in opened.items()}, "measures": {},
    }  # fmt: skip
    measures = result["measures"]
    try:
        task = opened["model"].task
        if task == "classification":
            measures["classification"] = _classification(config, opened, data)
        elif task == "embedding":
            measures["embedding"] = _embedding(config, opened, data)
        else:
            measures["language"] = _language(config, opened, data)
        if config.questions:
            measures["questions"] = _questions(config, opened, data)
        if config.tasks:
            from compress.scripts.lib.harness import harness_scores

            measures["tasks"] = {
                who: harness_scores(model, data.tokenizer, list(config.tasks), config)
                for who, model in opened.items()
            }
    finally:
        if config.out and measures:
            write_json(Path(config.out), result)
    _print(result)
    return result


def _open(
    config: DictConfig, *, own_data: bool, changes: Sequence[str]
) -> tuple[dict[str, OpenModel], Any]:
    """The models, and the data: a run's own where none is named.

    Raises:
        BadInput: one cannot be read, or they cannot be measured on the same rows.
    """
    quiet_libraries()
    check_checkpoints(config)
    paths = {"model": config.model, "baseline": config.baseline}
    opened: dict[str, OpenModel] = {}
    data, settings = None, None
    for who, path in paths.items():
        if path is None:
            continue
        if is_run_folder(path):
            brings = own_data and data is None
            # before the run is restored, which takes longer than to find a misspelt word
            if brings and changes:
                settings = _changed(config, path, changes)
            opened[who], its = _open_run(config, path, checkpoint=config[CHECKPOINTS[who]])
            if brings and changes:
                data = build.build_data(settings, its.tokenizer, classes=opened[who].classes)
            elif brings:
                data = its
        else:
            opened[who] = open_model(
                path, device=config.device, dtype=config.dtype, threads=config.threads,
                trust_remote_code=config.trust_remote_code,
            )  # fmt: skip
    check_together(opened, task=config.task)
    named = {f"{who}={model.name}": model.classes for who, model in opened.items()}
    told = (settings or config).data.get("labels") is not None
    classes = shared_names(named, told=told)
    if data is None:
        tokenizers = [m.tokenizer for m in opened.values() if m.tokenizer is not None]
        if not tokenizers:
            raise BadInput(
                f"model={config.model} has no tokenizer beside it, and one made of the data would "
                "number tokens otherwise: put its tokenizer.json and tokenizer_config.json there"
            )
        data = build.build_data(config, tokenizers[0], classes=classes)
    check_rows(opened, data, getattr(data, config.part))
    return opened, data


def _changed(config: DictConfig, path: str, changes: Sequence[str]) -> Any:
    return changed(run_config(Path(path) / "config.yaml", **_trust(config)), changes)


def _trust(config: DictConfig) -> dict[str, Any]:
    """What the command line lets a run do."""
    return {
        "allow_modules": list(config.allow_modules), "trust_remote_code": config.trust_remote_code,
    }  # fmt: skip


def _open_run(config: DictConfig, path: str, *, checkpoint: str | None) -> tuple[OpenModel, Any]:
    if config.dtype != "float32":
        raise BadInput(
            f"dtype={config.dtype}: {path} is a run, which is measured in float32, as its export "
            "is compared; name its export to measure that in another"
        )
    restored = restore_student(path, checkpoint=str(checkpoint or "last"), **_trust(config))
    model = OpenModel(
        name=path, kind="fake_quantized", module=restored.student.to(config.device),
        tokenizer=restored.data.tokenizer, bytes=model_bytes(restored.student),
        task=restored.config.task, classes=_classes_of(restored),
    )  # fmt: skip
    return model, restored.data


def _classes_of(restored: Restored) -> tuple[str, ...]:
    if restored.config.task != "classification":
        return ()
    settings: Any = restored.student.config
    return class_names(settings.to_dict())


def _facts(model: OpenModel) -> dict[str, Any]:
    return {"path": model.name, "kind": model.kind, "task": model.task, "bytes": model.bytes}


def _batches(config: DictConfig, data: Any) -> Any:
    rows = getattr(data, config.part)
    if rows is None or not len(rows):
        raise BadInput(f"part={config.part}: the data has no such part")
    loader = torch.utils.data.DataLoader(rows, batch_size=config.batch_size)
    return islice(iter(loader), config.max_batches)


def _language(config: DictConfig, opened: dict[str, OpenModel], data: Any) -> dict[str, Any]:
    model = opened["model"].module
    if "baseline" not in opened:
        quality = token_loss(model, _batches(config, data))
        return {"model": _loss(quality, config)}
    both = compare(model, opened["baseline"].module, _batches(config, data))
    return {
        "model": _loss(both.model, config),
        "baseline": _loss(both.baseline, config),
        "against_baseline": _against(both, config),
    }


def _loss(quality: Quality, config: DictConfig) -> dict[str, Any]:
    spread = math.isfinite(quality.perplexity)  # JSON has no infinity
    return {
        "loss": _interval(config, quality.sequence_losses, None, quality.sequence_tokens),
        "perplexity": quality.perplexity if spread else None, "tokens": quality.tokens,
        "unit": "nats/token",
    }  # fmt: skip


def _against(both: Comparison, config: DictConfig) -> dict[str, Any]:
    tokens = both.model.sequence_tokens
    ours, theirs = both.model.sequence_losses, both.baseline.sequence_losses
    return {
        "loss_difference": _interval(config, ours, theirs, tokens, "difference"),
        "kept": _interval(config, ours, theirs, tokens, "exp_difference"),
        "token_agreement": _interval(config, both.sequence_agreements, None, tokens),
        "kl": _interval(config, both.sequence_kls, None, tokens),
    }


def _interval(
    config: DictConfig, ours: Any, theirs: Any = None, weights: Any = None, statistic: str = "ratio"
) -> dict[str, float]:
    if len(ours) < 2:  # one sequence has no spread to draw from
        mean = sum(ours) / (sum(weights) if weights is not None else len(ours))
        return {"value": mean}
    found = bootstrap_interval(
        ours, theirs, weights=weights, statistic=statistic, level=config.level,
        resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    return {"value": found.value, "low": found.low, "high": found.high}


def _classification(config: DictConfig, opened: dict[str, OpenModel], data: Any) -> dict[str, Any]:
    found = {
        who: classification_accuracy(model.module, _batches(config, data))
        for who, model in opened.items()
    }
    return _accuracies(found, config)


def _embedding(config: DictConfig, opened: dict[str, OpenModel], data: Any) -> dict[str, Any]:
    if "baseline" not in opened:
        raise BadInput("embeddings have no measure of their own: name what to compare, baseline=")
    ours, theirs = (
        embeddings_of(opened[who].module, _batches(config, data)) for who in ("model", "baseline")
    )
    found = embedding_agreement(ours, theirs)
    figures = {
        "spearman": found.spearman, "sequences": found.sequences, "ranked": found.ranked,
        "same_nearest_neighbour": _interval(config, found.same_neighbour),
    }  # fmt: skip
    if found.cosine is not None:
        figures = {"cosine": _interval(config, found.cosines), **figures}
    return {"against_baseline": figures}


def _questions(config: DictConfig, opened: dict[str, OpenModel], data: Any) -> dict[str, Any]:
    questions = read_questions(Path(config.questions))
    found = {
        who: choice_accuracy(model.module, data.tokenizer, questions)
        for who, model in opened.items()
    }
    return _accuracies(found, config)


def read_questions(path: Path) -> list[Question]:
    """Multiple-choice items of a jsonl file.

    Raises:
        BadInput: a line is no such item; all such lines are named.
    """
    found, wrong = [], []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            question = Question(
                prompt=str(item["prompt"]), choices=tuple(map(str, item["choices"])),
                answer=int(item["answer"]),
            )  # fmt: skip
            if not all(question.choices):
                raise ValueError("a choice is empty")
        except (ValueError, KeyError, TypeError) as error:
            wrong.append(f"line {number}: {type(error).__name__} {error}")
            continue
        found.append(question)
    if wrong:
        raise BadInput(
            f"questions={path}: {len(wrong)} lines are not "
            f'{{"prompt", "choices", "answer": number}}: {"; ".join(wrong[:5])}'
        )
    return found


def _accuracies(found: dict[str, Accuracy], config: DictConfig) -> dict[str, Any]:
    measured: dict[str, Any] = {
        who: {"accuracy": _interval(config, a.correct), "macro_f1": a.macro_f1,
              "examples": a.examples}
        for who, a in found.items()
    }  # fmt: skip
    if "baseline" in found:
        ours, theirs = found["model"].correct, found["baseline"].correct
        agree = [float(a == b) for a, b in zip(ours, theirs, strict=True)]
        measured["against_baseline"] = {
            "accuracy_difference": _interval(config, ours, theirs, None, "difference"),
            "equally_right": _interval(config, agree),
        }
    return measured


def _print(result: dict[str, Any]) -> None:
    console: Console = _console()
    table = _table(
        console, f"Quality on {result['data']}, {result['part']} part", ("measure", "left"),
        ("of", "left"), ("value", "right"), ("interval", "right"),
    )  # fmt: skip
    for measure, groups in result["measures"].items():
        for who, figures in groups.items():
            for name, value in figures.items():
                cells = _cells(value)
                if cells:
                    of = "model / baseline" if who == "against_baseline" else who
                    table.add_row(f"{measure}: {name.replace('_', ' ')}", of, *cells)
    console.print(table)
    for who, facts in result["models"].items():
        size = f", {facts['bytes']:,} bytes" if facts["bytes"] else ""
        console.print(_say(console, f"{who}: {facts['path']} ({facts['kind']}{size})"))


def _cells(value: Any) -> tuple[str, str] | None:
    if isinstance(value, dict):
        between = f"[{value['low']:.5g}, {value['high']:.5g}]" if "low" in value else ""
        return f"{value['value']:.5g}", between
    return (f"{value:,.6g}", "") if isinstance(value, int | float) else None
