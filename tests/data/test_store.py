import multiprocessing
import os

import pytest

from compress.data.store import build_once, data_folder
from compress.errors import BadInput


def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    assert data_folder(None) == tmp_path / "data"
    assert data_folder(tmp_path / "x") == tmp_path / "x"


def test_a_second_call_builds_nothing(tmp_path):
    calls = []
    for _ in range(2):
        build_once(tmp_path / "a", lambda beside: calls.append(beside))
    assert len(calls) == 1


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    def fails(beside):
        (beside / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "a", fails)
    assert [p for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
    build_once(tmp_path / "a", lambda beside: (beside / "whole").write_text("x"))
    assert (tmp_path / "a" / "whole").exists()


def _killed(folder):
    def dies(beside):
        (beside / "half").write_text("x")
        os._exit(9)

    build_once(folder, dies)


def test_what_a_killed_build_left_is_cleared_away(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path / "a",))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert list(tmp_path.glob(".a.building-*"))
    build_once(tmp_path / "a", lambda beside: None)
    assert (tmp_path / "a").is_dir()
    assert not list(tmp_path.glob(".a.building-*"))


def _counted(folder):
    def build(beside):
        with (folder.parent / "builds.log").open("a") as log:
            log.write("x")

    build_once(folder, build)


def test_processes_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_counted, args=(tmp_path / "a",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "builds.log").read_text() == "x"


def test_a_full_disk_is_told_with_the_way_out(tmp_path):
    def full(beside):
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="COMPRESS_CACHE"):
        build_once(tmp_path / "a", full)
    assert not (tmp_path / "a").exists()


def test_a_cache_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="COMPRESS_CACHE"):
        build_once(tmp_path / "file" / "a", lambda beside: None)
