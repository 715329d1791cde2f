"""A teacher's checkpoint on disk, looked at without loading it: folder, identity, skeleton.

Nothing here reads more than a few kilobytes of any tensor.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import BadInput
from compress.teachers.cache_files import computing_settings
from compress.teachers.local import check_checkpoint

PIECE = 4096
SETTINGS = ("config.json", "adapter_config.json")
"""Files of a checkpoint that say how its tensors are computed with."""


def checkpoint_folder(path: str) -> Path:
    """The folder of a checkpoint: `path` itself, or where the hub's cache keeps that name.

    Raises:
        BadInput: there is no such checkpoint, or it holds no safetensors.
    """
    check_checkpoint(path)
    folder = Path(path).expanduser()
    if folder.exists():
        return folder
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        found = Path(snapshot_download(path, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot load the teacher {path!r}: {error}") from error
    check_checkpoint(str(found))
    return found


def fingerprint_of_checkpoint(folder: Path) -> str:
    """Hash of every tensor's name, dtype, shape and 12 kB of it, and of how they are computed with.

    Seconds even for 70B. How the tensors are spread over files does not matter, nor what the
    model is called. A training changes all tensors, so that first, middle and last bytes tell two
    checkpoints apart; rope_theta and the like stand in the configuration alone.

    Args:
        folder: holds `*.safetensors`.

    Raises:
        BadInput: a file is cut or no safetensors file, or a configuration is no JSON.
    """
    found = sorted(piece for path in folder.glob("*.safetensors") for piece in _pieces(path))
    digest = hashlib.sha256()
    for name, kind, pieces in found:
        digest.update(f"{name} {kind} ".encode() + pieces)
    for path in (folder / name for name in SETTINGS):
        if path.is_file():
            digest.update(f"{path.name} {_settings_in(path)} ".encode())
    for path in sorted(folder.glob("*.py")):  # computes where teacher.trust_remote_code is set
        digest.update(f"{path.name} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _settings_in(path: Path) -> str:
    try:
        return computing_settings(json.loads(path.read_text()))
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error


def _pieces(path: Path) -> Iterator[tuple[str, str, bytes]]:
    with path.open("rb") as stream:
        try:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise BadInput(f"{path} is no whole safetensors file: {error}") from error
        with data:
            for name, facts in header.items():
                if name == "__metadata__":
                    continue
                start, stop = (8 + size + offset for offset in facts["data_offsets"])
                if stop > len(data):
                    raise BadInput(f"{path} is cut: {name} ends beyond the file")
                middle = (start + stop) // 2
                places = (start, max(start, middle - PIECE), max(start, stop - PIECE))
                pieces = b"".join(data[at : min(at + PIECE, stop)] for at in places)
                yield name, f"{facts['dtype']} {facts['shape']}", pieces


def skeleton_of(folder: Path | str, *, task: str = "causal_lm") -> nn.Module:
    """The model's modules without any weight: names and widths, for layer maps and projectors.

    Raises:
        BadInput: the configuration cannot be read.
    """
    import transformers

    classes: dict[str, Any] = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "classification": transformers.AutoModelForSequenceClassification,
    }
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: nn.Module = classes[task].from_config(config)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the teacher's configuration in {folder}: {error}") from error
    return model.requires_grad_(False).eval()
