"""One update: who survives, who comes back, and who stands because nothing is known of it."""

import torch

from compress.sparsify.growth import regrow
from compress.sparsify.masks import Pattern


def test_a_tensor_without_scores_stands_while_the_others_exchange():
    magnitudes = [torch.tensor([5.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 2.0, 0.0, 0.0])]
    alive = [m > 0 for m in magnitudes]
    standing, moved = regrow(
        Pattern.parse("unstructured"), magnitudes=magnitudes, alive=alive,
        growth_scores=[None, torch.tensor([0.0, 0.0, 0.0, 9.0])], density=0.5, share=0.5,
    )  # fmt: skip
    assert standing.equal(alive[0])
    assert moved.tolist() == [True, False, False, True]


def test_a_tensor_without_scores_is_pruned_where_the_density_falls():
    magnitudes = [torch.tensor([5.0, 4.0, 1.0, 0.0])]
    alive = [m > 0 for m in magnitudes]
    (mask,) = regrow(
        Pattern.parse("unstructured"), magnitudes=magnitudes, alive=alive,
        growth_scores=[None], density=0.5, share=0.5,
    )  # fmt: skip
    assert mask.tolist() == [True, True, False, False]
