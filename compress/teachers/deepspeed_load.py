"""Building a ZeRO-3 model and filling it tensor by tensor: no rank ever holds the whole of it.

`from_pretrained` under ZeRO-3 reads the whole checkpoint into every rank's memory first; here a
rank holds its shards and one tensor at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnsupportedModel


def build_sharded(
    deepspeed: Any,
    folder: Path,
    *,
    config: dict[str, Any],
    dtype: torch.dtype,
    task: str,
    trust_remote_code: bool,
) -> nn.Module:
    """The model of a checkpoint, every parameter split over the ranks as soon as it is made.

    Raises:
        BadInput: the checkpoint's configuration cannot be read.
        UnsupportedModel: the checkpoint names its tensors otherwise than the model does.
    """
    import transformers

    classes: dict[str, Any] = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "classification": transformers.AutoModelForSequenceClassification,
    }
    remote = {"trust_remote_code": trust_remote_code}
    try:
        shape = transformers.AutoConfig.from_pretrained(folder, **remote)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot load the teacher {folder}: {error}") from error
    # the dtype stands in `config`: given here too, DeepSpeed 0.19 takes float32 for bfloat16
    with deepspeed.zero.Init(config_dict_or_path=config, mem_efficient_linear=False):
        model: nn.Module = classes[task].from_config(shape, dtype=dtype, **remote)
    _make_buffers_anew(model)
    _fill(deepspeed, model, folder)
    return model.requires_grad_(False).eval()


def _make_buffers_anew(model: nn.Module) -> None:
    """Rotary frequencies in fp32: what is made under `zero.Init` is rounded to its dtype."""
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        if own and not list(module.parameters(recurse=False)):
            for name, buffer in own.items():
                if buffer.is_floating_point():
                    setattr(module, name, buffer.float())
            initialise: Any = model._init_weights
            initialise(module)


def _fill(deepspeed: Any, model: nn.Module, folder: Path) -> None:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    whole = [name for name, parameter in parameters.items() if not hasattr(parameter, "ds_id")]
    missing, unexpected = set(parameters), list[str]()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    for name, tensor in _tensors(folder):
        if name in parameters:
            _place(deepspeed, parameters[name], tensor)
            missing.discard(name)
        elif name in buffers:
            buffers[name].copy_(tensor)
        elif name not in tied:
            unexpected.append(name)
    if whole or missing or unexpected:
        raise UnsupportedModel(
            f"{folder} cannot be sharded: {len(whole)} parameters stayed whole {whole[:3]}, "
            f"{len(missing)} are not in its files {sorted(missing)[:3]}, {len(unexpected)} of its "
            f"tensors are no parameters {unexpected[:3]}; save it again with save_pretrained, or "
            "use teacher.host=served"
        )


@torch.no_grad()
def _place(deepspeed: Any, parameter: Tensor, tensor: Tensor) -> None:
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.copy_(tensor)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in an order that all ranks share; one at a time is in memory."""
    from safetensors import safe_open

    opener: Any = safe_open
    for path in sorted(folder.glob("*.safetensors")):
        with opener(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
