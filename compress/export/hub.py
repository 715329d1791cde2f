"""Sending an exported folder to the Hugging Face hub; the only place that writes to a network."""

import json
from pathlib import Path

from compress.errors import BadInput

NEEDED = ("config.json", "README.md")


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Compressed model",
) -> str:
    """Upload an exported folder, its model card included; answers the address of the commit.

    Weights and card go up in one commit: a reader sees the old model or the new one.

    Args:
        folder: what `export` wrote; it was compared with the trained model before it got its name.
        repo_id: `owner/name`; made if it does not exist.
        private: of a repository that is made now; True shows it to nobody else.
        revision: branch to commit to; None is the main one.
        message: of the commit.

    Raises:
        BadInput: the folder is no export, nobody is logged in, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    path = checked_folder(folder)
    if repo_id.count("/") != 1:
        raise BadInput(f"repo={repo_id!r}: owner/name is expected")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        sent = api.upload_folder(
            repo_id=repo_id, folder_path=str(path), revision=revision, commit_message=message
        )
    except LocalTokenNotFoundError as error:
        raise BadInput("nobody is logged in to the hub: run `hf auth login`") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BadInput(
            f"the hub refused {repo_id}: {str(error).strip().splitlines()[0]}"
        ) from error
    return str(sent.commit_url)


def checked_folder(folder: str | Path) -> Path:
    """The folder, if it is whole.

    Raises:
        BadInput: naming what is missing.
    """
    path = Path(folder)
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise BadInput(f"{path} is no exported folder: it has no {', '.join(missing)}")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        absent = sorted(name for name in shards if not (path / name).is_file())
        if absent:
            raise BadInput(f"{path} lacks shards that its index names: {', '.join(absent)}")
    return path
