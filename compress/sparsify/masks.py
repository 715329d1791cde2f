"""Masks from scores: which entries of a weight stay, by pattern, in exact numbers.

A pattern cuts a weight into cells (one entry, or one block) and chooses cells by score; whoever
makes the scores (magnitude, gradient, chance) need not know the pattern.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import UnsupportedScheme
from compress.sparsify.thresholds import keep_largest

Masks = list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """`unstructured`, `N:M` (N kept of each M neighbours along the input) or `RxC` blocks."""

    text: str = "unstructured"
    kept: int = 1
    group: int = 1
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """The pattern behind a word.

        Raises:
            UnsupportedScheme: the word is none, or N is not below M.

        >>> Pattern.parse("2:4").kept, Pattern.parse("16x32").columns
        (2, 32)
        """
        if text == "unstructured":
            return cls()
        n_of_m, block = re.fullmatch(r"(\d+):(\d+)", text), re.fullmatch(r"(\d+)x(\d+)", text)
        if n_of_m and 0 < int(n_of_m[1]) < int(n_of_m[2]):
            return cls(text=text, kept=int(n_of_m[1]), group=int(n_of_m[2]))
        if block and min(int(block[1]), int(block[2])) > 0:
            return cls(text=text, rows=int(block[1]), columns=int(block[2]))
        raise UnsupportedScheme(
            f"pattern={text!r} is none of 'unstructured', 'N:M' with N < M ('2:4'), 'RxC' ('16x16')"
        )

    @property
    def name(self) -> str:
        """The word an exporter sees: `unstructured`, `block` or the N:M itself."""
        return "block" if self.rows * self.columns > 1 else self.text

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse weights that do not divide into cells or groups.

        Raises:
            UnsupportedScheme: lists every layer that does not fit.
        """
        rows, columns = self.rows, max(self.columns, self.group)
        bad = {n: s for n, s in shapes.items() if s[0] % rows or s[1] % columns}
        if bad:
            lines = "\n".join(f"  {name}   {s[0]} x {s[1]}" for name, s in bad.items())
            raise UnsupportedScheme(
                f"pattern={self.text} does not divide {len(bad)} of {len(shapes)} layers:\n{lines}\n"  # noqa: E501
                f"They need rows divisible by {rows} and columns by {columns}: choose another "
                "pattern, or leave these layers out with exclude="
            )

    def cells(self, scores: Tensor) -> Tensor:
        """One score a cell: its magnitude, or the L1 norm of a block."""
        if self.rows * self.columns == 1:
            return scores.abs()
        down, across = scores.shape[0] // self.rows, scores.shape[1] // self.columns
        blocks = scores.abs().float().reshape(down, self.rows, across, self.columns)
        return blocks.sum(dim=(1, 3))

    def alive(self, mask: Tensor) -> Tensor:
        """The mask by cells."""
        return mask[:: self.rows, :: self.columns]

    def expand(self, mask: Tensor) -> Tensor:
        """A mask by cells as a mask by entries."""
        if self.rows * self.columns == 1:
            return mask
        return mask.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)

    def kept_cells(self, cells: Sequence[Tensor], density: float) -> int:
        """How many cells of all these tensors are kept at `density`: rounded, or N of each M."""
        total = sum(c.numel() for c in cells)
        if self.group > 1:
            return total // self.group * self.kept_of_group(density)
        return round(density * total)

    def kept_of_group(self, density: float) -> int:
        """N while a schedule comes down from M; never below the pattern's own N."""
        return max(self.kept, min(self.group, round(density * self.group)))

    def choose(
        self, cells: Sequence[Tensor], *, density: float, among: Masks | None = None
    ) -> Masks:
        """Cell masks of the highest scores: per group for N:M, over all tensors otherwise.

        Args:
            cells: non-negative scores by cells.
            density: share of cells kept, over all these tensors together.
            among: only these cells may be chosen; None, any.
        """
        if self.group > 1:
            return self._choose_in_groups(cells, density, among)
        return keep_among(cells, kept=self.kept_cells(cells, density), among=among)

    def _choose_in_groups(
        self, cells: Sequence[Tensor], density: float, among: Masks | None
    ) -> Masks:
        masks = []
        for index, scores in enumerate(cells):
            barred = scores if among is None else scores.masked_fill(~among[index], -1.0)
            grouped = barred.reshape(len(barred), barred.shape[1] // self.group, self.group)
            # a stable sort breaks ties by index
            order = grouped.sort(dim=-1, descending=True, stable=True).indices
            chosen = torch.zeros_like(grouped, dtype=torch.bool)
            chosen.scatter_(-1, order[..., : self.kept_of_group(density)], True)
            masks.append((chosen & (grouped >= 0)).flatten(1))
        return masks


def keep_among(scores: Sequence[Tensor], *, kept: int, among: Masks | None = None) -> Masks:
    """`keep_largest` where only some entries may be chosen.

    >>> keep_among([torch.tensor([3.0, 2.0])], kept=1, among=[torch.tensor([False, True])])
    [tensor([False,  True])]
    """
    if among is None:
        return keep_largest(scores, kept=kept)
    chosen = keep_largest([s[a] for s, a in zip(scores, among, strict=True)], kept=kept)
    masks = [torch.zeros_like(a) for a in among]
    for mask, allowed, part in zip(masks, among, chosen, strict=True):
        mask[allowed] = part
    return masks


def topk_mask(weight: Tensor, *, density: float, pattern: str = "unstructured") -> Tensor:
    """Keeps the entries of largest magnitude: exactly `round(density * numel)`, ties by index.

    Args:
        weight: (outputs, inputs), or any shape where the pattern is unstructured.
        density: share kept; 1.0 keeps all, 0.0 none. An N:M pattern never falls below N / M.
        pattern: `unstructured`, `N:M` or `RxC`.

    Raises:
        UnsupportedScheme: the pattern does not divide the weight.
        ValueError: the density is outside [0, 1], or the weight is not finite.

    >>> topk_mask(torch.tensor([[4.0, 1.0, -3.0, 2.0]]), density=0.5, pattern="2:4").tolist()
    [[True, False, True, False]]
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density={density} is no share in [0, 1]")
    parsed = Pattern.parse(pattern)
    if parsed.text != "unstructured":
        parsed.check({"weight": tuple(weight.shape)})
    else:
        return keep_largest([weight], kept=round(density * weight.numel()))[0]
    return parsed.expand(parsed.choose([parsed.cells(weight)], density=density)[0])


def pack_bits(mask: Tensor) -> Tensor:
    """A boolean mask as bytes, eight entries each, lowest bit first.

    >>> pack_bits(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.uint8)
    """
    flat = mask.flatten().to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(
        -1, dtype=torch.uint8
    )


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask that `pack_bits` packed.

    Raises:
        ValueError: the bytes do not belong to a mask of this shape.

    >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), (3,))
    tensor([ True, False,  True])
    """
    numel = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or packed.numel() != (numel + 7) // 8:
        raise ValueError(
            f"{packed.numel()} bytes of {packed.dtype} are no packed mask of shape {tuple(shape)}"
        )
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[:numel].bool().view(tuple(shape))
