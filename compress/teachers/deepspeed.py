"""A teacher larger than one device: DeepSpeed ZeRO-3, every rank holding its share.

What DeepSpeed needs of the process is in `deepspeed_build.py`.

Legend: B sequences, L positions, H hidden, V vocabulary.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch, DenseSignal, Head, Want
from compress.errors import BadInput, UnsupportedModel
from compress.models import head_of
from compress.taps import taps_of
from compress.teachers.checkpoints import checkpoint_folder
from compress.teachers.deepspeed_build import (
    freed_memory_goes_back,
    import_deepspeed,
    start_process_group,
    warm_extension,
)
from compress.teachers.deepspeed_load import build_sharded
from compress.teachers.local import TRACERS, check_checkpoint, chosen_features, dtype_of

OFFLOADS = ("none", "cpu", "nvme")


class DeepSpeedTeacher:
    """Runs a frozen model whose layers are spread over the ranks, one layer whole at a time.

    Built at the first `signal`, when all ranks are there: no rank ever holds the whole. Every rank
    must call `signal` equally often (`collective`), whatever rows it has.

    Args:
        path: a Hugging Face folder or hub name, safetensors only.
        dtype: of the shards and the forward pass: bfloat16, float16 or float32.
        offload: `none` keeps shards on the device, `cpu` in host memory, `nvme` on a disk.
        nvme_path: folder on that disk; needed for `nvme` alone.
        pin_memory: page-locked host memory: faster copies to a GPU, not swappable.
        prefetch_elements: parameters fetched ahead; 0 fetches each layer when it runs: least
            memory, slowest.
        live_elements: parameters that may be whole at a time besides the running layer's.
        persist_elements: tensors up to this size stay whole on every rank (norms); 0 shards all.
        task: `causal_lm` or `classification`.
        trust_remote_code: run Python that comes with the checkpoint; leave it off.

    Raises:
        BadInput: a setting is unknown, the checkpoint cannot be used, DeepSpeed is missing.
    """

    collective = True

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "bfloat16",
        offload: str = "none",
        nvme_path: str | None = None,
        pin_memory: bool = True,
        prefetch_elements: int = 50_000_000,
        live_elements: int = 1_000_000_000,
        persist_elements: int = 100_000,
        task: str = "causal_lm",
        trust_remote_code: bool = False,
    ) -> None:
        """Checks all settings; loads nothing yet."""
        if offload not in OFFLOADS:
            raise BadInput(f"offload={offload!r} is unknown; use one of {', '.join(OFFLOADS)}")
        if task not in TRACERS:
            raise BadInput(f"task={task!r} is unknown to a teacher; use one of {sorted(TRACERS)}")
        check_checkpoint(path)
        self.path = self.name_or_path = path
        self.task, self.trust_remote_code = task, trust_remote_code
        self.dtype = dtype_of(dtype) or torch.bfloat16
        self.deepspeed = import_deepspeed()
        self.config = zero_config(
            self.dtype, offload=offload, nvme_path=nvme_path, pin_memory=pin_memory,
            prefetch_elements=prefetch_elements, live_elements=live_elements,
            persist_elements=persist_elements,
        )  # fmt: skip
        if offload == "nvme":
            _check_nvme(nvme_path)
        self.vocab_size = self._read_vocab_size()
        self._runner: _Runner | None = None

    def _read_vocab_size(self) -> int:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                self.path, trust_remote_code=self.trust_remote_code
            ).get_text_config()
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot load the teacher {self.path!r}: {error}") from error
        return int(config.vocab_size if self.task == "causal_lm" else config.num_labels)

    @torch.no_grad()
    def signal(self, batch: Batch, want: Want) -> DenseSignal:
        """One forward pass together with all other ranks; the head is gathered once a call.

        Raises:
            BadInput: a wanted feature is no module of the teacher, or did not run.
        """
        runner = self.build()
        if want.features:
            taps_of(runner.model).open(want.features)
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, enabled=False), freed_memory_goes_back():
            hidden_BLH, features = runner(**batch)
            head = self._gathered_head(runner.model) if want.logits else None
        return DenseSignal(
            hidden_SLH=hidden_BLH if want.logits else None,
            head=head,
            features=chosen_features(features, want.features),
        )

    def build(self) -> "_Runner":
        """Load and shard the model, once; all ranks together."""
        if self._runner is None:
            warm_extension()
            start_process_group(self.deepspeed)
            with freed_memory_goes_back():
                model = build_sharded(
                    self.deepspeed, checkpoint_folder(self.path), config=self.config,
                    dtype=self.dtype, task=self.task, trust_remote_code=self.trust_remote_code,
                )  # fmt: skip
                engine, *_ = self.deepspeed.initialize(
                    model=_Runner(model, self.task), config=self.config
                )
            self._engine = engine  # its hooks gather and release the layers
            self._runner = engine.module.eval()
            if self.task == "causal_lm":
                self._check_head()
        assert self._runner is not None
        return self._runner

    def _gathered_head(self, model: nn.Module) -> Head:
        """The head, whole on every rank while the step lasts; the same for any number of rows."""
        if self.task != "causal_lm":
            size = self.vocab_size
            return Head(weight_VH=torch.eye(size, dtype=self.dtype, device=_device()))
        head = head_of(model)
        parameters = [p for p in (head.weight, head.bias) if isinstance(p, Tensor)]
        with self.deepspeed.zero.GatheredParameters(parameters):
            # the storage outlives the context: leaving it only makes the parameter let go
            held = [p.data for p in parameters]
        return Head(weight_VH=held[0], bias_V=held[1] if len(held) > 1 else None)

    def _check_head(self) -> None:
        assert self._runner is not None
        tokens = torch.arange(4, device=_device())[None] % self.vocab_size
        ours_signal = self.signal({"input_ids": tokens}, Want(logits=True))
        assert ours_signal.hidden_SLH is not None and ours_signal.head is not None
        ours = ours_signal.head(ours_signal.hidden_SLH).float()
        whole = torch.autocast(tokens.device.type, enabled=False)
        with torch.no_grad(), whole, freed_memory_goes_back():
            theirs = self._runner(input_ids=tokens, whole=True).float()
        tolerance = 1e-3 * float(theirs.abs().max()) + 1e-6
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=tolerance):
            raise UnsupportedModel(
                f"{self.path}: its logits are not head(backbone(x)) (largest gap "
                f"{float((ours - theirs).abs().max()):.3g}); models that cap or scale their "
                "logits are not supported"
            )


class _Runner(nn.Module):
    """What DeepSpeed runs: its own forward, so that each call begins a new round of fetching."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, *, whole: bool = False, **batch: Tensor) -> Any:
        if whole:
            return self.model(**batch, use_cache=False).logits
        trace = TRACERS[self.task](self.model, batch)
        return trace.hidden_BLH, dict(trace.features)


def zero_config(
    dtype: torch.dtype,
    *,
    offload: str,
    nvme_path: str | None,
    pin_memory: bool,
    prefetch_elements: int,
    live_elements: int,
    persist_elements: int,
) -> dict[str, Any]:
    """DeepSpeed's configuration of a frozen ZeRO-3 model.

    >>> config = zero_config(
    ...     torch.bfloat16, offload="cpu", nvme_path=None, pin_memory=True,
    ...     prefetch_elements=0, live_elements=0, persist_elements=0)
    >>> config["zero_optimization"].get("offload_param")
    {'device': 'cpu', 'pin_memory': True}
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_prefetch_bucket_size": prefetch_elements,
        "stage3_max_live_parameters": live_elements,
        "stage3_max_reuse_distance": 0,  # let go of a layer as soon as it has run
        "stage3_param_persistence_threshold": persist_elements,
        "memory_efficient_linear": False,  # would replace torch's linear for the student too
    }
    if offload != "none":
        zero["offload_param"] = {"device": offload, "pin_memory": pin_memory}
    if offload == "nvme":
        zero["offload_param"]["nvme_path"] = nvme_path
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for one; nothing is trained
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": zero,
    }


def _check_nvme(nvme_path: str | None) -> None:
    if nvme_path is None or not Path(nvme_path).is_dir() or not os.access(nvme_path, os.W_OK):
        raise BadInput(f"offload=nvme needs a folder that can be written: nvme_path={nvme_path}")
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise BadInput(
            "offload=nvme needs DeepSpeed's async_io, which needs libaio's headers "
            "(libaio-dev); or use offload=cpu"
        )


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
