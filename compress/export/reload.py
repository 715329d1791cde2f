"""Logits of a written checkpoint, through transformers, beside those of the trained student."""

import contextlib
import copy
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import disable_quantization
from torch import Tensor, nn

from compress.errors import ExportMismatch
from compress.export.plan import ExportPlan
from compress.models import config_of
from compress.transforms import InputTransform, WeightTransform, trained_weight, transforms_of

TOLERANCE = 1e-5
"""Largest logit difference in fp32, relative to the largest logit where that exceeds 1."""

MEAN_TOLERANCE = 1e-3
"""Mean logit difference where inputs are rounded, relative to the largest logit likewise.

An input that lies on the edge between two codes falls to either side when it is computed a hair
differently (other threads, another kernel), so single logits may move; a wrong scale moves all.
"""

LARGEST_TOLERANCE = 5e-2
"""The same for the largest difference."""


@torch.no_grad()
def compare_logits(
    student: nn.Module,
    folder: str | Path,
    plan: ExportPlan,
    *,
    dtype: torch.dtype,
    batch: Mapping[str, Tensor] | None = None,
) -> float:
    """Largest difference of logits; both models compute in fp32 on the student's device.

    Tensors that are not quantised are rounded to `dtype` on both sides, so the comparison is exact
    for a bf16 export too. Buffers such as the RoPE frequencies stay fp32 on both sides. Where the
    scheme rounds inputs and the logits differ, both are compared again with inputs as they are:
    that must hold exactly, and the difference be as small as a few codes that flipped.

    Raises:
        ExportMismatch: keys are missing, unexpected or misshapen, or logits lie too far apart.
    """
    device = next(student.parameters()).device
    inputs = example_inputs(student, batch, device)
    ours = rounded_copy(student, dtype, fp4=fp4_layers(plan))
    theirs = reload_model(folder, type(student)).to(device)
    expected, actual = _logits(ours, inputs), _logits(theirs, inputs)
    if expected.shape != actual.shape:
        raise ExportMismatch(f"logits {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    gap, mean = (expected - actual).abs().max(), (expected - actual).abs().mean()
    size = max(1.0, float(expected.abs().max()))
    flips = mean <= MEAN_TOLERANCE * size and gap <= LARGEST_TOLERANCE * size
    if not gap <= TOLERANCE * size and not (
        flips and _rounds_inputs(plan) and _equal_without_rounding(ours, theirs, inputs)
    ):
        raise ExportMismatch(
            f"reloaded logits differ by up to {float(gap):.3g}; allowed {TOLERANCE * size:.3g}"
        )
    return float(gap)


def _rounds_inputs(plan: ExportPlan) -> bool:
    return plan.kv_cache is None and any(layer.inputs for layer in plan.quantized)


def _equal_without_rounding(
    ours: nn.Module, theirs: nn.Module, inputs: Mapping[str, Tensor]
) -> bool:
    for module in ours.modules():
        if isinstance(module, InputTransform):
            module.enabled = False  # type: ignore[assignment]
    theirs.apply(disable_quantization)
    expected, actual = _logits(ours, inputs), _logits(theirs, inputs)
    size = max(1.0, float(expected.abs().max()))
    return bool((expected - actual).abs().max() <= TOLERANCE * size)


def example_inputs(
    student: nn.Module, batch: Mapping[str, Tensor] | None, device: torch.device
) -> dict[str, Tensor]:
    """What to compare outputs on: the batch's own inputs, or a few tokens drawn by a fixed seed."""
    if batch is None:
        config = config_of(student)
        generator = torch.Generator().manual_seed(0)
        length = min(32, int(getattr(config, "max_position_embeddings", 32)))
        tokens = torch.randint(0, int(config.vocab_size), (2, length), generator=generator)
        batch = {"input_ids": tokens}
    kept = ("input_ids", "attention_mask", "token_type_ids")
    return {key: batch[key].to(device) for key in kept if key in batch}


def two_shapes(
    student: nn.Module, batch: Mapping[str, Tensor] | None
) -> Iterator[dict[str, Tensor]]:
    """Tokens and mask on the CPU: the example's, then one shorter row whose end is padded."""
    given = example_inputs(student, batch, torch.device("cpu"))
    tokens = given["input_ids"].cpu()
    yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    short = tokens[:1, : max(1, tokens.shape[1] - 3)] % int(config_of(student).vocab_size)
    mask = torch.ones_like(short)
    mask[:, short.shape[1] // 2 + 1 :] = 0
    yield {"input_ids": short, "attention_mask": mask}


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's logits; the last hidden states of one that has no head."""
    training = model.training
    model.eval()
    with torch.autocast(next(model.parameters()).device.type, enabled=False), quiet():
        output = model(**inputs)
    model.train(training)
    logits: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits.float()


def fp4_layers(plan: ExportPlan) -> set[str]:
    """Layers whose weights compressed-tensors unpacks into bf16, whatever the model computes in."""
    return {
        x.name
        for x in plan.quantized
        if x.weights and x.weights.type == "float" and x.weights.num_bits < 8
    }


@torch.no_grad()
def rounded_copy(student: nn.Module, dtype: torch.dtype, *, fp4: Iterable[str] = ()) -> nn.Module:
    """The student in fp32, every unquantised parameter rounded to `dtype`, `fp4` layers to bf16."""
    copied = copy.deepcopy(student).float()
    narrow = set(fp4)
    for name, layer in copied.named_modules():
        if name in narrow:
            _settle(layer, torch.bfloat16)
        elif transforms_of(layer) and not _quantised(layer):
            _settle(layer, dtype)
    kept = _exact_parameters(copied)
    for parameter in copied.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype).float()
    return copied


def _settle(layer: nn.Module, dtype: torch.dtype) -> None:
    """Put the used weight, rounded, in place of the trained one and drop its transforms."""
    chain: Any = layer.parametrizations["weight"]  # type: ignore[index]
    # `remove_parametrizations` would change the class, which the student shares with its copy
    chain.original.data = layer.weight.to(dtype).float()  # type: ignore[operator, union-attr]
    del chain[1:]
    chain[0] = nn.Identity()


def _quantised(layer: nn.Module) -> bool:
    chain = transforms_of(layer)
    return any(isinstance(t, WeightTransform) and t.scheme().kind == "quantize" for t in chain)


def _exact_parameters(model: nn.Module) -> set[int]:
    """Parameters that stay as they are: quantised weights and all that transforms own."""
    exact: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, WeightTransform | InputTransform):
            exact |= {id(parameter) for parameter in layer.parameters()}
        elif transforms_of(layer):
            exact.add(id(trained_weight(layer)))
    return exact


def reload_model(folder: str | Path, kind: type[nn.Module]) -> nn.Module:
    """The checkpoint through transformers' own loader, in fp32.

    Raises:
        ExportMismatch: the loader found keys missing, unexpected or misshapen.
    """
    import transformers

    causal = kind.__name__.endswith("ForCausalLM")
    loader: Any = transformers.AutoModelForCausalLM if causal else kind
    with quiet():
        model, info = loader.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True
        )
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        listed = "\n".join(f"  {key}: {', '.join(names)}" for key, names in wrong.items())
        raise ExportMismatch(f"transformers does not load the checkpoint whole:\n{listed}")
    if compressor := getattr(getattr(model, "hf_quantizer", None), "compressor", None):
        # now rather than in the first forward: FP4 comes out as bf16, whatever dtype was asked for
        with quiet():
            compressor.decompress_model(model)
    # transformers' own `float` refuses models that were quantised
    whole: nn.Module = nn.Module.float(model)
    return whole


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of other packages; an exception still comes through."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
