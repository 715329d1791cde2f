"""Shell completion of `key=value` words: groups, their choices, settings, and paths by the shell."""  # noqa: E501

from typing import Any

from compress.errors import CompressError
from compress.scripts.lib.config import compose, recipes_folder

BASH = """\
# bash: eval "$(compress-train --completion)"    zsh: autoload -U bashcompinit && bashcompinit first
_compress_train() {
  COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
  local words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
  local found
  mapfile -t found < <("${COMP_WORDS[0]}" --complete "${COMP_WORDS[COMP_CWORD]}" "${words[@]}" 2>/dev/null)
  COMPREPLY=("${found[@]}")
  [[ ${#found[@]} -eq 1 && ${found[0]} != *= ]] || compopt -o nospace
}
complete -F _compress_train compress-train
"""  # noqa: E501


def candidates(begun: str, words: list[str]) -> list[str]:
    """What the word that was begun may become.

    Args:
        begun: the word at the cursor, such as `recipe=dis` or `callbacks.qat.`.
        words: the words before it; they decide which settings there are.
    """
    key, equals, _ = begun.partition("=")
    if equals:
        found = [f"{key}={choice}" for choice in _choices(key)]
    else:
        found = [f"{group}=" for group in _groups()] + [f"{k}=" for k in _keys(words)]
    return sorted({word for word in found if word.startswith(begun)})


def _groups() -> list[str]:
    hidden = ("callbacks", "sweep")
    return [p.name for p in recipes_folder().iterdir()
            if p.is_dir() and p.name[0] not in "_." and p.name not in hidden]  # fmt: skip


def _choices(group: str) -> list[str]:
    folder = recipes_folder() / group
    if "." in group or not folder.is_dir():
        return []
    return [p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")]


def _keys(words: list[str]) -> list[str]:
    from omegaconf import OmegaConf

    chosen = [word for word in words if word.partition("=")[0] in _groups()]
    try:
        config = compose(chosen)
    except CompressError:
        return []
    return _flat(OmegaConf.to_container(config), "")


def _flat(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict) or not node:
        return [prefix.rstrip(".")]
    inside = {key: value for key, value in node.items() if key != "_target_"}
    return [name for key, value in inside.items() for name in _flat(value, f"{prefix}{key}.")]
