"""Sending an exported folder to the Hugging Face hub; the only place that writes to a network."""

import glob
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compress.errors import BadInput

NEEDED = ("config.json", "README.md")
WEIGHTS = ("*.safetensors", "*.onnx", "*.pt2")
OF_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.onnx*", "*.pt2", "hf_quant_config.json",
    "modules.json",
)  # fmt: skip
"""What an earlier export may have left in a repository, and readers would take for the model."""


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Compressed model",
) -> str:
    """Upload an exported folder, its model card included; answers the address of the commit.

    Weights and card go up in one commit, and with it go the weight files of an earlier export that
    this one lacks: a loader would read them in place of the new ones. A folder that takes long to
    send, the hub's client may split: then the old weights go first. Folders that are in the
    repository are left alone.

    Args:
        folder: what `export` wrote; it was compared with the trained model before it got its name.
        repo_id: `owner/name`; made if it does not exist.
        private: of a repository that is made now; True shows it to nobody else, and refuses one
            that is public already; None makes a private one, and leaves an older one as it is.
        revision: branch to commit to; None is the main one.
        message: of the commit.

    Raises:
        BadInput: the folder is no export, nobody is logged in, the repository is public, or the hub
            refuses or is not there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    login = "run `hf auth login`, or set HF_TOKEN"

    path = checked_folder(folder)
    if repo_id.count("/") != 1:
        raise BadInput(f"repo={repo_id!r}: owner/name is expected")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private is not False, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise BadInput(
                f"private=true, but {repo_id} is public already: what is sent there, all can read. "
                "Make it private in its settings on the hub, name another, or leave private= out"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        sent = api.upload_folder(
            repo_id=repo_id, folder_path=str(path), revision=revision, commit_message=message,
            delete_patterns=_left_over(api.list_repo_files(repo_id, revision=revision), path),
        )  # fmt: skip
    except BadInput:
        raise
    except LocalTokenNotFoundError as error:
        raise BadInput(f"nobody is logged in to the hub: {login}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        way = f"; {login}" if status in (401, 403) else ""
        raise BadInput(f"the hub refused {repo_id}: {_said(error)}{way}") from error
    except Exception as error:  # the errors of its transports have no common base
        raise BadInput(
            f"{repo_id} was not sent: {_said(error)}. The hub is not reached, or the folder not "
            "read; the same command goes on with what is not there yet"
        ) from error
    return str(sent.commit_url)


def _left_over(there: Iterable[str], path: Path) -> list[str]:
    """Patterns of the weight files in a repository, beside its card, that the folder lacks."""
    return [
        glob.escape(name)
        for name in there
        if "/" not in name
        and any(fnmatchcase(name, pattern) for pattern in OF_WEIGHTS)
        and not (path / name).is_file()
    ]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def checked_folder(folder: str | Path) -> Path:
    """The folder, if it is whole.

    Raises:
        BadInput: naming all that is missing or damaged.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise BadInput(f"{path}: there is no such folder; scripts/export.py writes one")
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        missing.append(" or ".join(WEIGHTS))
    if missing:
        raise BadInput(f"{path} is no exported folder: it has no {', '.join(missing)}")
    config = _object(path / "config.json")
    problems = [] if config else [f"{path / 'config.json'} holds no JSON object"]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        places = _object(index).get("weight_map")
        if not isinstance(places, dict):
            problems.append(f"{index} is damaged: it has no weight_map")
            places = {}
        absent = sorted({str(p) for p in places.values() if not (path / str(p)).is_file()})
        problems += [f"shards that the index names are absent: {', '.join(absent)}"] * bool(absent)
    problems += [why for file in sorted(path.glob("*.safetensors")) if (why := _why_broken(file))]
    if problems:
        raise BadInput(f"{path} is not whole:\n  " + "\n  ".join(problems))
    return path


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _why_broken(file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # reads the header, and holds it against the length
            return None
    except (SafetensorError, OSError) as error:
        return f"{file.name} is damaged: {error}"
