"""A folder appears whole or not at all."""

import os
import subprocess
import sys

import pytest

from compress.errors import BadInput
from compress.export.folder import replaced_folder


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_final_name_appears_only_at_the_end(tmp_path):
    with replaced_folder(tmp_path / "a" / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "file").read_text() == "x"


def test_leftovers_of_killed_exports_are_cleared_and_live_ones_kept(tmp_path):
    dead = tmp_path / f".out.partial-{dead_pid()}-12345678"
    alive = tmp_path / f".out.partial-{os.getppid()}-12345678"
    dead.mkdir()
    alive.mkdir()
    with replaced_folder(tmp_path / "out"):
        assert not dead.exists()
    assert alive.exists()


def test_a_folder_killed_in_the_middle_of_the_rename_comes_back(tmp_path):
    previous = tmp_path / f".out.previous-{dead_pid()}"
    previous.mkdir()
    (previous / "file").write_text("old")
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInput, match="is a file"), replaced_folder(tmp_path / "out"):
        pass


def test_a_full_disk_is_the_users_to_hear_of(tmp_path):
    with (
        pytest.raises(BadInput, match="No space left"),
        replaced_folder(tmp_path / "out") as folder,
    ):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_an_export_and_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    for text in ("first", "second"):
        with replaced_folder(tmp_path / "out") as folder:
            (folder / "file").write_text(text)
        assert (tmp_path / "out" / "file").read_text() == text


def test_a_folder_that_no_export_wrote_is_not_replaced(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text("mine")
    said = r"holds what no export wrote \(a.txt, b.txt, c.txt ...\)"
    with pytest.raises(BadInput, match=said), replaced_folder(tmp_path):
        pass
    assert (tmp_path / "a.txt").read_text() == "mine"
