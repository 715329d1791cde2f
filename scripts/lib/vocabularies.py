"""One tokenizer for all models of a run: a run tokenises its text once, and every model reads it.

Another tokenizer's ids are in range as a rule, so nothing but this check would tell.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from compress.errors import BadInput
from compress.teachers.local import check_vocabulary

FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
)  # fmt: skip
"""A folder without any of these has no tokenizer of its own: its model takes the run's."""


def tokenizer_at(path: str) -> Any:
    """The tokenizer of a folder or a hub name.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"no tokenizer at {path}: {str(error).splitlines()[0]}") from error


def named_checkpoints(config: DictConfig) -> dict[str, str]:
    """Settings that name a model by its path, callbacks' own teachers too, and the paths."""
    found = {f"{who}.path": config[who].get("path") for who in ("teacher", "student")}
    for name, settings in (config.get("callbacks") or {}).items():
        found[f"callbacks.{name}.teacher"] = settings.get("teacher")
        others = settings.get("teachers")
        for other in others if isinstance(others, DictConfig) else ():
            found[f"callbacks.{name}.teachers.{other}"] = others[other]
    return {setting: path for setting, path in found.items() if isinstance(path, str)}


def check_tokenizers(config: DictConfig, tokenizer: Any, *, source: str) -> None:
    """Refuse models that would read the run's tokens as other words than they are.

    Args:
        config: names the models.
        tokenizer: of the run's data.
        source: where it is from: a path, or words.

    Raises:
        BadInput: naming every model of another tokenizer; or two tokenizers are asked for
            (`alignment=uld`), and a model's cannot be compared.
    """
    problems, unknown = [], []
    for setting, path in named_checkpoints(config).items():
        if path == source:
            continue
        if _has_none(path):
            unknown.append(f"{setting}={path}")
            continue
        try:
            names = (f"{setting}={path}", source)
            check_vocabulary(tokenizer_at(path), tokenizer, names=names)
        except BadInput as error:
            problems.append(str(error))
    if unknown:
        problems += [
            f"callbacks.{name}.alignment=uld is for two tokenizers, which a run cannot have, and "
            f"{', '.join(unknown)} holds none to compare: use alignment=same"
            for name, settings in (config.get("callbacks") or {}).items()
            if settings.get("alignment") == "uld"
        ]
    if problems:
        raise BadInput("\n".join(problems))


def _has_none(path: str) -> bool:
    folder = Path(path).expanduser()
    return folder.is_dir() and not any((folder / name).is_file() for name in FILES)
