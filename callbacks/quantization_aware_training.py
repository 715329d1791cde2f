"""Quantisation-aware training in a Lightning run; the arithmetic is in `compress.quantize`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn

from compress.callbacks.base import CompressionCallback
from compress.errors import BadInput
from compress.quantize import prepare, start
from compress.quantize.adapters import adapt
from compress.quantize.budget import cheapest_plan
from compress.quantize.fusion import quantizers
from compress.quantize.sensitivity import BUDGET_SCHEMES, measure_sensitivity
from compress.quantize.switches import check_settings, freeze_scales, mark_frozen, set_enabled
from compress.sharding import whole_weights
from compress.targets import as_patterns


class QuantizationAwareTraining(CompressionCallback):
    """Trains the weights that are served: rounded in every forward, dense in the optimizer.

    Args:
        scheme: preset of compressed-tensors, such as W8A8, W4A16:32, FP8_DYNAMIC, NVFP4; None
            takes `weight_bits` and `activation_bits`.
        weight_bits: 2, 3, 4 or 8, where `scheme` is None.
        activation_bits: 8 or 16, where `scheme` is None.
        group_size: columns to a scale; -1 the whole row; None the preset's.
        activations: `dynamic` (a scale per token) or `static` (calibrated), of overrides too; None
            the preset's.
        include: name patterns of the linear layers to quantise.
        exclude: name patterns taken out again.
        overrides: name pattern -> preset (`"W4A16:32"`), null keeps those layers dense.
        embeddings: preset of the input embeddings (`"W8A16:32"`); None keeps them dense.
        kv_cache: `fp8` rounds keys and values as an FP8 cache does; None does not.
        budget_bits: mean bits a weight of the file that is exported in `scale_dtype` (None:
            float32), scales included: every layer's scheme is then chosen from `budget_schemes`
            by its sensitivity, and `scheme` is not looked at; None is off.
        budget_schemes: presets to choose from, least bits first or not.
        init: where training starts: `rtn`, `mse`, `percentile`, `smoothquant`, `gptq`.
        percentile: share of magnitudes inside the range, for `init=percentile`.
        smoothing: share of the inputs' outliers that weights take over, for `init=smoothquant`.
        damping: of the inputs' second moments, for `init=gptq`.
        scales: `learned` (LSQ), `tracked` (largest magnitude at each step) or `fixed`.
        scale_learning_rate: of learned scales, as a multiple of the run's; 0.0 keeps them.
        scale_dtype: what scales are stored in (`float32`, `bfloat16`, `float16`); None as the
            runtime loads them.
        observer: how static inputs get their scale: `minmax`, `percentile`, `mse`.
        observer_percentile: share of input magnitudes inside the range, for `percentile`.
        backward: `clipped` (saturated values get no gradient) or `straight_through`.
        adapter_rank: trains low-rank additions of this rank in place of the weights, absorbed by
            the export; 0 trains the weights.
        start_step: optimizer steps trained dense first; scales are initialised then.
        freeze_step: from this optimizer step on, scales stay; None never.
        calibration_samples: training rows that static scales, `init` and the budget look at.
        calibration_seed: of their draw.
        name: tells two callbacks of a kind apart.

    Raises:
        UnsupportedScheme: layers that the scheme does not fit, all listed, before training.
        BadInput: a setting or pattern that does not exist, or a budget that no plan meets.
    """

    def __init__(
        self,
        *,
        scheme: str | None = "W8A8",
        weight_bits: int | None = None,
        activation_bits: int = 16,
        group_size: int | None = None,
        activations: str | None = None,
        include: Any = "*",
        exclude: Any = None,
        overrides: Mapping[str, str | None] | None = None,
        embeddings: str | None = None,
        kv_cache: str | None = None,
        budget_bits: float | None = None,
        budget_schemes: Any = BUDGET_SCHEMES,
        init: str = "rtn",
        percentile: float = 0.999,
        smoothing: float = 0.5,
        damping: float = 0.01,
        scales: str = "learned",
        scale_learning_rate: float = 1.0,
        scale_dtype: str | None = None,
        observer: str = "minmax",
        observer_percentile: float = 0.9999,
        backward: str = "clipped",
        adapter_rank: int = 0,
        start_step: int = 0,
        freeze_step: int | None = None,
        calibration_samples: int = 64,
        calibration_seed: int = 0,
        name: str = "",
    ) -> None:
        """Checks the settings; attaches nothing yet."""
        super().__init__(name=name)
        check_settings(init=init, scales=scales, scale_dtype=scale_dtype, observer=observer,
                       backward=backward, kv_cache=kv_cache)  # fmt: skip
        self.layers_settings: dict[str, Any] = {
            "scheme": scheme, "weight_bits": weight_bits, "activation_bits": activation_bits,
            "group_size": group_size, "activations": activations, "include": include,
            "exclude": exclude, "overrides": dict(overrides or {}), "embeddings": embeddings,
            "kv_cache": kv_cache, "scales": scales, "scale_learning_rate": scale_learning_rate,
            "scale_dtype": getattr(torch, scale_dtype) if scale_dtype else None,
            "observer": observer, "observer_percentile": observer_percentile, "backward": backward,
        }  # fmt: skip
        self.start_settings: dict[str, Any] = {
            "init": init, "percentile": percentile, "smoothing": smoothing, "damping": damping,
            "samples": calibration_samples, "seed": calibration_seed,
        }  # fmt: skip
        self.budget_bits, self.budget_schemes = budget_bits, as_patterns(budget_schemes)
        self.adapter_rank, self.start_step = adapter_rank, start_step
        self.freeze_step = math.inf if freeze_step is None else freeze_step
        self._started = self._frozen = False
        self._data: Any = None
        self._facts: dict[str, Any] = {}

    @property
    def needs_data(self) -> bool:
        """A budget is planned on training rows."""
        return self.budget_bits is not None

    def decide(self, student: nn.Module, dataset: Any) -> None:
        """With a budget: measures every layer's sensitivity and plans their schemes."""
        if self.budget_bits is None:
            return
        settings, told = self.layers_settings, self.start_settings
        scale_dtype: torch.dtype | None = settings["scale_dtype"]
        export_dtype = scale_dtype or torch.float32
        units = measure_sensitivity(
            student, dataset, schemes=self.budget_schemes, include=settings["include"],
            exclude=settings["exclude"], samples=told["samples"], seed=told["seed"],
            scale_dtype=scale_dtype, export_dtype=export_dtype,
        )  # fmt: skip
        plan = cheapest_plan(units, budget_bits=self.budget_bits)
        settings["scheme"], settings["group_size"] = self.budget_schemes[0], None
        settings["weight_bits"] = settings["activations"] = None
        settings["overrides"] = {**plan.overrides, **settings["overrides"]}
        self._facts["bit_plan"] = {
            "bits": plan.bits, "damage": plan.damage, "schemes": dict(plan.overrides),
            "export_dtype": str(export_dtype).removeprefix("torch."),
        }  # fmt: skip

    def attach(self, student: nn.Module) -> None:
        """Parametrises the chosen layers; scales by rounding to nearest until data is seen."""
        if any(True for _ in quantizers(student)):
            raise BadInput(
                f"{type(self).__name__}: this student is quantised by another callback, and "
                "starts and freezes hold for all of it; give one callback every layer, and those "
                "of another scheme as overrides={'*mlp*': 'W4A16:32'}"
            )
        layers = prepare(student, **self.layers_settings)
        if self.adapter_rank:
            linear = {n: m for n, m in layers.items() if isinstance(m, nn.Linear)}
            adapt(student, linear, rank=self.adapter_rank)
        set_enabled(student, self.start_step == 0)

    def initialise(self, student: nn.Module, dataset: Any) -> None:
        """Scales from the present weights and from calibration rows: post-training quantisation."""
        if self._started or self.start_step == 0:
            with whole_weights(student):
                calibration = start(student, dataset, **self.start_settings)
            self._facts["calibration"] = calibration.as_dict()

    def compress_at_once(self, student: nn.Module, dataset: Any) -> None:
        """Post-training quantisation alone, whatever `start_step` says."""
        self._started = True
        set_enabled(student, True)
        self.initialise(student, dataset)

    def report(self) -> dict[str, Any]:
        """What calibration looked at, and the plan of a budget, for report.json."""
        return {"quantization": self._facts} if self._facts else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the schedule where a fresh or resumed run stands."""
        self._data = trainer.train_dataloader.dataset
        super().on_train_start(trainer, pl_module)
        self._started = trainer.global_step >= self.start_step
        self._frozen = trainer.global_step >= self.freeze_step
        set_enabled(pl_module.student, self._started)
        if self._frozen:  # a resumed checkpoint holds the frozen scales already
            mark_frozen(pl_module.student)

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Switches quantisation on at `start_step`, freezes scales at `freeze_step`."""
        if not self._started and optimizer_step >= self.start_step:
            self.compress_at_once(student, self._data)
        if not self._frozen and optimizer_step >= self.freeze_step:
            with whole_weights(student):
                freeze_scales(student)
            self._frozen = True

    def state_dict(self) -> dict[str, Any]:
        """The plan and the calibration go along: a resumed run reports and checks them."""
        return {**super().state_dict(), "facts": self._facts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            BadInput: this machine plans another mixture of schemes than the checkpoint holds.
        """
        super().load_state_dict(state_dict)
        held = (state_dict["facts"], self._facts)
        kept, planned = (facts.get("bit_plan", {}).get("schemes") for facts in held)
        if kept != planned:
            raise BadInput(
                "the checkpoint was trained under another plan than budget_bits gives here; give "
                f"it as callbacks.qat.overrides instead of a budget: {kept}"
            )
        self._facts = state_dict["facts"]
