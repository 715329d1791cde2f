"""What `trainer.devices` may be: told before a process is started or a GPU is asked for."""

from collections.abc import Iterator
from typing import Any

MOST = 1024
"""More devices in one machine are a slip of the finger."""

ALL = -1


def device_problems(trainer: Any) -> Iterator[str]:
    """What speaks against `trainer.devices`; imports torch where GPUs are asked for alone.

    >>> from types import SimpleNamespace
    >>> list(device_problems(SimpleNamespace(devices=0, accelerator="cpu")))
    ['trainer.devices=0: a number of processes from 1 to 1024 is expected, such as 1, or auto']
    """
    asked = devices_in(trainer.devices)
    if trainer.accelerator == "cpu":
        if trainer.devices != "auto" and (not isinstance(asked, int) or asked == ALL):
            yield (
                f"trainer.devices={trainer.devices}: a number of processes from 1 to {MOST} is "
                "expected, such as 1, or auto"
            )
    elif asked is None:
        yield (
            f"trainer.devices={trainer.devices}: expected is a number from 1 to {MOST}, a list of "
            "different devices such as [0,1], or auto (all of them)"
        )
    elif trainer.accelerator in ("gpu", "cuda"):
        yield from _absent(trainer, asked)


def devices_in(given: Any) -> int | list[int] | None:
    """How many devices (`ALL`: all), or which; None where it says neither.

    >>> devices_in("auto"), devices_in("2"), devices_in("0,2"), devices_in([])
    (-1, 2, [0, 2], None)
    """
    if given == "auto":
        return ALL
    if isinstance(given, str) and given.removeprefix("-").isdecimal():
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return given if given == ALL or 1 <= given <= MOST else None
    named = _named(given)
    return named if named and len(set(named)) == len(named) else None


def _named(given: Any) -> list[int]:
    """The devices of a list; empty where it is none."""
    if isinstance(given, str):
        given = given.split(",")
    try:
        found = [] if isinstance(given, float | dict) else [int(one) for one in given]
    except (TypeError, ValueError):
        return []
    return found if all(0 <= one < MOST for one in found) else []


def _absent(trainer: Any, asked: int | list[int]) -> Iterator[str]:
    import torch

    present = torch.cuda.device_count()
    highest = max(asked) + 1 if isinstance(asked, list) else abs(asked)
    if highest > present:
        found = f"this machine has {present} CUDA devices" if present else "there is no GPU here"
        yield (
            f"trainer.devices={trainer.devices} with trainer.accelerator={trainer.accelerator}: "
            f"{found}; use trainer=cpu, or fewer devices"
        )
