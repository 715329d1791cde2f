"""Broken inputs, drawn by a seed: recipes, data files, caches, checkpoints and kinds of models."""

import gzip
import io
import json
import random
import struct
import zipfile
from typing import Any

WORDS = [
    "trainer.max_steps", "callbacks.qat.scheme", "callbacks.qat.group_size", "data.path", "seed",
    "training.learning_rate", "teacher.layers", "run_dir", "ckpt", "target", "callbacks", "data",
    "+callbacks.x", "~callbacks.logits", "+x.y", "++data.path", "recipe", "teacher", "trainer", "",
    "callbacks.qat._target_", "+callbacks.e._target_", "allow_modules", "hydra.run.dir", "a.b.c.d",
]  # fmt: skip
VALUES = [
    "", "null", "true", "1", "-1", "0", "1e99", "nan", "inf", "[]", "{}", "[1,", "{a:", "'", '"',
    "${seed}", "${run_dir}", "${oc.env:HOME}", "${${seed}:x}", "${", "}", "a=b", "a,b", "a:b", "*",
    "???", "W4A16", "text", "os.system", "compress.callbacks.QuantizationAwareTraining", "\u0000",
    "\U0001f332", "x" * 5000, "[[[[[[[[[[1]]]]]]]]]]", "../../etc/passwd", "??", "\\", "1 2",
    "{_target_: os.system}", "0x10", "1_000", "  ", "\t", "\n", "-", "--help", "!!python/name:id",
]  # fmt: skip


def words(draw: random.Random) -> list[str]:
    """A command line of one to four words."""
    made = []
    for _ in range(draw.randint(1, 4)):
        word = f"{draw.choice(WORDS)}={draw.choice(VALUES)}"
        if draw.random() < 0.3:
            at = draw.randrange(len(word))
            word = (
                word[:at] + chr(draw.choice([0, 9, 34, 36, 39, 61, 91, 123, 125, 955])) + word[at:]
            )
        made.append(word)
    return made


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, doubled, filled with zeros, or another file's bytes in the middle."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        if not data:
            return bytes(draw.randbytes(draw.randint(0, 40)))
        at = draw.randrange(len(data))
        kind = draw.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at:at] = data[: draw.randint(1, 64)]
        elif kind == 3:
            data[at : at + draw.randint(1, 64)] = bytes(draw.randint(1, 64))
        elif kind == 4:
            data[at : at + 16] = draw.randbytes(16)
        else:
            del data[at : at + draw.randint(1, 32)]
    return bytes(data)


def data_file(draw: random.Random) -> tuple[str, bytes]:
    """A name and what lies in it."""
    rows = [{"text": f"the river {i} runs over stones", "label": i % 2} for i in range(30)]
    text = "\n".join(row["text"] for row in rows) + "\n"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    csv = "text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in rows)
    name, whole = draw.choice(
        [("a.txt", text), ("a.jsonl", lines), ("a.json", json.dumps(rows)), ("a.csv", csv)]
    )
    made = whole.encode()
    if draw.random() < 0.15:
        made = parquet(rows)
        name = "a.parquet"
    elif draw.random() < 0.3:
        made, name = gzip.compress(made, mtime=0), f"{name}.gz"
    return name, damaged(made, draw)


def parquet(rows: list[dict]) -> bytes:
    """The rows as a parquet file."""
    import pyarrow
    from pyarrow import parquet as format_

    sink = io.BytesIO()
    format_.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def safetensors_header(draw: random.Random) -> bytes:
    """A file whose header lies: about its length, offsets, kinds, or by being no JSON."""
    length = draw.choice([0, 1, 8, 2**20, 2**40, 2**63 - 1])
    entry = {
        "dtype": draw.choice(["F32", "F99", None, 3]),
        "shape": draw.choice([[2, 2], [-1], [2**40, 2**40], "x", []]),
        "data_offsets": draw.choice([[0, 16], [16, 0], [0, 2**60], [-5, 5], None]),
    }
    header = json.dumps({draw.choice(["w", "", "__metadata__"]): entry}).encode()
    if draw.random() < 0.5:
        length = len(header)
    return struct.pack("<Q", length) + damaged(header, draw) + bytes(16)


LIES: list[Any] = [
    None, True, -1, 0, 2**63, 2**70, 1e300, "", "x", "torch.hub.load", "builtins.exit",
    "torch.ops.aten.linear.default", "torch.ops.aten.no_such.default", "Symbol('s0')", "()",
    "\u0000", "x" * 5000, [], {}, [[[[1]]]], {"as_int": 1}, {"as_tensor": {"name": "x"}},
]  # fmt: skip


def program_archive(whole: bytes, draw: random.Random) -> bytes:
    """A `.pt2` file with a record damaged, or a text of it that lies; its checksums hold."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    texts = [name for name in records if name.endswith(".json")]
    if draw.random() < 0.7:
        name = draw.choice(texts)
        records[name] = json.dumps(lying(json.loads(records[name]), draw)).encode()
    else:
        name = draw.choice(list(records))
        records[name] = damaged(records[name], draw)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return made.getvalue()


def lying(document: Any, draw: random.Random) -> Any:
    """A JSON document with one value, at a drawn depth, replaced or taken out."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return document
        key = draw.choice(keys)
        deeper = isinstance(node[key], (dict, list)) and node[key] and draw.random() < 0.9
        if not deeper:
            break
        node = node[key]
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice(LIES)
    return document
