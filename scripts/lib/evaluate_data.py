"""The data that models are measured on: a run brings its own, and words may change it."""

from collections.abc import Sequence
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.kinds import check_keys


def names_data(words: Sequence[str]) -> bool:
    """Whether the data is chosen: `data=NAME`, which switches a run's own off."""
    return any(_key(word) == "data" for word in words)


def changes_of(words: Sequence[str]) -> list[str]:
    """The words that set one thing of the data, whichever it is.

    >>> changes_of(["model=runs/a", "data.sequence_length=128", "data=text"])
    ['data.sequence_length=128']
    """
    return [word for word in words if _key(word).startswith("data.")]


def changed(config: Any, changes: Sequence[str]) -> Any:
    """A run's configuration with these words over the settings of its own data.

    Raises:
        BadInput: the run's data has no such setting, or a word cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    if taken := [word for word in changes if word.startswith("~")]:
        raise BadInput(
            f"{', '.join(taken)}: settings of a run's own data are changed, not taken out"
        )
    words = [word.lstrip("+") for word in changes]
    check_keys(words, {"data": OmegaConf.to_container(config.data)})
    found = OmegaConf.create(OmegaConf.to_container(config))
    for word in words:
        try:
            read = OverridesParser.create().parse_override(word)
            OmegaConf.update(found, read.key_or_group, read.value(), merge=False)
        except HydraException as error:
            raise BadInput(f"{word}: {str(error).splitlines()[0]}") from error
    return found


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
