"""One export of a run folder: restore the student, measure what the card says, write, tell."""

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from compress.errors import BadInput
from compress.evaluate.classify import classification_accuracy
from compress.evaluate.intervals import Interval, bootstrap_interval
from compress.evaluate.quality import token_loss
from compress.export.bundle import bundle
from compress.export.card import CardFacts, program_lines
from compress.export.deploy import RESOURCES, DeploySettings, dns_label
from compress.export.folder import refuse_other
from compress.export.plan import collect_plan
from compress.export.tensorrt import largest_input
from compress.export.write import ExportResult, export
from compress.models import config_of
from compress.plan.accelerators import Accelerator, accelerators
from compress.scripts.lib.facts import reproduce
from compress.scripts.lib.restore import Restored, restore_student
from compress.scripts.lib.run_folder import read_report, write_json
from compress.scripts.lib.secrets import masked_words
from compress.scripts.lib.trainer import validation_batches

DEPLOYED = (
    "image", "namespace", "claim", "min_replicas", "max_replicas", "waiting_requests", "prometheus",
    "node_label",
)  # fmt: skip
BATCH = 16
"""Sequences at once that a server's plan holds where none is named."""


def run(settings: dict[str, Any], words: list[str]) -> ExportResult:
    """Restore, export, note it in report.json, print where it lies."""
    run_dir = Path(settings["run_dir"])
    report = read_report(run_dir)
    if settings["path"]:
        refuse_other(settings["path"])
    if settings["bundle"]:
        # before anything is measured
        DeploySettings(name="model", **chosen_of(settings), **devices_of(settings))
    restored = restore_student(
        run_dir, checkpoint=settings["checkpoint"],
        allow_modules=[str(name) for name in settings["allow_modules"]],
        trust_remote_code=settings["trust_remote_code"],
    )  # fmt: skip
    target = settings["target"] or restored.config.target or "vllm"
    asked = [f"{key}=true" for key in ("calibration", "cache") if settings[key]]
    if asked and target != "tensorrt":
        raise BadInput(f"{', '.join(asked)}: for target=tensorrt, and this run's is {target}")
    common: dict[str, Any] = {
        "target": target,
        "path": settings["path"] or run_dir / "export" / target,
        "tokenizer": restored.data.tokenizer,
        "example_batch": example(restored),
        "dtype": settings["dtype"] or restored.config.export_dtype,
        "purpose": settings["purpose"] or restored.config.purpose,
        "card": card_facts(settings, restored, report, words),
        **{key: True for key in ("calibration", "cache") if settings[key]},
    }
    if target == "tensorrt":
        config = config_of(restored.student)
        batch, length = largest_input(config, batch=settings["batch"], length=settings["length"])
        common |= {"batch": batch, "length": length}
        settings = {**settings, "batch": batch, "length": length}  # which the plan must hold too
    if settings["bundle"]:
        deploy = deploy_settings(settings, restored, report)
        result = bundle(restored.student, deploy=deploy, **common)
    else:
        result = export(restored.student, **common)
    note(run_dir, report, result)
    tell(result, bundled=settings["bundle"])
    return result


def example(restored: Restored) -> dict[str, torch.Tensor]:
    """Two held-out rows, on which outputs are compared."""
    batch = next(iter(validation_batches(restored.data, restored.config.trainer)()))
    return {key: value[:2] for key, value in batch.items()}


def card_facts(
    settings: dict[str, Any], restored: Restored, report: dict[str, Any], words: list[str]
) -> CardFacts:
    """What the card says; quality is measured for bundles alone, as it takes a while."""
    config = restored.config
    # the report's losses are those of the run's end, and say nothing of another checkpoint
    known = report.get("quality", {}) if settings["checkpoint"] == "last" else {}
    quality = {k: v for k, v in known.items() if isinstance(v, float)}
    unit = report.get("quality", {}).get("unit", "nats/token")
    told: dict[str, float | str | None] = {f"loss ({unit}), {k}": v for k, v in quality.items()}
    if settings["bundle"]:
        told |= measured(restored, batches=settings["quality_batches"], level=settings["level"])
    command = reproduce(masked_words(words), "scripts/export.py")
    return CardFacts(
        name=settings["name"] or "",
        base_model=str(config.student.path or config.teacher.path or "embedded"),
        teacher=str(config.teacher.path or ""),
        data=str(restored.data.source),
        licence=settings["licence"] or "",
        recipe="\n".join(filter(None, [report.get("command"), command])),
        quality=told,
        speed={f"{s.get('name', 'speed')}": str(s.get("ratio")) for s in report.get("speed", [])},
    )


def measured(restored: Restored, *, batches: int, level: float) -> dict[str, str]:
    """The held-out loss or accuracy of the student as it is exported, with its interval."""
    rows = list(islice(validation_batches(restored.data, restored.config.trainer)(), batches))
    share = f"{level:.0%} interval"
    if restored.config.task == "classification":
        found = classification_accuracy(restored.student, rows)
        between = _interval(found.correct, None, level)
        return {f"accuracy, this export ({share})": between}
    if restored.config.task == "embedding":
        return {}  # only closeness to the teacher is measured, and that stands in the report
    quality = token_loss(restored.student, rows)
    between = _interval(quality.sequence_losses, quality.sequence_tokens, level)
    return {f"loss (nats/token), this export ({share}, {quality.tokens:,} tokens)": between}


def _interval(values: Any, weights: Any, level: float) -> str:
    if len(values) < 2:
        raise BadInput("quality_batches: one sequence gives no interval; take more")
    found: Interval = bootstrap_interval(values, weights=weights, level=level)
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def deploy_settings(
    settings: dict[str, Any], restored: Restored, report: dict[str, Any]
) -> DeploySettings:
    """The cluster's settings, with the degrees and the slice planned for `gpu`."""
    limit = int(getattr(config_of(restored.student), "max_position_embeddings", 2048))
    length = settings["length"] or limit
    if length > limit:
        raise BadInput(f"length={length}, but the model takes {limit} tokens")
    name = dns_label(settings["name"] or report.get("recipe") or "model")
    placement = planned(settings, restored, length=length) if settings["gpu"] else {}
    return DeploySettings(
        name=name,
        model_path=f"/models/{name}",
        max_model_len=length,
        **chosen_of(settings),
        **devices_of(settings),
        **placement,
    )


def chosen_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What the user says of the cluster."""
    return {key: settings[key] for key in DEPLOYED}


def devices_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What `gpu` is, and what its maker's device plugin calls it; nothing where none is named."""
    if not settings["gpu"]:
        return {}
    device = named_device(settings["gpu"])
    return {"accelerator": device.name, "device": RESOURCES[device.vendor]}


def named_device(gpu: str) -> Accelerator:
    """One accelerator of the planner's table.

    Raises:
        BadInput: several are named, or one that is not in it.
    """
    devices = accelerators(gpu)
    if len(devices) != 1:
        raise BadInput(f"gpu={gpu}: name one, the one that serves")
    (device,) = devices.values()
    return device


def planned(settings: dict[str, Any], restored: Restored, *, length: int) -> dict[str, Any]:
    """TP, PP and MIG for one accelerator.

    Raises:
        BadInput: several accelerators are named, or the model does not fit on many of this one.
    """
    from compress.plan import place_serving, serving_memory, shape_of

    device = named_device(settings["gpu"])
    config = copy.deepcopy(restored.student.config)
    config.architectures = [type(restored.student).__name__]  # one that was never saved names none
    shape = shape_of(config)
    scheme, group_size = dominant_scheme(restored.student)
    memory = serving_memory(
        shape, scheme=scheme, group_size=group_size, batch=settings["batch"] or BATCH,
        length=length,
    )  # fmt: skip
    placed = place_serving(shape, memory, device)
    if placed is None:
        raise BadInput(f"gpu={device.name}: the model does not fit, whatever the degrees")
    return {
        "tensor_parallel": placed.tensor_parallel,
        "pipeline_parallel": placed.pipeline_parallel,
        "mig": placed.mig,
    }


def dominant_scheme(student: torch.nn.Module) -> tuple[str, int | None]:
    """The scheme of most layers, and its group size; `dense` where nothing is quantised."""
    from collections import Counter

    from compress.export.schemes import scheme_name

    plan = collect_plan(student)
    counted = Counter(
        (scheme_name(x.weights, x.inputs), x.weights.group_size if x.weights else None)
        for x in plan.quantized
    )
    if not counted:
        return "dense", None
    (name, size), _ = counted.most_common(1)[0]
    return name, size if name.startswith("W") else None


def note(run_dir: Path, report: dict[str, Any], result: ExportResult) -> None:
    """The entry in report.json, in place of an earlier one for the same path."""
    if not report:
        return
    entry = result.entry(relative_to=run_dir)
    others = [e for e in report.get("exports", []) if e["path"] != entry["path"]]
    write_json(run_dir / "report.json", {**report, "exports": [*others, entry]})


def tell(result: ExportResult, *, bundled: bool) -> None:
    """Where it lies, how it compared, what to type next."""
    checked = result.verification
    print(f"{result.path}: {result.scheme} for {result.target}, {result.bytes:,} bytes of weights")
    print(
        f"compared with the trained model: {checked.quantized_layers} quantised layers, codes, "
        f"scales and zeros equal; outputs within {checked.max_abs_logit_diff:.3g}"
    )
    for remark in result.notes:
        print(f"note: {remark}")
    if bundled:
        print(f"deploy: {result.path / 'deploy' / 'README.md'}")
    elif result.target == "tensorrt":
        print(f"next: cd {result.path} && sh trtexec.sh   (on the GPU that serves)")
    elif result.target == "pt2":
        print(f"next, in Python:\n{program_lines(result.path)}")
    elif result.target in ("vllm", "modelopt"):
        print(f"next: vllm serve {result.path}")
