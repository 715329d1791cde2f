"""From `key=value` words to a checked configuration; imports nothing heavy.

Every settable key stands in a recipe file, so a misspelt one is found before anything is built.
"""

from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean

ALLOWED_TARGETS = ("compress.", "lightning.", "transformers.", "torchmetrics.", "torch.optim.")


def recipes_folder() -> Path:
    """Where the recipes lie: in the checkout or in the installed package."""
    import compress.recipes

    return Path(next(iter(compress.recipes.__path__)))


def list_recipes() -> dict[str, str]:
    """Each recipe's name and its one-line purpose (the first comment that is no directive)."""
    found = {}
    folder = recipes_folder() / "recipe"
    for path in sorted(folder.rglob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
        purpose = next((c[2:] for c in comments if not c.startswith("# @")), "")
        found[path.relative_to(folder).with_suffix("").as_posix()] = purpose
    return found


def compose(words: list[str], *, primary: str = "train") -> Any:
    """The configuration that these `key=value` words describe.

    Raises:
        BadInput: an unknown group choice or key, a value of another kind, or bad syntax.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_words(words)
    folder = str(recipes_folder().resolve())
    with initialize_config_dir(config_dir=folder, version_base="1.3"):
        choices = [w for w in words if _is_group(w) or w.startswith(("+", "~"))]
        try:
            base = hydra_compose(primary, overrides=choices)
            _check_keys([w for w in words if w not in choices], OmegaConf.to_container(base))
            config = hydra_compose(primary, overrides=words)
        except (HydraException, OmegaConfBaseException) as error:
            raise BadInput(_first_line(error)) from error
    _check_missing(config)
    check_targets(OmegaConf.to_container(config.callbacks), list(config.allow_modules))
    return config


def check_targets(node: Any, allow_modules: list[str], where: str = "callbacks") -> None:
    """Refuse a `_target_` outside the allow-list: a recipe must not run arbitrary code.

    Raises:
        BadInput: a target lies elsewhere.
    """
    if isinstance(node, dict):
        target = node.get("_target_")
        allowed = (*ALLOWED_TARGETS, *(f"{module}." for module in allow_modules))
        if target is not None and not str(target).startswith(allowed):
            raise BadInput(
                f"{where}._target_={target!r} is not allowed to run; if you trust it, add its "
                f"module: allow_modules=[{str(target).rpartition('.')[0]}]"
            )
        for key, value in node.items():
            check_targets(value, allow_modules, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, allow_modules, f"{where}[{index}]")


def _check_words(words: list[str]) -> None:
    for word in words:
        if not word.startswith("~") and "=" not in word:
            raise BadInput(f"{word!r} is no key=value; write e.g. recipe=distill_qat")
        if _is_group(word):
            _check_choice(*word.split("=", 1))


def _is_group(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and "." not in key and (recipes_folder() / key).is_dir()


def _check_choice(group: str, choice: str) -> None:
    folder = recipes_folder() / group
    known = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    if choice not in known:
        raise BadInput(
            f"{group}={choice} is unknown.{did_you_mean(choice, known)} "
            f"There are: {', '.join(known)}"
        )


def _check_keys(words: list[str], base: Any) -> None:
    problems = [problem for word in words if (problem := _problem_of(word, base))]
    if problems:
        raise BadInput("\n".join(problems))


def _problem_of(word: str, base: Any) -> str | None:
    key, _, text = word.partition("=")
    node, walked = base, ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            known = [str(k) for k in node] if isinstance(node, dict) else []
            place = f"{walked.rstrip('.')} has no setting" if walked else "there is no setting"
            hint = did_you_mean(part, known)
            listed = ", ".join(k for k in known if not k.startswith("_"))
            return (
                f"{key}: {place} {part!r}.{hint} Known: {listed or 'nothing (no such callback?)'}"
            )
        node, walked = node[part], f"{walked}{part}."
    return _kind_problem(key, text, node)


def _kind_problem(key: str, text: str, default: Any) -> str | None:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # Hydra's own grammar decides
    if value is None or default is None:
        return None
    if isinstance(default, bool) != isinstance(value, bool) and isinstance(default, bool):
        return f"{key}={text}: true or false is expected"
    if isinstance(default, int | float) and not isinstance(default, bool):
        return None if _is_number(text) else f"{key}={text}: a number is expected, as {default}"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_missing(config: Any) -> None:
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise BadInput("\n".join(f"{key} must be given: {key}=..." for key in missing))


def _first_line(error: BaseException) -> str:
    text = str(error) or str(error.__cause__)
    return text.strip().splitlines()[0]
