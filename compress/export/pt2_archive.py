"""Opens a `.pt2` file only where nothing in it can run code: `torch.export.load` itself is unsafe.

It unpickles example inputs and tensors without restriction and evaluates size expressions as
Python: with torch 2.13 each of the three ran a program while loading. Guards are executed too, and
compiled libraries loaded. A file of ours uses none of that, so whatever does is refused first.
"""

import ast
import contextlib
import functools
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from compress.errors import BadInput
from compress.export.reload import quiet

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|" + "|".join([MODEL, SAMPLES, *CONFIGS])
)
COMPILED = "data/aotinductor/"

NAME = re.compile(r"([A-Za-z_]\w*)?(\.\w+)*", re.ASCII)
ATEN = re.compile(r"torch\.ops\.aten\.(?P<op>\w+)\.(?P<overload>\w+)")
ON_SIZES = re.compile(
    r"_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|ge|gt|le|lt|getitem|and_|or_)"
    r"|torch\.sym_(max|min|int|float|not|ite|sum)"
)
WORDS = ("none", "tanh", "floor", "trunc", "constant", "ij", "xy")
"""Texts that operators may be given: no name of a file is among them."""
FILE_OPERATORS = ("from_file",)
ARITHMETIC = (
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod",
    "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "PowByNatural", "IntTrueDiv", "Eq", "Ne",
    "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "And", "Or", "Not",
)  # fmt: skip
NODES = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword, ast.Constant)
SYMBOL = re.compile(r"[su]\d+")
EMPTY = ("metadata", "guards_code", "custom_obj_values", "treespec_namedtuple_fields")
REFUSED = ("as_graph", "as_custom_obj", "as_operator")

DAMAGE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
    AssertionError,  # torch's reader, of an archive whose format has another name
)  # fmt: skip
"""What reading a damaged archive raises."""


def open_program(path: Path) -> ExportedProgram:
    """The program in a `.pt2` file, nothing of which was run.

    Raises:
        BadInput: it is damaged, compiled, or holds what could run code; names what.
    """
    check_archive(path)
    try:
        with quiet(), _causes_of("torch.export") as causes:
            return torch.export.load(path)
    except Exception as error:  # whatever the archive's reader raises
        cause = next(iter(causes), error)
        raise BadInput(f"{path} does not load: {_reason(cause)}; export it again") from cause


@contextlib.contextmanager
def _causes_of(logger: str) -> Iterator[list[BaseException]]:
    """The exceptions that a library logs, with tracebacks, before it raises one that says less."""
    causes: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        causes.extend([record.exc_info[1]] if record.exc_info and record.exc_info[1] else [])
        return False

    logging.getLogger(logger).addFilter(keep)
    try:
        yield causes
    finally:
        logging.getLogger(logger).removeFilter(keep)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_compiled(path: Path) -> bool:
    """Whether the file holds a compiled library (AOTInductor) in place of a program.

    Raises:
        BadInput: it is damaged.
    """
    return any(COMPILED in name for name in _names(path))


def check_archive(path: Path) -> None:
    """Refuse a file that is damaged or holds anything that could run code.

    Raises:
        BadInput: lists what.
    """
    names = _names(path)
    if any(COMPILED in name for name in names):
        raise BadInput(
            f"{path} is a compiled library, which is native code: engine=inductor "
            "options={trust_package: true} runs it"
        )
    try:
        wrong = list(_offences(path, names))
    except DAMAGE as error:
        raise BadInput(f"{path} is damaged: {_reason(error)}; export it again") from error
    if wrong:
        listed = "".join(f"\n  {what}" for what in wrong[:10])
        raise BadInput(
            f"{path} holds {len(wrong)} things that no program of ours holds and that could run "
            f"code when it is loaded:{listed}\nExport it again from its run."
        )


def _names(path: Path) -> list[str]:
    """Records of the archive, every checksum compared."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise BadInput(f"{path} is damaged: {broken} has another checksum; export it again")
            return archive.namelist()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise BadInput(f"{path} is damaged: {error}; export it again") from error


def _offences(path: Path, names: list[str]) -> Iterator[str]:
    with quiet():
        reader = PT2ArchiveReader(str(path))
        records = reader.get_file_names()
    root = names[0].partition("/")[0]
    # two readers that see different files in one archive: one of them is being deceived
    if sorted(names) != sorted(f"{root}/{record}" for record in records):
        yield "its table of contents reads in two ways"
        return
    yield from (f"record {name}" for name in records if not RECORDS.fullmatch(name))
    if reader.read_bytes(SAMPLES):
        yield f"{SAMPLES}: a pickle of example inputs"
    for name in CONFIGS:
        for tensor, facts in json.loads(reader.read_string(name))["config"].items():
            stored = re.fullmatch(r"(weight|tensor)_\d+", facts["path_name"])
            if facts["use_pickle"] or not stored or not is_path(tensor):
                yield f"{tensor}: pickled, or no plain tensor ({facts['path_name']})"
    yield from strange(json.loads(reader.read_string(MODEL)))


def strange(node: Any, key: str = "") -> Iterator[str]:
    """What in the text of a program is more than names, sizes and operators on tensors."""
    if key in REFUSED or (key in EMPTY and node):
        yield f"{key}: {str(node)[:80]}"
    elif isinstance(node, dict):
        for name, value in node.items():
            if not NAME.fullmatch(name):
                yield f"key {name[:80]!r}"
            yield from strange(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from strange(value, key)
    elif isinstance(node, str) and not TEXTS.get(key, is_name)(node):
        yield f"{key}: {node[:80]!r}"


def is_name(text: str) -> bool:
    """A dotted name, or nothing, that says no function."""
    return bool(NAME.fullmatch(text)) and not text.startswith(("torch.", "_operator.", "math."))


def is_path(text: str) -> bool:
    """A dotted name of a tensor or module, nothing of Python's own in it."""
    return is_name(text) and "__" not in text


def is_operator(text: str) -> bool:
    """An operator of the dispatcher on tensors, or arithmetic on sizes.

    >>> is_operator("torch.ops.aten.linear.default"), is_operator("torch.hub.load")
    (True, False)
    """
    found = ATEN.fullmatch(text)
    if found is None:
        return bool(ON_SIZES.fullmatch(text))
    op, overload = found["op"], found["overload"]
    full = f"aten::{op}" if overload == "default" else f"aten::{op}.{overload}"
    # TorchScript's own (aten::save among them) answer to torch.ops.aten too, but are not there
    return op not in FILE_OPERATORS and full in _dispatched()


@functools.cache
def _dispatched() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_all_op_names())


def is_arithmetic(text: str) -> bool:
    """A size in SymPy's words, which the loader evaluates as Python.

    >>> is_arithmetic("Mul(Integer(4), Symbol('s0', positive=True))"), is_arithmetic("exit()")
    (True, False)
    """
    try:
        parts = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(isinstance(part, NODES) and _harmless(part) for part in parts)


def _harmless(part: ast.AST) -> bool:
    if isinstance(part, ast.Name):
        return part.id in ARITHMETIC
    if isinstance(part, ast.Constant) and isinstance(part.value, str):
        return bool(SYMBOL.fullmatch(part.value))
    return True


def is_tree(text: str) -> bool:
    """The shape of inputs or outputs: tuples, lists and dictionaries with plain names."""
    protocol, spec = json.loads(text)
    return protocol == 1 and _plain_tree(spec)


def _plain_tree(spec: dict[str, Any]) -> bool:
    context = json.loads(spec["context"] or "null")
    named = context is None or all(isinstance(x, str) and x.isidentifier() for x in context)
    plain = spec["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
    return plain and named and all(_plain_tree(child) for child in spec["children_spec"])


TEXTS: dict[str, Callable[[str], bool]] = {
    "target": is_operator,
    "expr_str": is_arithmetic,
    "in_spec": is_tree,
    "out_spec": is_tree,
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "fqn"), is_path),
    **dict.fromkeys(("as_float", "as_floats"), ("Infinity", "-Infinity", "NaN").__contains__),
    "as_string": WORDS.__contains__,
    "as_strings": WORDS.__contains__,
    "torch_version": lambda text: bool(re.fullmatch(r"[\w.+-]*", text)),
}
