"""`plan.py sensitivity`: what fewer bits cost each layer, and the best plan under a budget."""

from pathlib import Path
from typing import Any

HELP = """\
How much each layer suffers from fewer bits, and the best plan under a budget.

  python scripts/plan.py sensitivity model=FOLDER text=FILES [key=value ...]

Often used:
  budget_bits=4.5         mean bits a weight, scales included; or budget_mb=900 for the whole model
  schemes=[W4A16:32,W8A16:32]   presets to choose from, a group size after the colon
  samples=16  length=256  seed=0      rows of the text that are measured on
  out=plan.json  plot=plan.svg
It ends with the `callbacks.qat.overrides` to train the plan with.
"""


def main(words: list[str]) -> int:
    """Measures, plans, prints; answers the exit status."""
    from compress.scripts.lib.settings import program

    return program(words, usage=HELP, run=_checked_run)


def _checked_run(words: list[str]) -> None:
    from compress.errors import BadInput
    from compress.scripts.lib.settings import check_model_path, check_writable, read_settings

    settings = read_settings(words, name="sensitivity")
    problems = [
        *check_model_path("model", settings["model"]),
        *check_writable("out", settings["out"]),
        *check_writable("plot", settings["plot"]),
        *([] if settings["text"] else ["text must be given: text=FILES to measure on"]),
        *check_budgets(settings),
    ]
    if problems:
        raise BadInput("\n".join(problems))
    run(settings)


def check_budgets(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the budgets; what is right becomes a number in place."""
    import math

    problems = []
    given = {k: settings[k] for k in ("budget_bits", "budget_mb") if settings[k] is not None}
    for key, text in given.items():
        try:
            settings[key] = float(text)
        except ValueError:
            settings[key] = math.nan
        if not 0 < settings[key] < math.inf:
            problems.append(f"{key}={text}: a number above 0 is expected, such as 4.5")
    if len(given) == 2:
        both = " and ".join(f"{key}={text}" for key, text in given.items())
        problems.append(f"{both}: give one")
    return problems


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Every figure, printed, and written where `out` and `plot` say."""
    from compress.quantize.budget import cheapest_plan
    from compress.quantize.sensitivity import measure_sensitivity
    from compress.scripts.lib.run_folder import write_json
    from compress.teachers.local import load_hf_teacher

    model = load_hf_teacher(settings["model"])
    rows = text_rows(settings, tokenizer_of(settings["model"]))
    units = measure_sensitivity(
        model, rows, schemes=settings["schemes"], include=settings["include"],
        exclude=settings["exclude"], samples=settings["samples"], seed=settings["seed"],
    )  # fmt: skip
    budget = budget_of(settings, model, units)
    plan = cheapest_plan(units, budget_bits=budget) if budget is not None else None
    found: dict[str, Any] = {
        "schema": 1, "model": settings["model"], "unit": "nats of KL a token", "settings": settings,
        "layers": [
            {"names": list(u.names), "weights": u.weights, "damage": u.damage, "bits": u.bits}
            for u in units
        ],
        "plan": plan and {"bits": plan.bits, "damage": plan.damage, "overrides": plan.overrides},
    }  # fmt: skip
    print_plan(found)
    if settings["out"]:
        write_json(Path(settings["out"]), found)
    if settings["plot"]:
        Path(settings["plot"]).write_text(plot(found))
    return found


def tokenizer_of(model: str) -> Any:
    """The tokenizer that lies beside the model.

    Raises:
        BadInput: there is none.
    """
    from transformers import AutoTokenizer

    from compress.errors import BadInput

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"model={model}: no tokenizer beside it: {str(error).splitlines()[0]}"
        ) from error


def text_rows(settings: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Packed rows of the text, tokenised by the model's own tokenizer.

    Raises:
        BadInput: the text is too short for one row, or there is no such file.
    """
    import torch

    from compress.data.read_files import find_files
    from compress.errors import BadInput

    wanted = settings["samples"] * settings["length"] * 8  # enough to draw from
    tokens: list[int] = []
    for file in find_files(settings["text"]):
        with file.open(encoding="utf-8", errors="replace") as stream:
            tokens += tokenizer(stream.read(8 * wanted), add_special_tokens=False)["input_ids"]
        if len(tokens) >= wanted:
            break
    count = len(tokens) // settings["length"]
    if count == 0:
        raise BadInput(f"text={settings['text']}: fewer than length={settings['length']} tokens")
    rows = torch.tensor(tokens[: count * settings["length"]]).view(count, -1)
    return [{"input_ids": row} for row in rows]


def budget_of(settings: dict[str, Any], model: Any, units: list[Any]) -> float | None:
    """Mean bits a weight that the budget leaves for the layers that are planned.

    Raises:
        BadInput: what stays dense is larger than the budget.
    """
    from compress.errors import BadInput

    megabytes: float | None = settings["budget_mb"]
    if megabytes is None:
        bits: float | None = settings["budget_bits"]
        return bits
    planned = sum(unit.weights for unit in units)
    dense = 16 * (sum(p.numel() for p in model.parameters()) - planned)
    left = megabytes * 8e6 - dense
    if left <= 0:
        raise BadInput(
            f"budget_mb={megabytes:g}: what stays dense (embeddings, norms, head) takes "
            f"{dense / 8e6:.1f} MB in 16 bits alone"
        )
    return left / planned


def print_plan(found: dict[str, Any]) -> None:
    """A table of damages with the choice marked, and the setting to train it with."""
    from compress.scripts.lib.tables import _console, _say, _table

    console, plan = _console(), found["plan"]
    schemes = list(found["layers"][0]["damage"])
    heads = [("layer", "left"), *((s, "right") for s in schemes), ("chosen", "left")]
    table = _table(console, f"Damage in {found['unit']}, one layer at a time", *heads)
    for layer in found["layers"]:
        chosen = plan["overrides"][layer["names"][0]] if plan else ""
        cells = [f"{layer['damage'][s]:.2e}" for s in schemes]
        table.add_row(_say(console, " + ".join(short(layer["names"]))), *cells, chosen)
    console.print(table)
    if plan:
        console.print(_say(console, f"{plan['bits']:.3f} bits a weight, summed damage "
                                    f"{plan['damage']:.4f}. Train it:"))  # fmt: skip
        listed = ",".join(f"'{name}':'{scheme}'" for name, scheme in plan["overrides"].items())
        console.print(_say(console, f'  "callbacks.qat.overrides={{{listed}}}"'))


def short(names: list[str]) -> list[str]:
    """The first name whole, of the fused ones the last part.

    >>> short(["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"])
    ['model.layers.0.self_attn.q_proj', 'k_proj']
    """
    return [names[0], *(name.rpartition(".")[2] for name in names[1:])]


def plot(found: dict[str, Any]) -> str:
    """Orders of magnitude of the damage: layers down, projection and scheme across."""
    import math

    from compress.scripts.lib.report_plots import heat_map, standalone

    cells = {}
    for layer in found["layers"]:
        block, _, last = layer["names"][0].rpartition(".")
        for scheme, damage in layer["damage"].items():
            kind = f"{last.removesuffix('_proj')} {scheme}"
            number = next((part for part in block.split(".") if part.isdigit()), block)
            cells[number, kind] = round(math.log10(max(damage, 1e-9)), 1)
    title = "log10 of the damage (nats of KL a token), one layer at a time"
    drawn = heat_map(cells, key="sensitivity", alt="Damage by layer and scheme", title=title)
    assert drawn is not None
    return standalone(drawn)
