"""Retrieval of sentences by generated images, against a loop over all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_models.scores.generation import frechet_distance
from lit_models.scores.sentence_retrieval import SentenceRetrieval, retrieved


def test_every_sentence_of_another_image_counts_once() -> None:
    torch.manual_seed(0)
    images = torch.tensor([0, 0, 1, 2, 2, 3])
    sentences, made = torch.randn(6, 4), torch.randn(6, 4)
    sentences[5] = sentences[1]
    right, chance = [], []
    for i in range(6):
        others = [
            sentences[j] for j in range(6) if images[j] != images[i] and not torch.equal(sentences[j], sentences[i])
        ]
        own = F.cosine_similarity(made[i], sentences[i], dim=0)
        right.append(all(F.cosine_similarity(made[i], other, dim=0) < own for other in others))
        chance.append(1 / (1 + len(others)))
    share, by_chance = retrieved(made, sentences, images, others=5)
    assert share == pytest.approx(sum(right) / 6)
    assert by_chance == pytest.approx(sum(chance) / 6)
    assert retrieved(sentences, sentences, images, others=5)[0] == 1


def test_the_metric_depends_on_no_batches_or_ranks() -> None:
    torch.manual_seed(0)
    images = torch.arange(30) // 2
    parts = [torch.randn(30, 8) for _ in range(3)]
    parts[1] = parts[1][images * 2]  # one of each image
    whole, other = SentenceRetrieval(), SentenceRetrieval()
    whole.update(images, *parts)
    for rows in (torch.arange(14, 30), torch.arange(0, 6), torch.arange(6, 14)):
        other.update(images[rows], *(part[rows] for part in parts))
    expected = whole.compute()
    assert {name: float(value) for name, value in other.compute().items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    assert expected["frechet_distance"] == pytest.approx(float(frechet_distance(parts[1][::2], parts[2])), rel=1e-5)
    assert expected["r_precision_chance"] == pytest.approx(1 / 29)
