"""A ZeRO-3 teacher on two CPU ranks gives the local teacher's logits; refusals come early."""

import importlib.util
import os
import subprocess
import sys

import pytest

from compress.errors import BadInput

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.fixture
def checkpoint(tmp_path):
    from tests.tiny import tiny_llama

    tiny_llama(layers=3).save_pretrained(tmp_path)
    return str(tmp_path)


def test_two_ranks_beside_a_ddp_student_answer_as_one_whole_model(checkpoint):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.teachers.deepspeed_rank", checkpoint,
    ]  # fmt: skip
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "rank 0: equal" in done.stdout and "rank 1: equal" in done.stdout


def test_an_unknown_offload_is_refused(checkpoint):
    from compress.teachers.deepspeed import DeepSpeedTeacher

    with pytest.raises(BadInput, match="offload='disk'"):
        DeepSpeedTeacher(checkpoint, offload="disk")


def test_nvme_without_a_folder_is_refused(checkpoint, tmp_path):
    from compress.teachers.deepspeed import DeepSpeedTeacher

    with pytest.raises(BadInput, match="nvme_path="):
        DeepSpeedTeacher(checkpoint, offload="nvme", nvme_path=str(tmp_path / "none"))


def test_a_lock_left_by_a_killed_build_is_told(tmp_path):
    from compress.teachers.deepspeed_build import EXTENSION, check_no_stale_lock

    (tmp_path / EXTENSION).mkdir()
    check_no_stale_lock(tmp_path)
    (tmp_path / EXTENSION / "lock").touch()
    with pytest.raises(BadInput, match=r"rm .*lock"):
        check_no_stale_lock(tmp_path)
