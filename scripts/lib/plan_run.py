"""One plan: figures from `compress.plan`, their tables, their JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from compress.plan import (
    Accelerator,
    ModelShape,
    accelerators,
    load_config,
    place_serving,
    place_training,
    read_overrides,
    serving_memory,
    shape_of,
    training_memory,
)
from compress.plan.accelerators import table
from compress.plan.fakes import OWN_ATTENTION
from compress.plan.fit import best_case, number_format
from compress.plan.memory import DENSE
from compress.quantize.schemes import resolve_scheme
from compress.scripts.lib.run_folder import write_json
from compress.scripts.lib.tables import _console, _say, _table


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Count, place, print, and write where `out=` says."""
    overrides = read_overrides(settings["accelerators"]) if settings["accelerators"] else None
    devices = accelerators(settings["gpu"] and settings["gpu"].strip("[] "), overrides=overrides)
    for scheme in settings["schemes"]:
        number_format(scheme)  # refuses an unknown one before anything is counted
    if settings["qat"]:
        resolve_scheme(settings["qat"])
    shape = shape_of(load_config(settings["model"]))
    planned = _planned(shape, settings)
    plan: dict[str, Any] = {
        "schema": 1, "model": settings["model"], "settings": settings,
        "accelerators_as_of": table()[0], "shape": _facts(shape),
        "serving": _serving(shape, devices, planned), "training": None,
        "notes": list(_notes(shape, settings, planned)),
    }  # fmt: skip
    if settings["train"] and not shape.routed:
        plan["training"] = _training(shape, devices, planned)
    _print(plan, devices)
    if settings["out"]:
        write_json(Path(settings["out"]), plan)
    return plan


def _facts(shape: ModelShape) -> dict[str, Any]:
    return {
        "architecture": shape.name, "parameters": shape.parameters,
        "active_parameters": int(shape.active_parameters), "layers": shape.layers,
        "hidden": shape.hidden, "heads": shape.heads, "kv_heads": shape.kv_heads,
        "generates": shape.generates,
        "kv_bytes_per_token": shape.kv_bytes_16 + sum(size for _, size in shape.windows),
    }  # fmt: skip


def _planned(shape: ModelShape, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as far as the model can follow them; `_notes` tells where it cannot."""
    planned = dict(settings)
    if not shape.generates and shape.positions:
        for key in ("length", "train_length"):
            planned[key] = min(settings[key], shape.positions)
    if not shape.compressible:
        kept = [scheme for scheme in settings["schemes"] if scheme in DENSE]
        planned |= {"schemes": kept or ["dense"], "qat": None}
    return planned


def _notes(shape: ModelShape, settings: dict[str, Any], planned: dict[str, Any]) -> Iterator[str]:
    limit, kind = shape.positions, shape.config.model_type
    for key in ("length", *(("train_length",) if settings["train"] else ())):
        if limit and settings[key] > limit:
            cut = f": planned with {limit}" if planned[key] == limit else ""
            yield f"{key}={settings[key]} lies beyond the {limit} tokens that the model takes{cut}"
    if shape.conv1d:
        yield (f"{shape.conv1d} layers are Conv1D, not nn.Linear: no scheme covers them here, and "
               "they stay in 16 bits")  # fmt: skip
    if kind in OWN_ATTENTION:
        yield (f"{kind} writes its attention itself, and is counted so: servers with fused kernels "
               "hold fewer activations")  # fmt: skip
    if left := [scheme for scheme in settings["schemes"] if scheme not in planned["schemes"]]:
        yield f"no layer is left to compress, so these are not planned: {', '.join(left)}"
    if shape.routed:
        untrained = ", and training is not planned" if settings["train"] else ""
        yield ("mixtures of experts can be teachers here, not students: rows of a scheme stand for "
               f"checkpoints that other programs compressed{untrained}")  # fmt: skip
    elif settings["train"] and settings["qat"] != planned["qat"]:
        yield f"qat={settings['qat']} would be refused: training is planned without it"


def _serving(
    shape: ModelShape, devices: dict[str, Accelerator], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for scheme in settings["schemes"]:
        for batch in settings["batch"]:
            memory = serving_memory(
                shape, scheme=scheme, group_size=settings["group_size"], batch=batch,
                length=settings["length"], kv_bits=settings["kv_bits"],
                prefill_tokens=settings["prefill_tokens"],
            )  # fmt: skip
            kv = memory.sharded["kv_cache"]
            places = {}
            for name, device in devices.items():
                placed = place_serving(shape, memory, device, usable=settings["usable"])
                places[name] = _placed(placed, scheme, device)
                if placed is not None:
                    places[name]["best_case"] = best_case(
                        shape, device, scheme=scheme, group_size=settings["group_size"],
                        batch=batch, length=settings["length"], kv_bytes=kv,
                        devices=placed.tensor_parallel, mig=placed.mig,
                    )  # fmt: skip
            rows.append({"scheme": scheme, "batch": batch, "length": settings["length"],
                         "bytes": memory.as_dict(), "places": places})  # fmt: skip
    return rows


def _placed(placed: Any, scheme: str, device: Accelerator) -> dict[str, Any]:
    runs = number_format(scheme) in device.formats
    if placed is None:
        return {"fits": False, "kernels": runs}
    return {
        "fits": True, "kernels": runs, "devices": placed.devices,
        "tensor_parallel": placed.tensor_parallel, "pipeline_parallel": placed.pipeline_parallel,
        "bytes_per_device": placed.bytes_per_device, "mig": placed.mig,
    }  # fmt: skip


def _training(
    shape: ModelShape, devices: dict[str, Accelerator], settings: dict[str, Any]
) -> dict[str, Any]:
    teacher = shape_of(load_config(settings["teacher"])) if settings["teacher"] else None
    memory = training_memory(
        shape, batch=settings["train_batch"], length=settings["train_length"],
        precision=settings["precision"], scheme=settings["qat"],
        checkpointing=settings["checkpointing"], optimizer_bytes=settings["optimizer_bytes"],
        trainable_share=settings["trainable_share"], teacher=teacher,
    )  # fmt: skip
    places: dict[str, Any] = {}
    for name, device in devices.items():
        placed = place_training(shape, memory, device, usable=settings["usable"])
        places[name] = placed and {
            "devices": placed.devices,
            "bytes_per_device": placed.bytes_per_device,
        }
    return {"bytes": memory.as_dict(), "places": places}


def _print(plan: dict[str, Any], devices: dict[str, Accelerator]) -> None:
    console = _console()
    facts = plan["shape"]
    active = facts["active_parameters"] / 1e6
    console.print(
        _say(console, f"{facts['architecture']}: {facts['parameters'] / 1e6:,.2f}M parameters, "
             f"{active:,.2f}M multiplied a token; KV-cache {facts['kv_bytes_per_token']:,} bytes "
             "a token in 16 bits")
    )  # fmt: skip
    _serving_tables(console, plan, devices)
    if plan["training"]:
        _training_table(console, plan["training"])
    for note in plan["notes"]:
        console.print(_say(console, f"note: {note}"), soft_wrap=True)
    said = f"Accelerator figures as of {plan['accelerators_as_of']}; yours: accelerators=FILE.json"
    console.print(_say(console, said), soft_wrap=True)


def _serving_tables(console: Console, plan: dict[str, Any], devices: dict[str, Any]) -> None:
    parts = ["weights", "kv_cache", "activations", "runtime", "total"]
    memory = _table(console, "Serving, bytes on one device", ("scheme", "left"), ("batch", "right"),
                    *((part, "right") for part in parts))  # fmt: skip
    columns = [(f"{r['scheme']} b{r['batch']}", "right") for r in plan["serving"]]
    each = "token" if plan["shape"]["generates"] else f"text of {plan['serving'][0]['length']}"
    places = _table(console, f"Where it fits (devices as tensor x pipeline; least ms a {each})",
                    ("accelerator", "left"), *columns)  # fmt: skip
    for row in plan["serving"]:
        memory.add_row(row["scheme"], str(row["batch"]), *(_gb(row["bytes"][p]) for p in parts))
    for name in devices:
        places.add_row(name, *(_place_words(row["places"][name]) for row in plan["serving"]))
    console.print(memory, places)


def _place_words(place: dict[str, Any]) -> str:
    if not place["fits"]:
        return "no"
    words = f"{place['tensor_parallel']}x{place['pipeline_parallel']}"
    if place["mig"]:
        words = place["mig"]
    time = place["best_case"]["token_ms"] or place["best_case"]["prefill_ms"]
    return f"{words} {time:.2g}" + ("" if place["kernels"] else " (no kernel)")


def _training_table(console: Console, training: dict[str, Any]) -> None:
    table = _table(console, "Training, bytes on one device", ("part", "left"), ("", "right"))
    for part, size in training["bytes"].items():
        table.add_row(part, _gb(size))
    console.print(table)
    fits = [f"{n}: {p['devices'] if p else 'no'}" for n, p in training["places"].items()]
    console.print(_say(console, f"Devices to train on, sharded: {', '.join(fits)}"), soft_wrap=True)
    if not all(training["places"].values()):
        said = "where it says no: each device keeps its activations whole, however many there are"
        console.print(_say(console, f"{said}: smaller train_batch=, checkpointing=true"),
                      soft_wrap=True)  # fmt: skip


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
