"""What each target can load and serve, as rules over a plan: each yields `Offence`s.

Facts about runtimes live here and nowhere else; each rule says the reason and the way out.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from compressed_tensors.quantization import QuantizationArgs

from compress.export.plan import ExportPlan, LayerPlan
from compress.export.schemes import scheme_name
from compress.export.sparsity import faster_in
from compress.quantize.fusion import FUSIONS


@dataclass(frozen=True, kw_only=True)
class Offence:
    """One thing the target cannot do: why, which layers, and the way out."""

    reason: str
    layers: tuple[str, ...] = ()
    way_out: str = ""

    def __str__(self) -> str:
        """Reason, one line for each layer, way out."""
        listed = "".join(f"\n  {layer}" for layer in self.layers)
        return f"{self.reason}{':' if listed else ''}{listed}" + (
            f"\n{self.way_out}" if self.way_out else ""
        )


Rule = Callable[[ExportPlan], Iterator[Offence]]


def refusals(
    plan: ExportPlan, refuses: Callable[[LayerPlan], tuple[str, str] | None]
) -> Iterator[Offence]:
    """One offence for each (reason, way out) that `refuses` answers, with all layers it is for."""
    refused: dict[tuple[str, str], list[str]] = {}
    for layer in plan.quantized:
        if answer := refuses(layer):
            scheme = scheme_name(layer.weights, layer.inputs)
            refused.setdefault(answer, []).append(f"{layer.name:<44} {scheme}")
    for (reason, way_out), layers in refused.items():
        yield Offence(reason=reason, layers=tuple(layers), way_out=way_out)


def fused_layers_agree(plan: ExportPlan) -> Iterator[Offence]:
    """q/k/v and gate/up are one matrix at run time: one scheme across each."""
    torn: list[str] = []
    for siblings in fused_sets(plan):
        names = {name: _name_of(plan, name) for name in siblings}
        if len(set(names.values())) > 1:
            torn += [f"{name:<44} {scheme}" for name, scheme in names.items()]
    if torn:
        yield Offence(
            reason="the runtime fuses q/k/v and gate/up, but their schemes differ",
            layers=tuple(torn),
            way_out="Give each set one scheme: override by '*self_attn*' (an encoder's: "
            "'*attention.self*') or '*gate_proj,*up_proj'.",
        )


def fused_sets(plan: ExportPlan) -> Iterator[list[str]]:
    """Names of the layers that are merged, set by set."""
    for name in plan.linears:
        parent, _, last = name.rpartition(".")
        for members in FUSIONS:
            if last == members[0]:
                yield [f"{parent}.{m}" for m in members if f"{parent}.{m}" in plan.linears]


def _name_of(plan: ExportPlan, name: str) -> str:
    layer = plan.layer(name)
    if layer is None or not layer.quantized:
        return "dense"
    size = layer.weights.group_size if layer.weights else None
    return scheme_name(layer.weights, layer.inputs) + (f" group {size}" if size else "")


def groups_divide(plan: ExportPlan) -> Iterator[Offence]:
    """A group lies within one row: the group size divides the columns."""
    odd: dict[int, list[str]] = {}
    for layer in plan.quantized:
        size = layer.weights.group_size if layer.weights else None
        if size and size > 0 and layer.shape[-1] % size:
            odd.setdefault(size, []).append(f"{layer.name:<44} {layer.shape[-1]} columns")
    for size, layers in odd.items():
        yield Offence(
            reason=f"group_size={size} does not divide {len(layers)} of "
            f"{len(plan.quantized)} layers",
            layers=tuple(layers),
            way_out="Use a group_size that divides them (32, 64 or 128), or exclude these layers.",
        )


def symmetric_weights(plan: ExportPlan) -> Iterator[Offence]:
    """Asymmetric weights fail to reload."""
    layers = [x.name for x in plan.quantized if x.weights and not x.weights.symmetric]
    if layers:
        yield Offence(
            reason="asymmetric weights do not reload from a compressed-tensors file",
            layers=tuple(layers),
            way_out="Use symmetric=true.",
        )


def head_is_free(plan: ExportPlan) -> Iterator[Offence]:
    """A head that shares its tensor with the embedding cannot be quantised on its own."""
    head = plan.layer(plan.head) if plan.head else None
    if head is not None and head.quantized and plan.tied_embeddings:
        yield Offence(
            reason="the output head shares its weight with the embedding (tied)",
            layers=(head.name,),
            way_out="Leave the head out (with_head=false), or untie: tie_word_embeddings=false.",
        )


def linear_layers_only(*, reason: str, way_out: str) -> Rule:
    """A rule that takes quantised linear layers and no other kind."""

    def rule(plan: ExportPlan) -> Iterator[Offence]:
        layers = [f"{x.name:<44} {x.kind}" for x in plan.quantized if x.kind != "Linear"]
        if layers:
            yield Offence(reason=reason, layers=tuple(layers), way_out=way_out)

    return rule


def schemes_have_kernels(plan: ExportPlan) -> Iterator[Offence]:
    """Each scheme is one that vLLM's compressed-tensors loader takes."""
    refused: dict[str, list[str]] = {}
    for layer in plan.quantized:
        reason = vllm_refuses(layer)
        if reason:
            refused.setdefault(reason, []).append(layer.name)
    for reason, layers in refused.items():
        yield Offence(
            reason=reason,
            layers=tuple(layers),
            way_out="Use one of W8A8, W4A16, W8A16, W4A8, FP8_DYNAMIC, FP8, FP8_BLOCK, NVFP4, "
            "MXFP4, or target=transformers.",
        )


def vllm_refuses(layer: LayerPlan) -> str | None:
    """Why vLLM has no kernel for this layer's scheme; None where it has one."""
    weights, inputs = layer.weights, layer.inputs
    name = scheme_name(weights, inputs)
    if weights is None:
        return f"{name}: vLLM quantises no inputs without the weights"
    if weights.type == "float":
        return None if weights.num_bits in (4, 8) else f"{name}: vLLM serves FP4 and FP8 alone"
    return _refuses_int(weights, inputs, name)


def _refuses_int(
    weights: QuantizationArgs, inputs: QuantizationArgs | None, name: str
) -> str | None:
    bits = weights.num_bits
    if inputs is None:
        grouped = weights.strategy in ("group", "channel")
        return None if grouped else f"{name}: vLLM needs weight scales per channel or group"
    if inputs.type == "float":
        return None if bits == 4 else f"{name}: vLLM serves int weights with FP8 inputs at 4 bits"
    if inputs.num_bits != 8 or bits not in (4, 8):
        return f"{name}: vLLM serves int inputs as W8A8 and W4A8 alone"
    if bits == 8 and weights.strategy not in ("channel", "tensor"):
        return f"{name}: vLLM's W8A8 needs weight scales per channel or tensor"
    if bits == 4 and not inputs.dynamic:
        return f"{name}: vLLM's W4A8 needs dynamic inputs"
    return None


def scales_fit(dtype: torch.dtype) -> Rule:
    """Scales of packed integer weights are loaded in the model's dtype."""

    def rule(plan: ExportPlan) -> Iterator[Offence]:
        rounded = [f"{x.name:<44} {x.scale_dtype}" for x in plan.quantized if _loses(x, dtype)]
        if rounded:
            word = str(dtype).removeprefix("torch.")
            yield Offence(
                reason=f"vLLM loads these scales as {word}, but they are trained as",
                layers=tuple(rounded),
                way_out=f"Train with scale_dtype={word}, or export with dtype=float32.",
            )

    return rule


def _loses(layer: LayerPlan, dtype: torch.dtype) -> bool:
    packed = (
        layer.weights is not None
        and layer.weights.type == "int"
        and (layer.inputs is None or layer.weights.num_bits < 8)
    )
    trained = layer.scale_dtype
    return packed and trained is not None and torch.promote_types(trained, dtype) != dtype


def zeros_pay_in(runtime: str) -> Rule:
    """Zeros asked for speed must make `runtime` faster."""

    def rule(plan: ExportPlan) -> Iterator[Offence]:
        if plan.sparse and runtime not in faster_in(plan):
            yield Offence(
                reason=f"sparse weights do not make {runtime} faster, and purpose=speed was asked",
                layers=tuple(f"{x.name:<44} {x.pattern}" for x in plan.sparse),
                way_out="Prune whole shapes (StructuredPruning), use 2:4 with target=tensorrt, "
                "or say purpose=size.",
            )

    return rule


def modelopt_kinds(plan: ExportPlan) -> Iterator[Offence]:
    """Runtimes read only FP8 and NVFP4 kinds in ModelOpt's own layout."""
    wrong = [
        f"{x.name:<44} {scheme_name(x.weights, x.inputs)}"
        for x in plan.quantized
        if scheme_name(x.weights, x.inputs) not in ("FP8", "NVFP4")
    ]
    if wrong or not plan.quantized:
        yield Offence(
            reason="ModelOpt's layout is read for FP8 (static, per tensor) and NVFP4 alone",
            layers=tuple(wrong),
            way_out="Use scheme=FP8 or scheme=NVFP4, or target=vllm (compressed-tensors).",
        )


def uniform_shapes(plan: ExportPlan) -> Iterator[Offence]:
    """One configuration describes every decoder layer, so the shapes must agree across layers."""
    shapes: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for name, shape in plan.linears.items():
        pattern = re.sub(r"\.\d+\.", ".*.", name)
        shapes.setdefault(pattern, {}).setdefault(shape, []).append(name)
    uneven = {pattern: by_shape for pattern, by_shape in shapes.items() if len(by_shape) > 1}
    if uneven:
        yield Offence(
            reason="layers of one kind have different shapes, and config.json holds one for all",
            layers=tuple(
                f"{names[0]:<44} {'x'.join(map(str, shape))} ({len(names)} layers)"
                for by_shape in uneven.values()
                for shape, names in by_shape.items()
            ),
            way_out="Prune every layer to the same widths, or remove whole layers.",
        )
