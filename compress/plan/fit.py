"""Which accelerators a model fits, over how many of them, and how fast they could be at best."""

from dataclasses import dataclass
from typing import Any

from compress.plan.accelerators import Accelerator
from compress.plan.memory import DENSE, Memory, matrix_bytes
from compress.plan.shapes import Matrix, ModelShape
from compress.quantize.schemes import resolve_scheme

USABLE = 0.9
"""Share of the memory that is planned with: vLLM's own default, and what fragmentation leaves."""

MOST_DEVICES = 1024


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a model is laid over devices.

    Args:
        accelerator: its name.
        tensor_parallel: devices that share each layer, inside one node.
        pipeline_parallel: groups of devices that hold some layers each.
        sharding: devices among which training shards (FSDP, ZeRO-3); 1 for serving.
        bytes_per_device: the most that one holds.
        mig: the smallest slice of one device that suffices; None where there is none.
    """

    accelerator: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sharding: int = 1
    bytes_per_device: int = 0
    mig: str | None = None

    @property
    def devices(self) -> int:
        """How many are needed."""
        return self.tensor_parallel * self.pipeline_parallel * self.sharding


def place_serving(
    shape: ModelShape, memory: Memory, accelerator: Accelerator, *, usable: float = USABLE
) -> Placement | None:
    """The fewest devices that serve it; None where not even many do.

    Tensor parallel degrees divide the query heads, the widths of the feed-forward layers into whole
    groups of the scheme, and the KV heads or are divided by them (keys are then copied); they stay
    inside a node, whose links are fast. Beyond it, layers are spread.
    """
    room = int(accelerator.memory * usable)
    found = []
    for tensor in _tensor_degrees(shape, accelerator.devices_per_node, columns=memory.columns):
        for pipeline in range(1, shape.layers + 1):
            held = _serving_share(shape, memory, tensor=tensor, pipeline=pipeline)
            if held <= room:
                # pipelines only where a node is too small: they add latency, and fill badly
                found.append((pipeline, tensor, held))
                break
    if not found:
        return None
    pipeline, tensor, held = min(found)
    # the largest profile is the whole device, which needs no cutting
    cut = {name: size for name, size in accelerator.mig.items() if size < accelerator.memory_gb}
    slices = sorted(cut.items(), key=lambda item: item[1])
    mig = next((name for name, size in slices if held <= size * 1e9 * usable), None)
    return Placement(
        accelerator=accelerator.name, tensor_parallel=tensor, pipeline_parallel=pipeline,
        bytes_per_device=held, mig=mig if tensor == pipeline == 1 else None,
    )  # fmt: skip


def place_training(
    shape: ModelShape, memory: Memory, accelerator: Accelerator, *, usable: float = USABLE
) -> Placement | None:
    """The fewest devices (a power of two) that train it, sharded by FSDP2 or ZeRO-3.

    Each device also holds one whole block while it is computed.
    """
    room = int(accelerator.memory * usable)
    whole, kept = sum(memory.sharded.values()), sum(memory.kept.values())
    gathered = 2 * shape.parameters // shape.layers
    count = 1
    while count <= MOST_DEVICES:
        held = -(-whole // count) + kept + (gathered if count > 1 else 0)
        if held <= room:
            return Placement(accelerator=accelerator.name, sharding=count, bytes_per_device=held)
        count *= 2
    return None


def number_format(scheme: str) -> str:
    """What a device's kernels must take: `bf16`, `int8`, `int4` (packed weights), `fp8`, `fp4`.

    >>> number_format("W4A16"), number_format("FP8_DYNAMIC")
    ('int4', 'fp8')
    """
    if scheme in DENSE:
        return "bf16"
    resolved = resolve_scheme(scheme)
    weights, inputs = resolved.weights, resolved.input_activations
    if inputs is None:
        return "int4"  # unpacked to 16 bits as they are read: mixed-precision kernels
    if weights.type == "float":
        return "fp8" if weights.num_bits == 8 else "fp4"
    return "int8"


def best_case(
    shape: ModelShape, accelerator: Accelerator, *, scheme: str, group_size: int | None = None,
    batch: int, length: int, kv_bytes: int, devices: int = 1, mig: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Times that no runtime can beat: every active weight and the cache are read once a token.

    Decoding is bound by the memory's bandwidth, computing a prompt by the matrix units
    (Williams et al. 2009, the roofline). Measured times lie above; twice is usual. Of the experts,
    those are read that `batch` tokens reach when routing favours none. The head of a model that
    generates is computed for the prompt's last token. A slice has its share of the memory's
    bandwidth, and of the seven parts of the matrix units.
    """
    width, speed = _share(accelerator, mig)
    touched = sum(
        m.count * matrix_bytes(m, scheme=scheme, group_size=group_size) * _reached(m, batch)
        for m in shape.matrices
    )
    seconds = (touched + kv_bytes) / (accelerator.bandwidth_gb_s * 1e9 * devices * width)
    kind = number_format(scheme)
    peak = accelerator.tflops.get(kind) or accelerator.tflops["bf16"]
    prompt = 2 * _prompt_products(shape, length) / (peak * 1e12 * devices * speed)
    return {
        "prefill_ms": prompt * 1e3,
        "token_ms": seconds * 1e3 if shape.generates else None,
        "tokens_per_second": batch / seconds if shape.generates else length / prompt,
    }


def _prompt_products(shape: ModelShape, length: int) -> float:
    """Multiplications of weights for a prompt; an encoder's head reads every token."""
    head = sum(m.size for m in shape.matrices if m.head) if shape.generates else 0
    return (shape.active_parameters - head) * length + head


def _reached(matrix: Matrix, batch: int) -> float:
    """Share of these weights that `batch` tokens are multiplied with, each drawing for itself."""
    return float(1 - (1 - matrix.active / matrix.count) ** batch)


def _share(accelerator: Accelerator, mig: str | None) -> tuple[float, float]:
    """Of the bandwidth and of the matrix units."""
    if mig is None:
        return 1.0, 1.0
    return accelerator.mig[mig] / accelerator.memory_gb, int(mig.partition("g")[0]) / 7


def _tensor_degrees(shape: ModelShape, node: int, *, columns: int) -> list[int]:
    return [
        n
        for n in (1, 2, 4, 8, 16)
        if n <= node
        and shape.heads % n == 0
        and (shape.kv_heads % n == 0 or n % shape.kv_heads == 0)
        and (n == 1 or all(width % (n * columns) == 0 for width in shape.widths))
    ]


def _serving_share(shape: ModelShape, memory: Memory, *, tensor: int, pipeline: int) -> int:
    """What the fullest device holds: of the stage with the most layers, and a table or the head."""
    part = -(-shape.layers // pipeline) / shape.layers
    outside = sum(memory.outside) if pipeline == 1 else max(memory.outside, default=0)
    weights = (memory.sharded["weights"] - sum(memory.outside)) * part + outside
    cache = memory.sharded["kv_cache"] * part / min(tensor, shape.cache_parts)
    # the residual stream is whole on every device: activations count in full, to be safe
    return int(weights / tensor + cache) + sum(memory.kept.values())
