"""A student sharded over two CPU ranks (FSDP2 on gloo) learns, resumes and ends as under DDP."""

import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from compress.errors import BadInput
from compress.scripts.lib.restore import restore_student
from compress.scripts.lib.run_folder import read_json
from compress.sharding import (
    Sharding,
    gathered,
    is_shard,
    local,
    make_whole,
    sharding_of,
    whole_weights,
    write,
)
from tests.scripts.small_run import SMALL
from tests.test_two_ranks import quiet_environment

QUICK = ("w8a8", "w4a16-later", "rigl", "guarded")
LONG = ("static-routed", "on-policy", "pruned-sparse", "smooth", "adapters", "nvfp4")
TOLERANCE = 1e-4
"""Of weights near 1, learned at 1e-3 a step: the ranks' sums are taken in another order. Seen:
0 to 4e-5."""


def two_ranks(folder, *cases):
    """What both ranks found, by case."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.sharded_child", str(folder), *cases,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=quiet_environment(), capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in re.findall(r"FOUND (.*)", done.stdout)]
    assert len(found) == 2 * len(cases)
    return {(one["case"], one["rank"]): one for one in found}


def check_equal(found, case):
    for rank in (0, 1):
        one = found[case, rank]
        assert one["gap"] <= TOLERANCE, one
        assert one["ordinary"], "the student is no ordinary module again"
        assert one["weights"] == pytest.approx(0.5, abs=0.01)
        assert 0 < one["moments"] <= 0.51


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return two_ranks(tmp_path_factory.mktemp("sharded"), *QUICK, "resume")


@pytest.mark.parametrize("case", QUICK)
def test_a_sharded_student_ends_as_ddps_and_each_rank_holds_half(quick, case):
    check_equal(quick, case)


def test_a_resumed_sharded_run_equals_the_uninterrupted_one_bit_for_bit(quick):
    for rank in (0, 1):
        one = quick["resume", rank]
        assert one["step"] == 4 and one["exact"] == 0.0


def test_checkpoints_of_ddp_and_fsdp2_are_one_format_that_either_resumes(quick):
    one = quick["resume", 0]
    gaps = {key: one[key] for key in ("onto ddp", "from ddp", "checkpoints", "moments")}
    assert max(gaps.values()) <= TOLERANCE, gaps


@pytest.mark.nightly
def test_every_further_method_ends_as_under_ddp(tmp_path):
    found = two_ranks(tmp_path, *LONG)
    for case in LONG:
        check_equal(found, case)


def test_the_command_line_trains_exports_and_restores_a_sharded_student(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    command = [
        sys.executable, "-m", "compress.scripts.train", *SMALL, f"run_dir={run_dir}",
        "trainer=fsdp2", "trainer.devices=2", "trainer.accelerator=cpu", "verbose=false",
    ]  # fmt: skip
    environment = quiet_environment(COMPRESS_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    report = read_json(run_dir / "report.json")
    (export,) = report["exports"]
    assert report["status"] == "finished" and export["verified"] and export["codes_equal"]
    assert report["quality"]["start_ptq"] > 0
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in restore_student(run_dir).student.state_dict().items():
        assert torch.equal(tensor, saved[f"student.{name}"]), name


def test_a_student_that_is_whole_is_left_alone():
    student = nn.Linear(2, 3)
    before = student.weight.detach().clone()
    with whole_weights(student):
        write(student.weight, before + 1)
    make_whole(student)
    assert sharding_of(student) is None and not is_shard(student.weight)
    assert local(student.weight) is student.weight is gathered(student.weight)
    assert torch.equal(student.weight, before + 1)


def test_a_scalar_parameter_is_refused_by_name():
    student = nn.Module()
    student.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(BadInput, match=r"scalar.*temperature.*trainer=ddp"):
        Sharding(student, None, beside=[])
