"""What DeepSpeed needs of a process before a model: accelerator, compiled parts, process group."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from compress.errors import BadInput

EXTENSION = "deepspeed_shm_comm"
BUILD_SECONDS = 1800
MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""


def import_deepspeed() -> Any:
    """DeepSpeed, told to use the CPU where there is no GPU.

    Raises:
        BadInput: it is not installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    try:
        import deepspeed
    except ImportError as error:
        raise BadInput(
            f"teacher.host=deepspeed needs DeepSpeed ({error}): "
            "pip install 'compress-lm[deepspeed]'"
        ) from error
    return deepspeed


def extensions_folder() -> Path:
    """Where compiled parts are kept: TORCH_EXTENSIONS_DIR, else below COMPRESS_CACHE."""
    cache = Path(os.environ.get("COMPRESS_CACHE", "~/.cache/compress")).expanduser()
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", cache / "torch_extensions"))


def warm_extension() -> None:
    """Compile DeepSpeed's CPU communication once, in one process of the machine; then load it.

    Without this every rank would start the build, and a build that was killed leaves a lock file
    on which all later runs wait in silence.

    Raises:
        BadInput: such a lock file is there, a compiler is missing, or another build takes too long.
    """
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return
    folder = extensions_folder()
    folder.mkdir(parents=True, exist_ok=True)
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        return  # DeepSpeed goes through gloo alone then
    try:
        with FileLock(folder / "compress-build.lock", timeout=BUILD_SECONDS):
            check_no_stale_lock(folder)
            builder.load(verbose=False)
    except Timeout as error:
        raise BadInput(
            f"another process has been compiling {EXTENSION} in {folder} for {BUILD_SECONDS} s"
        ) from error
    except (RuntimeError, OSError) as error:
        raise BadInput(
            f"{EXTENSION} cannot be compiled ({str(error)[:300]}): DeepSpeed on a CPU needs "
            "ninja and a C++ compiler"
        ) from error


def check_no_stale_lock(folder: Path) -> None:
    """Whoever holds our own lock is the only builder: torch's lock file is a killed one's.

    Raises:
        BadInput: naming the file to remove.
    """
    left = folder / EXTENSION / "lock"
    if left.exists():
        raise BadInput(
            f"{left} was left by a build that was killed; torch would wait for it for ever. "
            f"If no other program is compiling there, remove it: rm {left}"
        )


@contextmanager
def freed_memory_goes_back() -> Iterator[None]:
    """Have glibc give every freed tensor's pages back to the system at once, inside this context.

    Each parameter is made whole, split and let go; glibc would keep the pieces (it raises the size
    from which it asks the system, up to 32 MB), and a rank would hold as much as the whole model.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # another C library
        yield
        return
    library.mallopt(MMAP_THRESHOLD, 256 << 10)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, 32 << 20)
        library.malloc_trim(0)


def start_process_group(deepspeed: Any) -> None:
    """Join the trainer's process group, or make one of this process alone."""
    if not torch.distributed.is_initialized() and "WORLD_SIZE" not in os.environ:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it, alone or not
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
