"""Devices that no machine has are refused before a process is started."""

from types import SimpleNamespace

import pytest

from compress.scripts.lib.devices import device_problems


def problems(devices, accelerator="cpu"):
    return list(device_problems(SimpleNamespace(devices=devices, accelerator=accelerator)))


@pytest.mark.parametrize(
    "devices", ["a", "", 0, -1, -2, 10**18, 1.5, [], [0], {}, None, True, "1,2"]
)
def test_a_number_of_processes_is_a_number(devices):
    (problem,) = problems(devices)
    assert problem.startswith(f"trainer.devices={devices}: a number of processes")


@pytest.mark.parametrize("devices", [1, 2, "2", "auto"])
def test_processes_that_can_be_started_pass(devices):
    assert problems(devices) == []


@pytest.mark.parametrize("devices", ["a", 0, -2, [], ["a"], [0, 0], [-1], {}, None, "0,", 10**18])
def test_a_list_names_different_devices(devices):
    (problem,) = problems(devices, "mps")
    assert "a list of different devices" in problem


@pytest.mark.parametrize("devices", [1, -1, "auto", [0, 1], "0,1", "2"])
def test_lists_and_numbers_of_devices_pass(devices):
    assert problems(devices, "mps") == []


@pytest.mark.parametrize(
    ("present", "devices", "told"),
    [
        (0, 1, "no GPU here"),
        (0, "auto", "no GPU here"),
        (2, 3, "has 2 CUDA devices"),
        (2, [0, 2], "has 2 CUDA devices"),
        (2, 2, None),
        (2, [1], None),
        (2, -1, None),
    ],
)
def test_gpus_that_are_not_there_are_told(monkeypatch, present, devices, told):
    monkeypatch.setattr("torch.cuda.device_count", lambda: present)
    found = problems(devices, "gpu")
    assert len(found) == bool(told)
    assert not told or told in found[0]
