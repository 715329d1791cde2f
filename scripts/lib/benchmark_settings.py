"""What can be wrong with a benchmark's settings, found before anything heavy is imported."""

import json
from pathlib import Path
from typing import Any

from compress.errors import did_you_mean
from compress.scripts.lib.settings import check_installed, check_model_path, check_writable

ENGINES = ("transformers", "onnxruntime", "eager", "inductor", "tvm", "vllm", "server")
INSTALL = {
    "onnxruntime": ("onnxruntime", "pip install 'compress-lm[onnx]'"),
    "tvm": ("tvm", "pip install apache-tvm"),
}
OTHERS = {"*.onnx": "onnxruntime", "*.pt2": "inductor"}
"""Files that are no checkpoint, and the engine that runs them."""

OF_SERVERS = ("url", "generator", "generator_python")
"""Settings that say something of `engine=server` alone."""


def checked(settings: dict[str, Any]) -> list[str]:
    """Every problem, one a line; in place, ranges become pairs and null a server's generator."""
    engine = settings["engine"]
    problems = [
        *_no_model(settings),
        *check_model_path("model", settings["model"]),
        *check_model_path("baseline", settings["baseline"]),
        *check_model_path("lengths", settings["lengths"], remote=False),
        *check_writable("out", settings["out"]),
    ]
    if Path(settings["out"]).suffix != ".json":
        problems.append(
            f"out={settings['out']}: must end in .json; the plot lies beside it as .png"
        )
    if engine not in ENGINES:
        hint = did_you_mean(engine, ENGINES)
        problems.append(f"engine={engine} is unknown.{hint} There are: {', '.join(ENGINES)}")
    if engine in INSTALL:
        module, command = INSTALL[engine]
        problems += check_installed(module, f"engine={engine}", command)
    if engine == "vllm" or (engine == "server" and not settings["url"]):
        problems += _without_vllm(settings)
        problems += _no_checkpoints(settings)
    if engine == "server":
        settings["generator"] = settings["generator"] or "vllm"
        problems += _server_problems(settings)
    else:
        problems += [
            f"{key}={settings[key]} is of a server, and engine={engine} asks none: engine=server"
            for key in OF_SERVERS if settings[key]
        ]  # fmt: skip
    for key in ("requests", "rounds", "threads", "timeout"):
        if settings[key] < 1:
            problems.append(f"{key}={settings[key]}: must be at least 1")
    if settings["price_per_hour"] is not None:
        settings["price_per_hour"], problem = price(settings["price_per_hour"])
        problems += [problem] if problem else []
    for key in ("prompt_tokens", "new_tokens"):
        settings[key], problem = length_range(key, settings[key])
        problems += [problem] if problem else []
    for key in ("concurrency", "rates"):
        settings[key], problem = numbers(key, settings[key])
        problems += [problem] if problem else []
    if not settings["concurrency"] and not settings["rates"]:
        problems.append("nothing to run: give concurrency=[1] or rates=[1]")
    return problems


def _no_model(settings: dict[str, Any]) -> list[str]:
    if settings["model"] or settings["url"]:
        return []
    return ["model must be given: model=PATH; or a server that runs: engine=server url=http://..."]


def _without_vllm(settings: dict[str, Any]) -> list[str]:
    from compress.scripts.lib.load_generators import is_program

    python = Path(settings["python"])
    if is_program(python):
        return []
    found = f"{python} is no program" if python.exists() else f"there is no {python}"
    return [
        f"engine={settings['engine']} needs vLLM, and {found}: "
        "make test-serving makes it; on a GPU: python -m venv .venv-serve && "
        ".venv-serve/bin/pip install vllm"
    ]


def _no_checkpoints(settings: dict[str, Any]) -> list[str]:
    """What lies at a path of this machine and is no checkpoint, which is all that vLLM reads."""
    problems = []
    for arm in ("model", "baseline"):
        place = Path(settings[arm] or "")
        if not settings[arm] or not place.exists() or _holds(place, "*.safetensors"):
            continue
        other = next((f"it holds {kind}: engine={engine} runs it" for kind, engine in OTHERS.items()
                      if _holds(place, kind)), "it holds no *.safetensors")  # fmt: skip
        problems.append(
            f"{arm}={place}: engine={settings['engine']} reads a checkpoint folder; {other}"
        )
    return problems


def _holds(place: Path, pattern: str) -> bool:
    return any(place.glob(pattern)) if place.is_dir() else place.match(pattern)


def _server_problems(settings: dict[str, Any]) -> list[str]:
    from compress.scripts.lib.benchmark_server import GENERATORS

    name, problems = settings["generator"], []
    if name not in GENERATORS:
        hint = did_you_mean(name, list(GENERATORS))
        problems.append(f"generator={name} is unknown.{hint} There are: {', '.join(GENERATORS)}")
    elif missing := GENERATORS[name].missing(settings):
        problems.append(f"generator={name} is not installed: {missing}")
    if settings["url"] and settings["baseline"]:
        problems.append("url= names one server: measure the baseline's in a run of its own")
    for arm in ("model", "baseline"):
        if settings[arm] and _classifies(Path(settings[arm])):
            problems.append(
                f"{arm}={settings[arm]} writes no tokens, and load generators ask for them: "
                "use engine=vllm"
            )
    return problems


def _classifies(folder: Path) -> bool:
    try:
        names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    except (OSError, ValueError):  # told better by what reads it in earnest
        return False
    return str(names[0]).endswith("ForSequenceClassification")


def length_range(key: str, value: Any) -> tuple[tuple[int, int], str | None]:
    """`32` or `32-128` as a pair.

    >>> length_range("new_tokens", "32-128")[0]
    (32, 128)
    """
    low, found, high = str(value).partition("-")
    try:
        return (int(low), int(high if found else low)), None
    except ValueError:
        return (1, 1), f"{key}={value}: a number or a range such as 32-128 is expected"


def price(value: Any) -> tuple[float, str | None]:
    """Dollars an hour, 0 or more."""
    try:
        dollars = float(value)
    except (TypeError, ValueError):
        return 0.0, f"price_per_hour={value}: a number of dollars is expected"
    return dollars, None if 0 <= dollars < 1e9 else f"price_per_hour={value}: 0 or more"


def numbers(key: str, value: Any) -> tuple[list[float], str | None]:
    """A list of positive numbers."""
    values = value if isinstance(value, list) else [value]
    try:
        found = [float(item) for item in values]
    except (TypeError, ValueError):
        return [], f"{key}={value}: a list of numbers is expected, such as [1,4]"
    whole = key == "concurrency"
    if any(item <= 0 or (whole and item != int(item)) for item in found):
        kind = "whole numbers from 1 on" if whole else "numbers above 0"
        return found, f"{key}={value}: {kind} are expected"
    return found, None
