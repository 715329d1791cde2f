"""Masks of a set of layers as training goes: attach once, then `advance` each optimizer step."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.sharding import gathered, local, share_of, write
from compress.sparsify.budgets import erk_densities, uniform_densities
from compress.sparsify.growth import random_scores, regrow
from compress.sparsify.live import Live
from compress.sparsify.masks import Masks
from compress.sparsify.metrics import churn, layer_record, overall_record
from compress.sparsify.moments import reset_moments, state_of
from compress.sparsify.settings import SparsitySettings
from compress.sparsify.transform import MaskWeight
from compress.transforms import (
    Stage,
    apply_mask,
    attach_transform,
    trained_weight,
    weight_before,
)

Optimizers = Iterable[torch.optim.Optimizer]


class SparseLayers:
    """Layers whose weights are masked by one set of settings.

    Args:
        layers: layers with a matrix `weight`, by name; each gets a `MaskWeight`.
        settings: what happens when.

    Raises:
        UnsupportedScheme: the pattern does not divide a weight; all such layers are listed.
    """

    def __init__(self, layers: Mapping[str, nn.Module], settings: SparsitySettings) -> None:
        """Attaches the masks; with `start=0` they apply at once."""
        self.layers, self.settings = dict(layers), settings
        self.pattern = settings.parsed_pattern
        self.shapes = {n: tuple(trained_weight(m).shape) for n, m in self.layers.items()}
        self.pattern.check(self.shapes)
        self.masks: dict[str, MaskWeight] = {}
        for name, layer in self.layers.items():
            self.masks[name] = MaskWeight(
                trained_weight(layer),
                pattern=settings.pattern,
                superset=settings.superset,
                decay=settings.decay,
            )
            attach_transform(layer, self.masks[name])
        self.first_record = self.advance(0)

    @torch.no_grad()
    def advance(
        self,
        step: int,
        *,
        gradients: Mapping[str, Tensor] | None = None,
        optimizers: Optimizers = (),
    ) -> dict[str, Any] | None:
        """Updates the masks if the settings say so after `step` optimizer steps.

        Args:
            step: optimizer steps made.
            gradients: dense gradients by layer, where `settings.reads_gradient_at(step)`; a layer
                without one exchanges nothing this time.
            optimizers: whose moments of entries that stop or start learning are reset.

        Returns:
            The record of this update for the history; None where nothing was due.

        Raises:
            BadInput: the settings hold fractions of a run, and `step` is not its beginning.
        """
        if step:
            self.settings.require_steps()
        due = self.settings.updates_at(step)
        record = self._update(step, gradients or {}, optimizers) if due else None
        self.prepare(step)
        return record

    def prepare(self, step: int) -> None:
        """Open or close the dense backward for the optimizer step that follows `step`."""
        for mask in self.masks.values():
            mask.dense_backward = self.settings.dense_backward_before(step + 1)

    @torch.no_grad()
    def take_dense_gradients(self, step: int) -> dict[str, Tensor]:
        """Copies the dense gradients for the update after `step`, then masks them in place.

        To be called between backward and clipping: what cannot be used must not count in the norm.
        A layer without a gradient, or whose gradient is no number (a step that will be passed
        over), gives none: its update then exchanges nothing.
        """
        if not self.settings.reads_gradient_at(step):
            return {}
        taken: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            gradient = trained_weight(layer).grad
            if gradient is not None:
                whole = gathered(gradient)
                if bool(torch.isfinite(whole).all()):
                    taken[name] = whole.abs()
                write(gradient, whole * self.masks[name].forward_mask)
        return taken

    @torch.no_grad()
    def pull_unused(self) -> None:
        """Adds SR-STE's decay to the gradients; to be called between clipping and the step.

        A weight without a gradient (of a step that is passed over) gets none.
        """
        if self.settings.growth != "magnitude":
            return
        for name, layer in self.layers.items():
            weight, mask = trained_weight(layer), self.masks[name].pulled_mask
            if mask is not None and weight.grad is not None:
                unused = apply_mask(local(weight), share_of(mask, weight))
                local(weight.grad).add_(unused, alpha=self.settings.decay)

    def _update(
        self, step: int, gradients: Mapping[str, Tensor], optimizers: Optimizers
    ) -> dict[str, Any]:
        settings = self.settings
        used = self._next_masks(step, gradients)
        learning = self._learning_masks(step, used)
        churns = {name: churn(self.masks[name].forward_mask, used[name]) for name in used}
        for name, layer in self.layers.items():
            weight, mask = trained_weight(layer), self.masks[name]
            before = self._learned_until(step, mask)
            reset_moments(state_of(optimizers, weight), before=before, after=learning[name])
            mask.forward_mask.copy_(used[name])
            if mask.backward_mask is not None:
                mask.backward_mask.copy_(learning[name])
            mask.explored.logical_or_(used[name])
            if settings.zeroes_unused_at(step):
                write(weight, gathered(weight) * learning[name])
        seen = {
            name: layer_record(
                Live(self.layers[name]).cut(mask.forward_mask),
                explored=Live(self.layers[name]).cut(mask.explored),
                churned=churns[name],
            )
            for name, mask in self.masks.items()
        }
        return overall_record(step, seen)

    def _next_masks(self, step: int, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        density = self.settings.density_at(step)
        if self.settings.budget == "global":
            return self._choose(list(self.layers), density, step, gradients)
        share_out = erk_densities if self.settings.budget == "erk" else uniform_densities
        live = {n: Live(m).cut(self.masks[n].forward_mask) for n, m in self.layers.items()}
        budget = share_out({n: w.shape for n, w in live.items() if w.numel()}, density=density)
        chosen: dict[str, Tensor] = {}
        for name in self.layers:
            chosen |= self._choose([name], budget.get(name, 0.0), step, gradients)
        return chosen

    def _choose(
        self, names: list[str], density: float, step: int, gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Masks of layers that share one budget."""
        pattern, settings = self.pattern, self.settings
        live = [Live(self.layers[n]) for n in names]
        cells = [pattern.cells(self._live_weight(n)) for n in names]
        if settings.growth in ("magnitude", "phases") or density == 1.0:
            masks = pattern.choose(cells, density=density)
        else:
            masks = regrow(
                pattern,
                magnitudes=cells,
                alive=[
                    pattern.alive(part.cut(self.masks[n].forward_mask))
                    for n, part in zip(names, live, strict=True)
                ],
                growth_scores=self._growth_scores(names, cells, step, gradients),
                density=density,
                share=settings.share_at(step),
            )
        return {
            name: part.embed(pattern.expand(mask), like=self.masks[name].forward_mask)
            for name, part, mask in zip(names, live, masks, strict=True)
        }

    def _live_weight(self, name: str) -> Tensor:
        # with adapters: the sum is what is masked, the weight beneath it stands still
        dense = weight_before(self.layers[name], Stage.MASK)
        return Live(self.layers[name]).cut(gathered(dense))

    def _growth_scores(
        self, names: list[str], cells: Masks, step: int, gradients: Mapping[str, Tensor]
    ) -> list[Tensor | None] | None:
        if self.settings.share_at(step) == 0.0:
            return None
        if self.settings.growth == "gradient":
            return [
                self.pattern.cells(Live(self.layers[name]).cut(gradients[name]))
                if name in gradients
                else None
                for name in names
            ]
        if self.settings.growth == "random":
            seed = self.settings.seed
            return [
                random_scores(c.shape, seed=seed, step=step, layer=name).to(c.device)
                for name, c in zip(names, cells, strict=True)
            ]
        return None

    def _learning_masks(self, step: int, used: dict[str, Tensor]) -> dict[str, Tensor]:
        density = self.settings.backward_density_at(step)
        if density == self.settings.density_at(step):
            return used
        if density == 1.0:
            return {name: torch.ones_like(mask) for name, mask in used.items()}
        chosen = {}
        for name, layer in self.layers.items():
            (wider,) = self.pattern.choose(
                [self.pattern.cells(self._live_weight(name))], density=density
            )
            chosen[name] = used[name] | Live(layer).embed(
                self.pattern.expand(wider), like=used[name]
            )
        return chosen

    def _learned_until(self, step: int, mask: MaskWeight) -> Tensor:
        """Entries whose moments are real: a dense gradient read for RigL was masked again."""
        if mask.backward_mask is not None:
            return mask.backward_mask
        if self.settings.growth == "magnitude" and self.settings.start < step:
            return torch.ones_like(mask.forward_mask)
        return mask.forward_mask
