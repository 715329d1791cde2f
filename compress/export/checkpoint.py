"""The tensors of a checkpoint: quantised layers through compressed-tensors, the rest dense."""

from collections.abc import Mapping
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.export.plan import ExportPlan, LayerPlan
from compress.export.schemes import Group, groups_of
from compress.transforms import Stage, plain_state_dict, weight_before

SHARD_BYTES = 5 * 10**9

# what is multiplied into codes in higher precision than bf16 by every runtime
FP32_TENSORS = ("weight_global_scale", "input_global_scale")


@torch.no_grad()
def checkpoint_tensors(
    student: nn.Module, plan: ExportPlan, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All tensors of the export under the names of the plain model, on the CPU.

    Codes are computed in fp32 from the trained weight (masked, adapters added, not quantised) and
    the scale that is written; whatever is not quantised is rounded to `dtype`.
    """
    layers = dict(student.named_modules())
    state = dense_tensors(student, plan, dtype=dtype)
    for group in groups_of(plan):
        for planned in group.layers:
            state.pop(f"{planned.name}.weight", None)
            parts = compressed_layer(layers[planned.name], planned, group, dtype=dtype)
            state.update({f"{planned.name}.{key}": value for key, value in parts.items()})
    state.update({key: value.to("cpu", torch.float32) for key, value in plan.kv_tensors.items()})
    return state


def dense_tensors(student: nn.Module, plan: ExportPlan, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the plain model as it is used, but before quantisers, in `dtype`."""
    state = plain_state_dict(student, transformed=False)
    layers = dict(student.named_modules())
    for planned in plan.layers:
        state[f"{planned.name}.weight"] = weight_before(layers[planned.name], Stage.QUANTIZE)
    for key in getattr(student, "_tied_weights_keys", None) or ():
        if plan.tied_embeddings:  # one tensor under two names: the file holds it once
            state.pop(key, None)
    return {key: _in_dtype(value, dtype) for key, value in state.items()}


def _in_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
    return value.clone().contiguous()


def compressed_layer(
    layer: nn.Module, planned: LayerPlan, group: Group, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the file holds of one quantised layer, under local names (no bias)."""
    parts = {key: stored_scale(key, value, dtype) for key, value in planned.tensors.items()}
    if planned.weights is None:
        return {**_symmetric(planned, parts), "weight": _in_dtype(_weight(layer), dtype)}
    # compress in fp32: bf16 weights over bf16 scales would flip one int4 code in a hundred
    full = {k: v.float() if k.endswith("_scale") else v for k, v in parts.items()}
    compressor = BaseCompressor.get_value_from_registry(group.format.value)
    packed = compressor.compress({"weight": _weight(layer), **full}, group.scheme)
    return {
        key: parts[key] if value is full.get(key) else value.contiguous()
        for key, value in _symmetric(planned, packed).items()
    }


def _weight(layer: nn.Module) -> Tensor:
    return weight_before(layer, Stage.QUANTIZE).detach().to("cpu", torch.float32)


def _symmetric(planned: LayerPlan, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # vLLM has no place for the zero points of a symmetric scheme
    idle = {
        f"{base}_zero_point"
        for base, args in (("weight", planned.weights), ("input", planned.inputs))
        if args is None or args.symmetric
    }
    return {key: value for key, value in parts.items() if key not in idle}


def stored_scale(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale as the file holds it: in the model's dtype where nothing is lost, else fp32.

    >>> stored_scale("weight_scale", torch.tensor([0.5]), torch.bfloat16).dtype
    torch.bfloat16
    >>> stored_scale("weight_scale", torch.tensor([0.1]), torch.bfloat16).dtype
    torch.float32
    """
    value = value.detach().cpu()
    if not key.endswith("_scale") or not value.is_floating_point():
        return value
    exact = value.float()
    narrow = exact.to(dtype)
    lossless = bool((narrow.float() == exact).all())
    return narrow if lossless and key not in FP32_TENSORS else exact


def save_tensors(state: Mapping[str, Tensor], folder: Path, *, shard_bytes: int) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `shard_bytes` and their index."""
    import json

    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(state), max_shard_size=shard_bytes)
    for name, keys in split.filename_to_tensors.items():
        save_file({key: state[key] for key in keys}, folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text)
    return [folder / name for name in split.filename_to_tensors]


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, one file or sharded."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return tensors
