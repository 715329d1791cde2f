"""A `.pt2` file that could run code, or is damaged, is refused before PyTorch reads it."""

import functools
import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from compress.errors import BadInput
from compress.export.pt2 import PROGRAM_FILE
from compress.export.pt2_archive import (
    is_arithmetic,
    is_compiled,
    is_operator,
    open_program,
    strange,
)
from compress.export.write import export
from tests.tiny import tiny_llama

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


@functools.cache
def sound():
    """A dense program's records, and the folder that holds them."""
    place = tempfile.TemporaryDirectory()
    student = tiny_llama(layers=1).eval()
    path = export(student, target="pt2", path=Path(place.name) / "out", dtype="float32").path
    with zipfile.ZipFile(path / PROGRAM_FILE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, path, place


def forged(folder, change):
    """The program's archive after `change(records)`; records go by their names below the root."""
    root = next(iter(sound()[0])).partition("/")[0]
    records = {name.partition("/")[2]: data for name, data in sound()[0].items()}
    change(records)
    path = folder / PROGRAM_FILE
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(f"{root}/{name}", data)
    return path


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_model(records, change):
    model = json.loads(records[MODEL])
    change(model)
    records[MODEL] = json.dumps(model).encode()


def in_nodes(records, change):
    in_model(records, lambda model: change(model["graph_module"]["graph"]["nodes"]))


def pickled_weight(records, canary):
    config = json.loads(records[WEIGHTS])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    records[WEIGHTS] = json.dumps(config).encode()
    records[f"data/weights/{first['path_name']}"] = saved(Payload(canary))


def called(records, target, text):
    def change(nodes):
        nodes[0]["target"] = target
        nodes[0]["inputs"][0]["arg"] = {"as_string": text}

    in_nodes(records, change)


ATTACKS = {
    "a pickle of example inputs": lambda records, canary: records.update(
        {SAMPLES: saved(Payload(canary))}
    ),
    "pickled, or no plain tensor": pickled_weight,
    "record data/constants/opaque_obj_0": lambda records, canary: records.update(
        {"data/constants/opaque_obj_0": pickle.dumps(Payload(canary))}
    ),
    "guards_code": lambda records, canary: in_model(
        records, lambda m: m.update(guards_code=[f"open({str(canary)!r}, 'w')"])
    ),
    "expr_str": lambda records, canary: in_model(
        records,
        lambda m: next(iter(m["graph_module"]["graph"]["sym_int_values"].values()))[
            "as_expr"
        ].update(expr_str=f"__import__('pathlib').Path({str(canary)!r}).touch()"),
    ),
    "target: 'torch.hub.load'": lambda records, canary: called(records, "torch.hub.load", "x"),
    "target: 'torch.ops.aten.save.default'": lambda records, canary: called(
        records, "torch.ops.aten.save.default", str(canary)
    ),
    "as_string": lambda records, canary: called(
        records, "torch.ops.aten.linear.default", str(canary)
    ),
    "metadata": lambda records, canary: in_nodes(
        records, lambda nodes: nodes[0].update(metadata={"custom": "x"})
    ),
}


@pytest.mark.parametrize("said", ATTACKS)
def test_what_could_run_code_is_named_and_does_not_run(said, tmp_path):
    canary = tmp_path / "ran"
    path = forged(tmp_path, lambda records: ATTACKS[said](records, canary))
    with pytest.raises(BadInput, match="could run code") as refusal:
        open_program(path)
    assert said in str(refusal.value)
    assert not canary.exists()


def test_a_sound_file_opens_after_it_was_packed_again(tmp_path):
    run = open_program(forged(tmp_path, lambda records: None)).module()
    tokens = torch.ones(2, 5, dtype=torch.int64)
    assert run(input_ids=tokens, attention_mask=tokens).shape == (2, 5, 128)


def test_a_compiled_library_is_no_program(tmp_path):
    path = forged(tmp_path, lambda r: r.update({"data/aotinductor/model/x.wrapper.so": b"native"}))
    assert is_compiled(path)
    with pytest.raises(BadInput, match="trust_package"):
        open_program(path)


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_a_cut_file_is_told(kept, tmp_path):
    whole = (sound()[1] / PROGRAM_FILE).read_bytes()
    path = tmp_path / PROGRAM_FILE
    path.write_bytes(whole[:kept])
    with pytest.raises(BadInput, match="damaged"):
        open_program(path)


def test_a_flipped_bit_of_a_weight_is_told(tmp_path):
    held = bytearray((sound()[1] / PROGRAM_FILE).read_bytes())
    weight = next(d for n, d in sound()[0].items() if n.endswith("data/weights/weight_0"))
    held[held.index(weight) + 7] ^= 1
    path = tmp_path / PROGRAM_FILE
    path.write_bytes(held)
    with pytest.raises(BadInput, match=r"weight_0 has another checksum|CRC"):
        open_program(path)


@pytest.mark.parametrize("missing", [MODEL, WEIGHTS, SAMPLES])
def test_a_missing_record_is_told(missing, tmp_path):
    path = forged(tmp_path, lambda records: records.pop(missing))
    with pytest.raises(BadInput, match="damaged"):
        open_program(path)


def test_an_archive_of_another_format_is_told(tmp_path):
    def renamed(records):
        records["archive_format"] = b"pt3"

    with pytest.raises(BadInput, match="damaged: Invalid archive format"):
        open_program(forged(tmp_path, renamed))


def test_a_program_of_another_schema_is_told_without_a_librarys_traceback(tmp_path, caplog):
    def newer(records):
        in_model(records, lambda model: model["schema_version"].update(major=99))

    with pytest.raises(BadInput, match=r"does not load.*major=99.*export it again"):
        open_program(forged(tmp_path, newer))
    assert caplog.records == []


def test_operators_of_torchscript_and_of_files_are_no_operators():
    assert is_operator("torch.ops.aten.__and__.Tensor")
    assert is_operator("_operator.mul")
    for name in ("torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "math.sin",
                 "_operator.methodcaller", "torch.ops.higher_order.cond"):  # fmt: skip
        assert not is_operator(name)


def test_numbers_that_json_has_no_word_for_are_let_through():
    assert list(strange({"as_float": "-Infinity", "as_floats": ["NaN", 1.0]})) == []
    assert list(strange({"as_float": "exit()"})) == ["as_float: 'exit()'"]


@pytest.mark.parametrize("text", ["(1).__class__", "open('s0')", "Symbol('a b')", "[s0]", "1 +"])
def test_sizes_hold_sympys_words_alone(text):
    assert not is_arithmetic(text)
