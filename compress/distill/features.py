"""Losses between inner features of student and teacher; padding never counts.

Legend: B sequences, L positions, H student width, T teacher width, R heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.errors import BadInput, did_you_mean
from compress.taps import EMBEDDING

KINDS = ("mse", "cosine", "attention_transfer", "relations", "attention")
PROJECTED = ("mse", "cosine")
"""These compare coordinate by coordinate, so unequal widths need a projector."""


def mse(student_BLT: Tensor, teacher_BLT: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean squared difference of a coordinate (FitNets, Romero et al. 2015, arXiv 1412.6550).

    >>> one = torch.ones(1, 2, 3)
    >>> mse(one, 3 * one, torch.ones(1, 2)).item()
    4.0
    """
    return _mean((student_BLT - teacher_BLT).square().mean(-1), mask_BL)


def cosine(student_BLT: Tensor, teacher_BLT: Tensor, mask_BL: Tensor) -> Tensor:
    """1 - cosine of the angle at each position: direction alone, blind to length."""
    return _mean(1.0 - nn.functional.cosine_similarity(student_BLT, teacher_BLT, dim=-1), mask_BL)


def attention_transfer(student_BLH: Tensor, teacher_BLT: Tensor, mask_BL: Tensor) -> Tensor:
    """Where each sequence is active: |a / |a| - b / |b||^2, a = sum of squares over the width.

    Zagoruyko & Komodakis 2017, arXiv 1612.03928, eq. 2; widths may differ. Mean over sequences.
    """

    def activity(feature: Tensor) -> Tensor:
        return nn.functional.normalize(feature.square().mean(-1) * mask_BL, dim=-1)

    gap_B = (activity(student_BLH) - activity(teacher_BLT)).square().sum(-1)
    return _mean(gap_B, mask_BL.amax(-1))


def relations(
    student_BLH: Tensor, teacher_BLT: Tensor, mask_BL: Tensor, *, heads: int = 1
) -> Tensor:
    """KL(teacher | student) of softmax(x x^T / sqrt(width)), a head: how positions relate.

    MiniLMv2 (Wang et al. 2021, arXiv 2012.15828, eq. 3): give it queries, keys and values; widths
    may differ, as each is split into `heads` relation heads.

    Args:
        student_BLH: student feature.
        teacher_BLT: teacher feature.
        mask_BL: 1 where there is a token.
        heads: relation heads; 1 relates whole features, more give finer relations.

    Raises:
        BadInput: `heads` does not divide both widths.
    """
    widths = (student_BLH.shape[-1], teacher_BLT.shape[-1])
    if any(width % heads for width in widths):
        raise BadInput(f"relation_heads={heads} does not divide the widths {widths}")
    log_p, log_q = (_relation(x, mask_BL, heads) for x in (student_BLH, teacher_BLT))
    divergence_BRL = (log_q.exp() * (log_q - log_p)).sum(-1)
    return _mean(divergence_BRL.mean(1), mask_BL)


def attention(student_BRLL: Tensor, teacher_BRLL: Tensor, mask_BL: Tensor) -> Tensor:
    """KL(teacher | student) of attention maps, mean over heads and positions that are no padding.

    TinyBERT (Jiao et al. 2020, arXiv 1909.10351) compares maps head by head; where the numbers of
    heads differ, the mean map over heads is compared.
    """
    if student_BRLL.shape[1] != teacher_BRLL.shape[1]:
        student_BRLL, teacher_BRLL = (x.mean(1, keepdim=True) for x in (student_BRLL, teacher_BRLL))
    log_p, log_q = (x.clamp(min=1e-9).log() for x in (student_BRLL, teacher_BRLL))
    divergence_BRL = (teacher_BRLL * (log_q - log_p)).sum(-1)
    return _mean(divergence_BRL.mean(1), mask_BL)


def _relation(feature: Tensor, mask_BL: Tensor, heads: int) -> Tensor:
    split_BRLw = feature.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split_BRLw @ split_BRLw.transpose(-1, -2) * split_BRLw.shape[-1] ** -0.5
    # finite: -inf rows of padding would be NaN, and 0 * inf too
    scores = scores.masked_fill(mask_BL[:, None, None, :] == 0, -1e4)
    return torch.log_softmax(scores, dim=-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


class FeatureLoss(nn.Module):
    """The mean loss over pairs of modules, with a projector where their widths differ.

    The projectors learn with the student: register this module where the optimizer sees it, but
    outside the student, so that no export holds them.

    Args:
        pairs: student module name to teacher module name.
        kind: `mse`, `cosine`, `attention_transfer`, `relations` or `attention`.
        widths: (student, teacher) of each pair, in order.
        heads: of `relations`.
        seed: of the projectors' orthogonal start.

    Raises:
        BadInput: the kind is unknown, or there is no pair.
    """

    def __init__(
        self,
        *,
        pairs: Mapping[str, str],
        kind: str,
        widths: list[tuple[int, int]],
        heads: int = 1,
        seed: int = 0,
    ) -> None:
        """Makes the projectors."""
        super().__init__()
        if kind not in KINDS:
            raise BadInput(
                f"loss={kind!r} is unknown; use one of {KINDS}{did_you_mean(kind, KINDS)}"
            )
        if not pairs:
            raise BadInput("feature distillation needs at least one pair of modules")
        if EMBEDDING in pairs and kind.startswith("attention"):
            raise BadInput(f"loss={kind} compares positions; an embedding has none: use cosine")
        self.pairs, self.kind, self.heads = dict(pairs), kind, heads
        generator = torch.Generator().manual_seed(seed)
        self.projectors = nn.ModuleDict()
        for position, (ours, theirs) in enumerate(widths):
            if kind in PROJECTED and ours != theirs:
                layer = nn.Linear(ours, theirs, bias=False)
                nn.init.orthogonal_(layer.weight, generator=generator)
                self.projectors[str(position)] = layer

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask_BL: Tensor
    ) -> Tensor:
        """The mean over pairs, in fp32.

        Raises:
            BadInput: features of a pair have different positions or, unprojected, widths.
        """
        losses = []
        for position, (ours, theirs) in enumerate(self.pairs.items()):
            s, t = student[ours], teacher[theirs]
            if str(position) in self.projectors:
                s = self.projectors[str(position)](s)
            if ours == EMBEDDING:
                losses.append(self._compare_embeddings(s.float(), t.float()))
                continue
            self._check(ours, theirs, s, t, mask_BL)
            losses.append(self._compare(s.float(), t.float(), mask_BL.float()))
        return torch.stack(losses).mean()

    def _compare_embeddings(self, student_B1H: Tensor, teacher_B1T: Tensor) -> Tensor:
        if self.kind == "relations":  # of the batch's sequences to one another
            student_B1H, teacher_B1T = (x.transpose(0, 1) for x in (student_B1H, teacher_B1T))
        return self._compare(student_B1H, teacher_B1T, student_B1H.new_ones(student_B1H.shape[:2]))

    def _compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            if self.kind == "relations":
                return relations(student, teacher, mask_BL, heads=self.heads)
            kinds = {
                "mse": mse, "cosine": cosine, "attention": attention,
                "attention_transfer": attention_transfer,
            }  # fmt: skip
            return kinds[self.kind](student, teacher, mask_BL)

    def _check(self, ours: str, theirs: str, s: Tensor, t: Tensor, mask_BL: Tensor) -> None:
        if self.kind == "attention":
            same = s.dim() == t.dim() == 4 and s[:, 0].shape == t[:, 0].shape
            positions = (s.shape[0], s.shape[-1])
        else:
            same = s.shape == t.shape if self.kind in PROJECTED else s.shape[:2] == t.shape[:2]
            positions = tuple(s.shape[:2])  # type: ignore[assignment]
        if not same or positions != tuple(mask_BL.shape):
            raise BadInput(
                f"student {ours} gives {tuple(s.shape)}, teacher {theirs} gives {tuple(t.shape)} "
                f"for a batch of {tuple(mask_BL.shape)}: these cannot be compared by {self.kind}"
            )
