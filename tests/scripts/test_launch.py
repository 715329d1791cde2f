"""Who starts the ranks, what is said when one is lost, and which trainers this machine has."""

import json
from types import SimpleNamespace

import pytest
import torch

from compress.errors import BadInput
from compress.scripts.lib import launch
from compress.scripts.lib.checks import check_paths
from compress.scripts.lib.config import compose
from compress.scripts.lib.strategies import KNOWN, build_strategy

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def trainer(**settings):
    return SimpleNamespace(
        **{"strategy": "ddp", "devices": 2, "num_nodes": 1, "accelerator": "cpu", **settings}
    )


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [
        ({}, 2), ({"devices": 1}, 0), ({"strategy": "auto", "devices": 4}, 0),
        ({"devices": [0, 1, 3]}, 3), ({"devices": "0,1"}, 2), ({"devices": "auto"}, 0),
    ],
)  # fmt: skip
def test_a_command_starts_as_many_ranks_as_it_names_devices(settings, ranks):
    assert launch.ranks_to_start(trainer(**settings)) == ranks


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}],
    ids=["torchrun", "slurm"],
)
def test_ranks_that_a_launcher_started_start_no_others(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.ranks_to_start(trainer()) == 0
    assert (launch.rank_here(), launch.ranks_here()) == (1, 2)


def test_several_nodes_need_a_launcher():
    with pytest.raises(BadInput, match=r"num_nodes=4.*docs/scale\.md"):
        launch.ranks_to_start(trainer(num_nodes=4))


def failure(exitcode, *, at=1, message=None):
    data = {"message": {"message": message}} if message else {"message": ""}
    return SimpleNamespace(exitcode=exitcode, timestamp=at, pid=7, error_file_data=data)


def test_the_rank_that_was_lost_first_is_named_with_the_way_on(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "report.json").write_text('{"status": "running"}')
    lost = {0: failure(1, at=5), 1: failure(-9, at=2)}
    assert launch.told(lost, ranks=2, run_dir=tmp_path) == 1
    said = capsys.readouterr().err
    assert "rank 1 of 2 (process 7) ended with signal 9" in said
    assert f"run_dir={tmp_path} ckpt=last" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "failed" and "rank 1 of 2" in report["error"]


def test_what_a_lost_rank_said_stays_in_the_report_without_its_secrets(tmp_path):
    (tmp_path / "report.json").write_text('{"status": "running"}')
    lost = {1: failure(1, message="RuntimeError: lost {'password': 'HIDDEN'}")}
    launch.told(lost, ranks=2, run_dir=tmp_path)
    error = json.loads((tmp_path / "report.json").read_text())["error"]
    assert "RuntimeError: lost" in error and "HIDDEN" not in error


def test_a_rank_without_a_checkpoint_promises_none(tmp_path, capsys):
    launch.told({1: failure(1, message="RuntimeError: lost")}, ranks=2, run_dir=tmp_path)
    said = capsys.readouterr().err
    assert "RuntimeError: lost" in said and "There is no checkpoint" in said


def test_what_rank_0_has_said_is_not_said_again(tmp_path, capsys):
    both = {0: failure(2), 1: failure(2)}
    assert launch.told(both, ranks=2, run_dir=tmp_path) == 2
    assert capsys.readouterr().err == ""


def test_a_finished_report_is_never_called_failed(tmp_path):
    (tmp_path / "report.json").write_text('{"status": "finished"}')
    launch.told({1: failure(-9)}, ranks=2, run_dir=tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "finished"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_strategy_of_gpus_is_told_on_a_cpu_before_anything_is_built():
    with pytest.raises(BadInput, match=r"trainer=deepspeed_zero2: .*CUDA GPUs.*trainer=ddp"):
        check_paths(compose(["trainer=deepspeed_zero2"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_fsdp2_without_gpus_names_its_way_onto_cpus():
    with pytest.raises(BadInput, match=r"trainer=fsdp2 finds no CUDA.*trainer\.accelerator=cpu"):
        check_paths(compose(["trainer=fsdp2"]))


def test_fsdp2_runs_on_cpus_under_every_method():
    further = [
        f"+callbacks@callbacks.{name}={name}"
        for name in ("guard", "sparsity", "pruning", "features")
    ]
    check_paths(compose(["trainer=fsdp2", "trainer.accelerator=cpu", *further]))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.precision=16-mixed", r"precision=16-mixed.*bf16-mixed or 32-true"),
        ("training.compile=true", r"compile=true.*leave it false"),
        ("callbacks.guard.policy=rollback", r"policy=rollback.*use policy=skip"),
    ],
)
def test_what_fsdp2_cannot_do_is_refused_before_anything_is_built(word, said):
    guard = "+callbacks@callbacks.guard=guard"
    with pytest.raises(BadInput, match=said):
        check_paths(compose(["trainer=fsdp2", "trainer.accelerator=cpu", guard, word]))


def test_deepspeed_zero3_is_refused_everywhere_and_names_what_shares_out_the_same():
    with pytest.raises(BadInput, match=r"deepspeed_zero3.*never run.*use trainer=fsdp2"):
        check_paths(compose(["trainer=deepspeed_zero3"]))


def test_a_misspelt_strategy_is_told():
    with pytest.raises(BadInput, match=r"strategy=dpp: unknown. Did you mean 'ddp'"):
        check_paths(compose(["trainer.strategy=dpp"]))


@pytest.mark.parametrize("name", KNOWN)
def test_lightning_knows_every_strategy(name):
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    made = build_strategy(trainer(strategy=name))
    ours = type(made).__name__ == "ShardedStrategy"
    assert made == "auto" or ours or type(made).__module__.startswith("lightning.")


def test_recipes_for_large_teachers_compose():
    words = ["data=text", "data.path=."]
    llama = compose(["recipe=llama_8b_to_1b_w4a16", *words])
    assert llama.callbacks.qat.scheme == "W4A16" and llama.trainer.strategy == "ddp"
    qwen = compose(["recipe=qwen_70b_teacher_zero3", *words])
    assert qwen.teacher.host == "deepspeed" and qwen.trainer.strategy == "deepspeed_zero2"
