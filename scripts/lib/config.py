"""From `key=value` words to a checked configuration; imports nothing heavy.

Every settable key stands in a recipe file, so a misspelt one is found before anything is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean
from compress.scripts.lib.kinds import check_callback_settings, check_keys, check_kinds, check_top
from compress.scripts.lib.targets import check_resolved, check_switches, check_targets


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
    from yaml import YAMLError

    _check_words(words)
    words = [_into_open_group(word) for word in words]
    folder = str(recipes_folder().resolve())
    with _without_environment(), initialize_config_dir(config_dir=folder, version_base="1.3"):
        choices = [w for w in words if _is_group(w) or w.startswith(("+", "~"))]
        try:
            base = hydra_compose(primary, overrides=choices)
            defaults = OmegaConf.to_container(base)
            check_keys([w for w in words if w not in choices], defaults)
            groups = [w for w in choices if _is_group(w)]
            known = base if groups == choices else hydra_compose(primary, overrides=groups)
            check_top(base, known)
            config = hydra_compose(primary, overrides=words)
            OmegaConf.resolve(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise BadInput(_first_line(error)) from error
        except YAMLError as error:
            raise BadInput(f"a recipe file is no YAML: {' '.join(str(error).split())}") from error
        except RecursionError as error:
            raise BadInput("the configuration refers to itself without end") from error
    plain = OmegaConf.to_container(config)
    check_resolved(plain, whose="the configuration")
    _check_missing(config)
    check_values(plain, defaults, words)
    return config


def check_values(plain: Any, defaults: Any, words: list[str]) -> None:
    """Refuse values of a kind that their setting does not take, and what no recipe may name.

    Args:
        plain: the whole configuration, resolved.
        defaults: the same as the recipe files say it.
        words: of the command line: what they switch on, the user has switched on.

    Raises:
        BadInput: every problem of the first sort that has any.
    """
    check_kinds(plain, defaults)
    check_callback_settings(plain["callbacks"], recipes_folder() / "callbacks")
    check_switches(plain, words)
    check_targets(plain, list(plain["allow_modules"]))


@contextmanager
def _without_environment() -> Iterator[None]:
    """A recipe may not read environment variables: they hold keys, and a configuration travels."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def refuse(*words: Any) -> None:
        raise BadInput(
            f"${{oc.env:{words[0] if words else ''}}} is not read: a recipe could send your keys "
            "away by it. Give the value on the command line, where the shell fills in $NAME"
        )

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _into_open_group(word: str) -> str:
    """A group that is empty by default takes keys of the user's own: Hydra wants `++` for them."""
    open_group = ".overrides" in word.partition("=")[0]
    return f"++{word}" if open_group and not word.startswith(("+", "~")) else word


def _check_words(words: list[str]) -> None:
    for word in words:
        if not word.startswith("~") and "=" not in word:
            raise BadInput(f"{word!r} is no key=value; write e.g. recipe=distill_qat")
        if _is_group(word):
            _check_choice(*word.split("=", 1))


def _is_group(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(key and equals) and "." not in key and (recipes_folder() / key).is_dir()


def _check_choice(group: str, choice: str) -> None:
    folder = recipes_folder() / group
    known = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    if choice not in known:
        listed = ", ".join(known)
        if group == "recipe":
            listed = "\n" + "\n".join(f"  {n:24} {what}" for n, what in list_recipes().items())
        raise BadInput(
            f"{group}={choice} is unknown.{did_you_mean(choice, known)} There are: {listed}"
        )


def _check_missing(config: Any) -> None:
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise BadInput("\n".join(f"{key} must be given: {key}=..." for key in missing))


def _first_line(error: BaseException) -> str:
    text = str(error) or str(error.__cause__)
    return text.strip().splitlines()[0]
