"""Quantisation-aware training in a Lightning run; the arithmetic is in `compress.quantize`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn

from compress.callbacks.base import CompressionCallback
from compress.quantize import prepare, start
from compress.quantize.switches import check_settings, freeze_scales, mark_frozen, set_enabled


class QuantizationAwareTraining(CompressionCallback):
    """Trains the weights that are served: rounded in every forward, dense in the optimizer.

    Args:
        scheme: preset of compressed-tensors, such as W8A8, W4A16, FP8_DYNAMIC, NVFP4; None takes
            `weight_bits` and `activation_bits`.
        weight_bits: 2, 3, 4 or 8, where `scheme` is None.
        activation_bits: 8 or 16, where `scheme` is None.
        group_size: columns to a scale; -1 the whole row; None the preset's.
        activations: `dynamic` (a scale per token) or `static` (calibrated); None the preset's.
        include: name patterns of the linear layers to quantise.
        exclude: name patterns taken out again.
        overrides: name pattern -> preset (`"W4A16:32"`), null keeps those layers dense.
        init: where training starts: `rtn`, `mse`, `percentile`.
        percentile: share of magnitudes inside the range, for `init=percentile`.
        scales: `learned` (LSQ), `tracked` (largest magnitude at each step) or `fixed`.
        scale_learning_rate: of learned scales, as a multiple of the run's; 0.0 keeps them.
        scale_dtype: what scales are stored in (`float32`, `bfloat16`, `float16`); None as the
            runtime loads them.
        start_step: optimizer steps trained dense first; scales are initialised then.
        freeze_step: from this optimizer step on, scales stay; None never.
        calibration_samples: training rows that static scales and `init` look at.
        calibration_seed: of their draw.
        name: tells two callbacks of a kind apart.

    Raises:
        UnsupportedScheme: layers that the scheme does not fit, all listed, before training.
        BadInput: a setting or pattern that does not exist.
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
        init: str = "rtn",
        percentile: float = 0.999,
        scales: str = "learned",
        scale_learning_rate: float = 1.0,
        scale_dtype: str | None = None,
        start_step: int = 0,
        freeze_step: int | None = None,
        calibration_samples: int = 64,
        calibration_seed: int = 0,
        name: str = "",
    ) -> None:
        """Checks the settings; attaches nothing yet."""
        super().__init__(name=name)
        check_settings(init=init, scales=scales, scale_dtype=scale_dtype)
        self.layers_settings = {
            "scheme": scheme, "weight_bits": weight_bits, "activation_bits": activation_bits,
            "group_size": group_size, "activations": activations, "include": include,
            "exclude": exclude, "overrides": dict(overrides or {}), "scales": scales,
            "scale_learning_rate": scale_learning_rate,
            "scale_dtype": getattr(torch, scale_dtype) if scale_dtype else None,
        }  # fmt: skip
        self.start_settings = {
            "init": init, "percentile": percentile, "samples": calibration_samples,
            "seed": calibration_seed,
        }  # fmt: skip
        self.start_step = start_step
        self.freeze_step = math.inf if freeze_step is None else freeze_step
        self._started = self._frozen = False
        self._data: Any = None

    def attach(self, student: nn.Module) -> None:
        """Parametrises the chosen layers; scales by rounding to nearest until data is seen."""
        prepare(student, **self.layers_settings)
        set_enabled(student, self.start_step == 0)

    def initialise(self, student: nn.Module, dataset: Any) -> None:
        """Scales from the present weights and from calibration rows: post-training quantisation."""
        start(student, dataset, **self.start_settings)

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
            self.initialise(student, self._data)
            set_enabled(student, True)
            self._started = True
        if not self._frozen and optimizer_step >= self.freeze_step:
            freeze_scales(student)
            self._frozen = True
