"""Claims about comparing encoders by the embeddings they give."""

import pytest
import torch
from torchmetrics.functional.regression import spearman_corrcoef

from compress.errors import BadInput
from compress.evaluate import embed
from compress.evaluate.embed import embedding_agreement, embeddings_of, spearman
from compress.models import trace_embedding
from tests.callbacks.test_encoders import bert, rows


def drawn(count=12, width=6, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_an_encoder_agrees_with_itself_whatever_the_scale():
    found = embedding_agreement(3.0 * drawn(), drawn())
    assert found.cosine == pytest.approx(1) and found.spearman == pytest.approx(1)
    assert found.neighbours == 1.0 and (found.sequences, found.ranked) == (12, 12)


def test_sequences_beyond_those_that_are_ranked_are_told(monkeypatch):
    monkeypatch.setattr(embed, "MOST_ROWS", 8)
    ours = drawn()
    ours[8:] *= -1
    found = embedding_agreement(ours, drawn())
    assert (found.sequences, found.ranked) == (12, 8) and len(found.same_neighbour) == 8
    assert found.spearman == pytest.approx(1) and found.cosine == pytest.approx(1 / 3)
    assert found.figures()["ranked"] == 8


def test_a_rotation_keeps_the_ranking_and_loses_the_cosine():
    turn = torch.linalg.qr(drawn(6, 6, seed=1)).Q
    found = embedding_agreement(drawn() @ turn, drawn())
    assert found.spearman == pytest.approx(1, abs=1e-3) and found.neighbours == 1.0
    assert found.cosine < 0.9


def test_unequal_widths_are_compared_by_ranking_alone():
    found = embedding_agreement(drawn(width=4), drawn())
    assert found.cosine is None and set(found.figures()) == {"spearman", "neighbours", "ranked"}
    assert found.spearman < 0.9


def test_ranks_are_torchmetrics_equal_values_included():
    one, other = torch.tensor([1.0, 2, 2, 3, 0]), torch.tensor([5.0, 5, 7, 7, 1])
    assert spearman(one, other) == pytest.approx(spearman_corrcoef(one, other).item(), abs=1e-6)


def test_embeddings_are_means_over_the_tokens_that_are_no_padding():
    from transformers import BertModel

    model = bert(BertModel).eval()
    few = rows(6)
    batch = {key: torch.stack([row[key] for row in few]) for key in few[0]}
    found = embeddings_of(model, [batch])
    short = {key: batch[key][:1, :12] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        alone = trace_embedding(model, short).hidden_BLH[0, 0]
    torch.testing.assert_close(found[0], alone, rtol=1e-4, atol=1e-5)


def test_too_few_or_unequal_rows_are_refused():
    with pytest.raises(BadInput, match="three or more"):
        embedding_agreement(drawn(2), drawn(2))
    with pytest.raises(BadInput, match="the same"):
        embedding_agreement(drawn(4), drawn(5))
    with pytest.raises(BadInput, match="no sequence"):
        embeddings_of(bert(), [])
