"""The plan of least damage whose weights fit a number of bits: a knapsack with one choice a layer.

Legend: U units (layers that share a scheme), Q quanta of bits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from compressed_tensors.quantization import QuantizationArgs

from compress.errors import BadInput
from compress.quantize.schemes import resolve_scheme

QUANTA = 1 << 17
"""Most steps into which the span between the smallest and the largest plan is cut."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers that take one scheme together, and what each scheme would do to the model.

    `damage` maps a scheme to nats of KL divergence from the dense model; `bits` to its bits a
    weight in the file, scales included.
    """

    names: tuple[str, ...]
    weights: int
    damage: Mapping[str, float]
    bits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """A choice for every layer: `overrides` are what `prepare` takes."""

    overrides: Mapping[str, str]
    bits: float
    damage: float


def bits_of(scheme: str, *, columns: int, scale_dtype: torch.dtype = torch.float32) -> float:
    """Bits a weight in the file, its share of the scales included.

    Args:
        scheme: a preset, with a group size after a colon if wanted.
        columns: of the weight, which share a scale where there is one a row.
        scale_dtype: of integer and FP8 scales in the file, see `stored_scale_dtype`; the scales of
            FP4 formats have one of their own.

    >>> bits_of("W4A16:32", columns=256)
    5.0
    >>> bits_of("W4A16:32", columns=256, scale_dtype=torch.bfloat16)
    4.5
    >>> bits_of("NVFP4", columns=256)
    4.5
    """
    resolved = resolve_scheme(scheme)
    args: QuantizationArgs = resolved.weights
    # codes that meet int8 inputs are multiplied as int8: they are not packed
    bytewise = args.type == "int" and resolved.input_activations is not None
    scale_bits = (args.scale_dtype or scale_dtype).itemsize * 8
    return float((8 if bytewise else args.num_bits) + scale_bits / _sharing(args, columns))


def _sharing(args: QuantizationArgs, columns: int) -> float:
    """How many weights share a scale; one for the whole matrix counts as none."""
    if args.strategy in ("group", "tensor_group"):
        return float(args.group_size)
    if args.strategy == "block":
        return float(math.prod(args.block_structure))
    return float(columns) if args.strategy == "channel" else math.inf


def stored_scale_dtype(trained: torch.dtype, export: torch.dtype) -> torch.dtype:
    """What a file in `export` holds scales in: in that dtype where nothing is lost, else fp32.

    >>> stored_scale_dtype(torch.bfloat16, torch.bfloat16)
    torch.bfloat16
    >>> stored_scale_dtype(torch.float32, torch.bfloat16)
    torch.float32
    """
    return export if torch.promote_types(trained, export) == export else torch.float32


def cheapest_plan(units: Sequence[Unit], *, budget_bits: float) -> BitPlan:
    """The least summed damage with at most `budget_bits` a weight on average.

    Damages are taken to add up, as they nearly do while each is small. Exact where the units'
    sizes have a common measure of at least 2^-17 of the span of all plans, as those of language
    models have; else each unit's bits are rounded up to that.

    Args:
        units: every unit with the same schemes to choose from or fewer.
        budget_bits: mean over all weights of the units, scales included; above the largest scheme
            nothing is given up, below the smallest there is no plan.

    Raises:
        BadInput: no plan is that small, or there is no unit.
    """
    weights = sum(unit.weights for unit in units)
    if not units:
        raise BadInput("budget_bits: no layer to plan for")
    least = sum(unit.weights * min(unit.bits.values()) for unit in units)
    most = sum(unit.weights * max(unit.bits.values()) for unit in units)
    if budget_bits * weights < least * (1 - 1e-9):
        raise BadInput(
            f"budget_bits={budget_bits:g}: the smallest plan has {least / weights:.3f} bits a "
            "weight, scales included; raise the budget or offer a smaller scheme (budget_schemes)"
        )
    quantum = _quantum(units, most - least)
    room = int(min((budget_bits * weights - least) / quantum + 1e-6, most / quantum))
    chosen = _knapsack(units, quantum, room)
    pairs = list(zip(units, chosen, strict=True))
    return BitPlan(
        overrides={name: scheme for unit, scheme in pairs for name in unit.names},
        bits=sum(unit.weights * unit.bits[scheme] for unit, scheme in pairs) / weights,
        damage=sum(unit.damage[scheme] for unit, scheme in pairs),
    )


def _quantum(units: Sequence[Unit], span: float) -> float:
    extras = [
        round((bits - min(unit.bits.values())) * unit.weights)
        for unit in units
        for bits in unit.bits.values()
    ]
    return max(math.gcd(*extras), span / QUANTA, 1.0)


def _knapsack(units: Sequence[Unit], quantum: float, room: int) -> list[str]:
    best_Q = torch.zeros(room + 1, dtype=torch.float64)
    taken: list[tuple[list[str], list[int], torch.Tensor]] = []
    for unit in units:
        names = list(unit.bits)
        floor = min(unit.bits.values())
        # rounded up: the plan never exceeds the budget
        extra = [math.ceil((unit.bits[n] - floor) * unit.weights / quantum - 1e-6) for n in names]
        options = torch.full((len(names), room + 1), torch.inf, dtype=torch.float64)
        for row, (name, cost) in enumerate(zip(names, extra, strict=True)):
            if cost <= room:
                options[row, cost:] = best_Q[: room + 1 - cost] + unit.damage[name]
        best_Q, choice_Q = options.min(dim=0)
        taken.append((names, extra, choice_Q))
    place, chosen = room, []
    for names, extra, choice_Q in reversed(taken):
        index = int(choice_Q[place])
        chosen.append(names[index])
        place -= extra[index]
    return chosen[::-1]
