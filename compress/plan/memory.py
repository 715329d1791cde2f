"""Bytes that serving and training take, part by part.

Legend: O outputs, I inputs of a matrix.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from compress.errors import BadInput
from compress.plan.activations import DTYPES, saved_bytes
from compress.plan.shapes import Matrix, ModelShape
from compress.quantize.schemes import resolve_scheme

PREFILL_TOKENS = 8192
"""Tokens of prompts that vLLM computes at once by default on a large GPU."""

RUNTIME = 1 << 30
"""What the runtime itself takes on an accelerator: its context, its libraries, captured graphs."""

DENSE = {"dense": 2, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by purpose.

    Args:
        sharded: what is divided among devices.
        kept: what each device holds.
        outside: of `sharded`'s weights, those outside the blocks (tables, the head): one stage of
            a pipeline holds them whole.
        columns: inputs of a layer that share a scale: what a device takes of them is whole groups.
    """

    sharded: dict[str, int]
    kept: dict[str, int]
    outside: tuple[int, ...] = ()
    columns: int = 1

    @property
    def total(self) -> int:
        """On one device."""
        return sum(self.sharded.values()) + sum(self.kept.values())

    def as_dict(self) -> dict[str, int]:
        """Every part and the total."""
        return {**self.sharded, **self.kept, "total": self.total}


def weight_bytes(shape: ModelShape, *, scheme: str = "dense", group_size: int | None = None) -> int:
    """Bytes of a checkpoint's tensors: codes, scales, and what stays in 16 bits.

    Args:
        shape: of the model.
        scheme: `dense` (16 bits), `float32`, or a preset of compressed-tensors.
        group_size: columns to a scale; None the preset's.

    Raises:
        UnsupportedScheme: no such preset.
    """
    return sum(m.count * matrix_bytes(m, scheme=scheme, group_size=group_size)
               for m in shape.matrices)  # fmt: skip


def matrix_bytes(matrix: Matrix, *, scheme: str = "dense", group_size: int | None = None) -> int:
    """Bytes of one matrix in compressed-tensors' layout."""
    size = prod(matrix.shape)
    if scheme in DENSE:
        return size * DENSE[scheme]
    if not matrix.quantizable:
        return size * 2
    args = resolve_scheme(scheme, group_size=group_size).weights
    rows, columns = matrix.shape
    packed = args.type == "int" and args.num_bits < 8 and scheme.upper() != "W4A8"
    if packed or scheme.upper() == "W8A16":
        # 32-bit words of codes, row by row; 16 bytes tell the shape
        codes = rows * -(-columns * args.num_bits // 32) * 4 + 16
    else:
        codes = size if args.num_bits == 8 or scheme.upper() == "W4A8" else -(-size // 2)
    return int(codes) + _scale_bytes(args, rows, columns)


def _scale_bytes(args: Any, rows: int, columns: int) -> int:
    wide = 4 if args.num_bits == 8 else 2
    if args.strategy == "channel":
        return rows * wide
    if args.strategy == "block":
        height, length = args.block_structure
        return int(-(-rows // height) * -(-columns // length) * wide)
    if args.strategy == "tensor":
        return wide
    groups = int(rows * -(-columns // args.group_size))
    if args.type == "float" and args.num_bits == 4:  # scales of 8 bits; NVFP4's global one in fp32
        return groups + (4 if args.strategy == "tensor_group" else 0)
    return groups * wide


def cache_bytes(shape: ModelShape, *, batch: int, length: int, bits: int = 16) -> int:
    """The KV-cache of `batch` sequences of `length` tokens; 0 for encoders."""
    whole = shape.kv_bytes_16 * length
    windowed = sum(size * min(window, length) for window, size in shape.windows)
    return batch * (whole + windowed) * bits // 16


def serving_memory(
    shape: ModelShape, *, scheme: str = "dense", group_size: int | None = None, batch: int,
    length: int, kv_bits: int = 16, prefill_tokens: int = PREFILL_TOKENS, runtime: int = RUNTIME,
) -> Memory:  # fmt: skip
    """What a server holds with `batch` sequences of `length` tokens under way.

    Args:
        shape: of the model.
        scheme: of its weights.
        group_size: columns to a scale.
        batch: sequences at once.
        length: prompt and answer together.
        kv_bits: 16, or 8 for an FP8 cache.
        prefill_tokens: tokens computed in one pass; activations grow with it. Encoders read texts
            whole: as many as hold these tokens, the last one counted in full.
        runtime: bytes of the runtime itself; 0 counts tensors alone.

    Raises:
        BadInput: a count below 1, a cache of other widths, or more tokens than an encoder takes.
    """
    _positive(batch=batch, length=length, prefill_tokens=prefill_tokens)
    _refuse_longer(shape, length)
    if kv_bits not in (8, 16):
        raise BadInput(f"kv_bits={kv_bits}: caches of 16 bits and of 8 (FP8) are planned")
    live = shape.transient(**_one_pass(shape, batch, length, prefill_tokens))
    logits = batch * shape.vocab * 4 if shape.generates else 0
    grouped: dict[str, Any] = {"scheme": scheme, "group_size": group_size}
    return Memory(
        sharded={
            "weights": weight_bytes(shape, **grouped),
            "kv_cache": cache_bytes(shape, batch=batch, length=length, bits=kv_bits),
        },
        kept={"activations": live + logits, "runtime": runtime},
        outside=tuple(
            m.count * matrix_bytes(m, **grouped) for m in shape.matrices if not m.in_block
        ),
        columns=_columns(**grouped),
    )


def _one_pass(shape: ModelShape, batch: int, length: int, tokens: int) -> dict[str, int]:
    """Sequences that a server computes together, and tokens of each."""
    longest = min(length, shape.positions or length)
    if not shape.generates:
        return {"batch": min(batch, -(-tokens // longest)), "length": longest}
    tokens = min(tokens, batch * length)
    rows = -(-tokens // longest)
    return {"batch": rows, "length": -(-tokens // rows)}


def _refuse_longer(shape: ModelShape, length: int) -> None:
    """Decoders may be stretched beyond their positions (YaRN); an encoder's are a table."""
    if not shape.generates and 0 < shape.positions < length:
        raise BadInput(
            f"length={length} lies beyond the {shape.positions} tokens that {shape.name} takes: "
            f"plan with {shape.positions} or fewer"
        )


def _columns(*, scheme: str, group_size: int | None) -> int:
    if scheme in DENSE:
        return 1
    size = resolve_scheme(scheme, group_size=group_size).weights.group_size
    return max(int(size or 1), 1)


def training_memory(
    shape: ModelShape, *, batch: int, length: int, precision: str = "bf16-mixed",
    scheme: str | None = None, checkpointing: bool = False, optimizer_bytes: int = 8,
    trainable_share: float = 1.0, teacher: ModelShape | None = None, runtime: int = RUNTIME,
) -> Memory:  # fmt: skip
    """What one training process holds at its peak, in the backward pass.

    Args:
        shape: of the student.
        batch: sequences a micro-batch.
        length: tokens of each.
        precision: `32-true`, `bf16-mixed` or `bf16-true`.
        scheme: trained for by fake quantisation: a rounded copy of each weight, and of each
            layer's input where the scheme rounds inputs; None trains dense.
        checkpointing: recompute blocks in the backward pass.
        optimizer_bytes: of the optimizer's state a trained parameter: 8 for AdamW in fp32, 2 for an
            8-bit one, 0 for plain SGD.
        trainable_share: below 1.0 for adapters.
        teacher: runs without gradients in 16 bits; None where there is none, or it is cached.
        runtime: bytes of the runtime itself.

    Raises:
        BadInput: a count below 1, an unknown precision, or more tokens than an encoder takes.
        UnsupportedScheme: no such scheme.
        UnsupportedModel: the student is a mixture of experts.
    """
    _positive(batch=batch, length=length)
    for model in (shape, *([teacher] if teacher is not None else ())):
        _refuse_longer(model, length)
    if precision not in DTYPES:
        raise BadInput(f"precision={precision} is unknown; use one of {', '.join(DTYPES)}")
    size = 2 if precision == "bf16-true" else 4
    args = resolve_scheme(scheme) if scheme else None
    rounds_inputs = args is not None and args.input_activations is not None
    trained = int(shape.parameters * trainable_share)
    rounded = 0
    if args is not None and precision != "bf16-mixed":  # there the copy is autocast's own
        rounded = size * sum(m.size for m in shape.matrices if m.quantizable)
    saved = saved_bytes(
        shape.config, batch=batch, length=length, precision=precision,
        quantized_inputs=rounds_inputs, checkpointing=checkpointing,
    )  # fmt: skip
    sharded = {
        "weights": shape.parameters * size, "gradients": trained * size,
        "optimizer": trained * optimizer_bytes,
    }  # fmt: skip
    kept = {"activations": saved + rounded, "runtime": runtime}
    if teacher is not None:
        sharded["teacher"] = weight_bytes(teacher)
        kept["teacher_activations"] = teacher.transient(batch=batch, length=length)
    return Memory(sharded=sharded, kept=kept)


def _positive(**counts: int) -> None:
    bad = {key: value for key, value in counts.items() if value < 1}
    if bad:
        raise BadInput(", ".join(f"{k}={v} must be at least 1" for k, v in bad.items()))
