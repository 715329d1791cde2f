"""Broken inputs that coverage of our own code leads to (atheris, which drives LLVM's libFuzzer).

`python -m tests.fuzz.guided data_file --runs 20000` ends with the status of libFuzzer: 0 where
every input was read or refused by an error of ours, 77 with the traceback and the input otherwise.
Needs the extra `fuzz`, which `make test` installs where it has wheels.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["compress"]):
    # only what is imported here is followed
    import compress.export.pt2_archive
    import compress.export.tensorrt_lint  # noqa: F401
    from compress.errors import CompressError
    from tests.fuzz import inputs
    from tests.fuzz.readers import Readers

NAMES = ("a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz")
"""The first byte of an input for `data_file` chooses one."""


def target(kind: str, readers: Readers) -> Callable[[bytes], None]:
    """What libFuzzer calls with each input."""

    def data_file(data: bytes) -> None:
        readers.data_file(NAMES[data[0] % len(NAMES)] if data else NAMES[0], data[1:])

    def recipe(data: bytes) -> None:
        readers.recipe(data.decode("utf-8", "replace").split("\n"))

    known = {"data_file": data_file, "recipe": recipe}
    read = known.get(kind) or getattr(readers, kind)

    def one(data: bytes) -> None:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.suppress(CompressError),
        ):
            read(data)

    return one


def seeds(kind: str, readers: Readers) -> list[bytes]:
    """Inputs to start from: sound ones, and some that are lightly damaged."""
    draw = random.Random(0)
    if kind == "recipe":
        return ["\n".join(inputs.words(draw)).encode() for _ in range(20)]
    if kind == "data_file":
        drawn = [inputs.data_file(draw) for _ in range(40)]
        return [bytes([NAMES.index(name)]) + data for name, data in drawn if name in NAMES]
    return [readers.sound[kind]]


def main() -> None:
    """Fuzzes one kind until `--runs` inputs were read; the corpus lives in a folder that goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ("data_file", "checkpoint", "safetensors", "onnx", "program", "recipe")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        (Path(folder) / "files").mkdir()
        readers = Readers(Path(folder) / "files")
        known = seeds(given.kind, readers)
        for number, data in enumerate(known):
            (corpus / str(number)).write_bytes(data)
        longest = max(len(data) for data in known)
        words = [
            "-timeout=300",
            "-rss_limit_mb=4096",
            f"-max_len={max(1 << 14, 2 * longest)}",
            f"-seed={given.seed}",
        ]
        words += [f"-atheris_runs={given.runs}", f"-artifact_prefix={folder}/", str(corpus)]
        atheris.Setup([sys.argv[0], *words], target(given.kind, readers))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
