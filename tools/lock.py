"""Writes requirements.lock: every pin of constraints.txt, with the SHA-256 of its files.

    python tools/lock.py

uv asks the index for the hashes of all wheels and sdists of each pinned version. torch alone has
one hash: the index's builds for Linux bring gigabytes of CUDA that constraints.txt does not pin,
so the lock takes PyTorch's build for the CPU, as the file that pip finds here.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Every pin of constraints.txt with the SHA-256 of its files, written by `make lock`: not by hand.
# For Linux x86_64 and Python 3.11, by `make install-locked`; torch is PyTorch's build for the CPU.
"""


def main() -> None:
    """Asks for the hashes, and writes the lock only when it has them all."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    others = hashed([pin for pin in pins if not pin.startswith("torch==")])
    entries = [*others, torch_entry(next(pin for pin in pins if pin.startswith("torch==")))]
    entries.sort(key=lambda entry: entry.split("==")[0])
    if missing := [e.split(" ")[0] for e in entries if "--hash=sha256:" not in e]:
        sys.exit(f"no hash for {len(missing)} of {len(entries)}: {', '.join(missing)}")
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(entries) + "\n")
    files = sum(entry.count("--hash=") for entry in entries)
    print(f"requirements.lock: {len(entries)} packages, {files} files")


def hashed(pins: list[str]) -> list[str]:
    """An entry a pin, `name==version` and lines of hashes, as uv writes them."""
    done = _output(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-deps",
         "--no-header", "--no-annotate", "--python", sys.executable, "-"], stdin="\n".join(pins),
    )  # fmt: skip
    return [entry.strip() for entry in re.split(r"\n(?=[a-zA-Z0-9])", done) if entry.strip()]


def torch_entry(pin: str) -> str:
    """The file that pip takes for this pin, without an installation."""
    report = json.loads(_output(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
         "--no-deps", "--report", "-", pin], stdin="",
    ))  # fmt: skip
    return entry_of(report["install"][0])


def entry_of(file: dict[str, Any]) -> str:
    """The entry of one file of pip's report; torch of another build than the CPU's is refused."""
    version = file["metadata"]["version"]
    if not version.endswith("+cpu"):
        sys.exit(
            f"pip takes torch {version} here, not the build for the CPU (+cpu) that the lock is "
            "of; show pip PyTorch's index of CPU builds: PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        )
    return f"torch=={version} \\\n    --hash=sha256:{_sha256(file)}"


def _sha256(file: dict[str, Any]) -> str:
    return str(file["download_info"]["archive_info"]["hashes"]["sha256"])


def _output(command: list[str], *, stdin: str) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[2]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
