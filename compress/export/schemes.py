"""From a plan to compressed-tensors' words: scheme names, config groups, formats, ignore list."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import nn

from compress.export.plan import ExportPlan, LayerPlan

MODULES = {"Linear": nn.Linear, "Embedding": nn.Embedding}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that share one scheme."""

    scheme: QuantizationScheme
    layers: tuple[LayerPlan, ...]

    @property
    def format(self) -> CompressionFormat:
        """How compressed-tensors stores these layers."""
        if self.layers[0].kind == "Embedding":
            # transformers cannot load a packed table: it looks for a tensor named `weight`
            return CompressionFormat.naive_quantized
        return infer_module_format(MODULES[self.layers[0].kind], self.scheme)


def scheme_name(weights: QuantizationArgs | None, inputs: QuantizationArgs | None) -> str:
    """A preset's name where there is one, else the same words built from the parts.

    >>> scheme_name(QuantizationArgs(num_bits=4, group_size=32), None)
    'W4A16'
    >>> scheme_name(None, None)
    'dense'
    """
    if weights is None:
        return "dense" if inputs is None else f"W16A{inputs.num_bits}"
    if weights.type == "float":
        return _float_name(weights, inputs)
    suffix = "" if weights.symmetric else "_ASYM"
    if inputs is not None and inputs.type == "float":
        return f"W{weights.num_bits}AFP{inputs.num_bits}{suffix}"
    return f"W{weights.num_bits}A{inputs.num_bits if inputs else 16}{suffix}"


def _float_name(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
    if weights.strategy == "tensor_group":
        return "NVFP4" if inputs else "NVFP4A16"
    if weights.num_bits < 8 or weights.group_size == 32:
        name = f"MXFP{weights.num_bits}"
        same = inputs is not None and inputs.num_bits == weights.num_bits
        return name if same else f"{name}A{inputs.num_bits if inputs else 16}"
    if weights.strategy == "block":
        return "FP8_BLOCK"
    if inputs is None:
        return "FP8A16"
    return "FP8_DYNAMIC" if inputs.dynamic else "FP8"


def plan_name(plan: ExportPlan) -> str:
    """One word for the whole plan: the scheme, `mixed(...)`, or `dense`."""
    names = sorted({scheme_name(layer.weights, layer.inputs) for layer in plan.quantized})
    if not names:
        return "dense"
    return names[0] if len(names) == 1 else f"mixed({', '.join(names)})"


def groups_of(plan: ExportPlan) -> list[Group]:
    """Config groups: layers with equal arguments, each group with the targets that choose them."""
    buckets: dict[str, list[LayerPlan]] = {}
    for layer in plan.quantized:
        buckets.setdefault(_signature(layer), []).append(layer)
    kinds = {layer.kind for layer in plan.quantized}
    one = len(buckets) == 1 and kinds == {"Linear"}
    return [_group(layers, by_kind=one) for layers in buckets.values()]


def _signature(layer: LayerPlan) -> str:
    return repr((layer.kind, *(_plain(args) for args in (layer.weights, layer.inputs))))


def _plain(args: QuantizationArgs | None) -> dict[str, Any] | None:
    return None if args is None else args.model_dump()


def _group(layers: Iterable[LayerPlan], *, by_kind: bool) -> Group:
    layers = tuple(layers)
    # by kind, other layers are named in the ignore list: the form every runtime knows best
    targets = [layers[0].kind] if by_kind else [layer.name for layer in layers]
    scheme = QuantizationScheme(
        targets=targets, weights=layers[0].weights, input_activations=layers[0].inputs
    )
    group = Group(scheme=scheme, layers=layers)
    scheme.format = group.format
    return group


def ignored(plan: ExportPlan) -> list[str]:
    """Linear layers that stay dense, the output head among them."""
    taken = {layer.name for layer in plan.quantized}
    return [name for name in plan.linears if name not in taken]


def quantization_config(plan: ExportPlan) -> dict[str, Any] | None:
    """The `quantization_config` of `config.json`; None where nothing is quantised.

    Never holds a `sparsity_config`: vLLM refuses it.
    """
    groups = groups_of(plan)
    if not groups and plan.kv_cache is None:
        return None
    formats = {group.format.value for group in groups}
    overall = formats.pop() if len(formats) == 1 else "mixed-precision" if formats else "dense"
    return {
        "quant_method": "compressed-tensors",
        "format": overall,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": {
            f"group_{i}": group.scheme.model_dump(mode="json") for i, group in enumerate(groups)
        },
        "ignore": ignored(plan),
        "kv_cache_scheme": None if plan.kv_cache is None else plan.kv_cache.model_dump(mode="json"),
    }
