"""What reads bytes from elsewhere, each behind one call: the fuzzers' targets."""

from pathlib import Path

import torch

from compress.data import text_files
from compress.data.read_files import ROWS, kind_of, read_blocks, read_rows, text_in
from compress.scripts.lib.checkpoints import load_checkpoint
from compress.scripts.lib.checks import check_paths
from compress.scripts.lib.config import compose
from compress.teachers.local import load_hf_teacher
from tests.data.texts import story_rows, write_lines
from tests.tiny import tiny_llama


class Readers:
    """Each method reads what it is given and raises what its reader raises.

    `sound` holds an input of each kind that is in order.
    """

    def __init__(self, folder: Path) -> None:
        """Makes a sound checkpoint, model, graph and data cache under `folder`."""
        self.folder = folder
        self.rows = write_lines(folder / "rows.jsonl", story_rows(20))
        self.sizes = {"vocab_size": 280, "sequence_length": 8, "cache_dir": folder / "cache"}
        self.cache = folder / "cache" / text_files(path=self.rows, **self.sizes).fingerprint
        torch.save({"state_dict": {"w": torch.arange(64.0)}, "global_step": 1}, folder / "a.ckpt")
        tiny_llama(layers=1).save_pretrained(folder / "model")
        self.sound = {
            "checkpoint": (folder / "a.ckpt").read_bytes(),
            "safetensors": (folder / "model" / "model.safetensors").read_bytes(),
            "onnx": _sound_onnx(),
            "program": _sound_program(folder / "program"),
        }

    def recipe(self, words: list[str]) -> None:
        check_paths(compose(words))

    def data_file(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.write_bytes(data)
        if kind_of(path) in ROWS:
            for row in read_rows(path, ["text"]):
                text_in(row, "text", path)
        else:
            for _ in read_blocks(path):
                pass

    def cache_files(self) -> list[Path]:
        """What a cache of tokenised data consists of."""
        return [path for path in sorted(self.cache.rglob("*")) if path.is_file()]

    def cache_file(self, path: Path, data: bytes) -> None:
        whole = path.read_bytes()
        try:
            path.write_bytes(data)
            read = text_files(path=self.rows, **self.sizes)
            assert len(read.train) and read.train[0]["input_ids"].shape == (8,)
        finally:
            path.write_bytes(whole)

    def checkpoint(self, data: bytes) -> None:
        path = self.folder / "b.ckpt"
        path.write_bytes(data)
        load_checkpoint(path)

    def safetensors(self, data: bytes) -> None:
        (self.folder / "model" / "model.safetensors").write_bytes(data)
        load_hf_teacher(str(self.folder / "model"))

    def onnx(self, data: bytes) -> None:
        from compress.export.tensorrt_lint import check_tensorrt

        path = self.folder / "m.onnx"
        path.write_bytes(data)
        check_tensorrt(path)

    def program(self, data: bytes) -> None:
        from compress.export.pt2_archive import open_program

        path = self.folder / "m.pt2"
        path.write_bytes(data)
        open_program(path)


def _sound_program(folder: Path) -> bytes:
    from compress.export.write import export

    export(tiny_llama(layers=1).eval(), target="pt2", path=folder, dtype="float32")
    return (folder / "model.pt2").read_bytes()


def _sound_onnx() -> bytes:
    from onnx import TensorProto, helper

    sizes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in ("x", "y", "z")]
    node = helper.make_node("MatMul", ["x", "y"], ["z"])
    graph = helper.make_graph([node], "g", sizes[:2], sizes[2:])
    return helper.make_model(graph).SerializeToString()  # type: ignore[no-any-return]
