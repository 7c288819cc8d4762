"""The figures of captions against naive loops, and CIDEr-D against the values of its authors' code."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from torchmetrics.functional.text import bleu_score

from lit_models.scores.captions import CaptionScores, bleu, cider_d, distinct, fingerprints, self_bleu

REFERENCES = [
    ["a red circle left of a blue square", "there is a red circle and a blue square", "two objects"],
    ["a small green triangle", "the triangle is green"],
    ["a red square above a red circle", "two red objects , a circle and a square"],
]
SAID = ["a red circle and a blue square", "a green triangle", "a red circle above a red square"]
VOCAB = ["<pad>", "<unk>", *sorted({word for texts in [*REFERENCES, SAID] for text in texts for word in text.split()})]

Words = tuple[int, ...]


def ids(text: str) -> Words:
    return tuple(VOCAB.index(word) for word in text.split())


def scores_of(
    said: list[str],
    references: list[list[str]],
    judgments: list[list[int]] | None = None,
    novel: list[int] | None = None,
    unseen: list[bool] | None = None,
    batches: int = 2,
) -> dict[str, float]:
    """The figures of captions that come in several batches."""
    metric = CaptionScores(VOCAB)
    facts = torch.tensor(judgments or [[-1] * 5] * len(said))
    new, hidden = torch.tensor(novel or [-1] * len(said)), torch.tensor(unseen or [False] * len(said))
    for rows in torch.arange(len(said)).chunk(batches):
        some = rows.tolist()
        others = [[ids(text) for text in references[i]] for i in some]
        metric.update([ids(said[i]) for i in some], others, facts[rows], new[rows], hidden[rows])
    return {name: float(value) for name, value in metric.compute().items()}


def some_sentences(count: int, seed: int, most: int = 9) -> list[Words]:
    """Of four words, so that many runs of words are shared."""
    draw = random.Random(seed)
    return [tuple(draw.randint(2, 5) for _ in range(draw.randint(1, most))) for _ in range(count)]


# CIDEr-D.


def test_cider_d_is_that_of_its_authors_code() -> None:
    said, references = [ids(text) for text in SAID], [[ids(text) for text in texts] for texts in REFERENCES]
    # As pycocoevalcap 1.2 gives it, which is the authors' code.
    assert cider_d(said, references) == pytest.approx([3.69505398, 2.49425769, 3.07189586], rel=1e-7)


def test_cider_d_of_one_of_the_references_is_largest_and_of_nothing_shared_is_zero() -> None:
    references = [[(2, 3, 4, 5, 6)], [(7, 8, 9, 10)]]
    assert cider_d([(2, 3, 4, 5, 6), (2, 3, 4, 5)], references) == pytest.approx([10, 0])


def test_cider_d_clips_repetition_and_punishes_another_length() -> None:
    references = [[(2, 3, 4, 5)], [(7, 8, 9, 10)]]
    exact, repeated, longer = (
        cider_d([said, (7,)], references)[0] for said in [(2, 3, 4, 5), (2,) * 4, (2, 3, 4, 5) * 3]
    )
    # Of four times one of four words: the vectors' cosine of the unigrams alone, with the count clipped to 1.
    assert repeated == pytest.approx(10 / 4 * (1 * 1) / (4 * 2))
    assert longer < exact * math.exp(-(8**2) / (2 * 6**2)) + 1e-9


def test_cider_d_of_a_single_image_is_zero() -> None:
    assert cider_d([(2, 3)], [[(2, 3)]]) == [0]  # each word is in every image's references and says nothing


def test_empty_captions_score_nothing() -> None:
    assert cider_d([(), (2,)], [[(2, 3)], [(2,)]])[0] == 0


# Variation.


def test_distinct_counts_different_runs_over_all_runs() -> None:
    said = [(2, 3, 2), (2, 3), (4,)]
    assert distinct(said, 1) == pytest.approx(3 / 6)
    assert distinct(said, 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct([(2,)], 2))


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_equals_a_naive_loop(seed: int) -> None:
    said = some_sentences(12, seed)
    product = 1.0
    for n in range(1, 5):
        matched = total = 0
        for i, sentence in enumerate(said):
            own = Counter(sentence[k : k + n] for k in range(len(sentence) - n + 1))
            for gram, count in own.items():
                most = max(
                    sum(other[k : k + n] == gram for k in range(len(other) - n + 1))
                    for j, other in enumerate(said)
                    if j != i
                )
                matched += min(count, most)
                total += count
        product *= (matched / total) ** 0.25
    assert self_bleu(said) == pytest.approx(product)


def test_self_bleu_tells_repetition_from_variation() -> None:
    assert self_bleu([(2, 3, 4, 5, 6)] * 3) == pytest.approx(1)
    assert self_bleu([(2, 3, 4, 5), (6, 7, 8, 9)]) == 0
    assert math.isnan(self_bleu([(2, 3), (2, 3)]))  # no run of four words


def test_fingerprints_tell_sentences_apart_and_do_not_see_padding() -> None:
    rows = torch.tensor([[2, 3, 4], [4, 3, 2], [2, 3, 0], [3, 2, 0], [2, 4, 3]])
    found = fingerprints(rows)
    assert len(found.unique()) == 5
    assert torch.equal(fingerprints(torch.nn.functional.pad(rows, (0, 4))), found)
    many = {sentence for sentence in some_sentences(5000, 0)}
    padded = torch.tensor([[*sentence, *[0] * (9 - len(sentence))] for sentence in many])
    assert len(fingerprints(padded).unique()) == len(many)


def test_of_two_references_equally_near_the_shorter_counts() -> None:
    """As in coco-caption, so that the order of references does not matter."""
    said = [tuple(range(6))] * 20
    references = [[(0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4)]] * 20
    for order in (references, [sentences[::-1] for sentences in references]):
        found = bleu(said, order)
        assert found["bleu_1"] == pytest.approx(1)
        assert found["bleu_4"] == pytest.approx(1)


# The metric.


def test_bleu_is_that_of_torchmetrics_on_the_words() -> None:
    scores = scores_of(SAID, REFERENCES)
    for n in (1, 2, 3, 4):
        assert scores[f"bleu_{n}"] == pytest.approx(float(bleu_score(SAID, REFERENCES, n_gram=n)))
    assert scores["bleu_1"] > scores["bleu_2"] > scores["bleu_3"] > 0


@pytest.mark.parametrize("batches", [1, 3])
def test_figures_of_a_whole_evaluation(batches: int) -> None:
    said = [*SAID, "two objects"]
    references = [*REFERENCES, ["two objects", "a circle"]]
    scores = scores_of(said, references, novel=[1, 0, 1, 1], batches=batches)
    each = cider_d([ids(text) for text in said], [[ids(text) for text in texts] for texts in references])
    assert scores["cider_d"] == pytest.approx(sum(each) / 4)
    assert scores["exact_match"] == 0.25
    assert scores["unique_share"] == 1
    assert scores["novel_share"] == 0.75
    assert scores["length"] == (7 + 3 + 7 + 2) / 4
    assert scores["distinct_1"] == pytest.approx(distinct([ids(text) for text in said], 1))
    known = {word for texts in references for text in texts for word in text.split()}
    spoken = {word for text in said for word in text.split()}
    assert scores["vocabulary_coverage"] == pytest.approx(len(spoken & known) / len(known))
    # Lengths 7, 3, 7, 2 have the median 3 (the lower of two).
    assert scores["cider_d_short"] == pytest.approx((each[1] + each[3]) / 2)
    assert scores["cider_d_long"] == pytest.approx((each[0] + each[2]) / 2)
    assert not [name for name in scores if "truthful" in name or "seen" in name]


def test_equal_captions_are_neither_unique_nor_varied() -> None:
    scores = scores_of(["a red circle left of a square"] * 3, REFERENCES)
    assert scores["unique_share"] == pytest.approx(1 / 3)
    assert scores["self_bleu"] == pytest.approx(1)
    assert scores["distinct_2"] == pytest.approx(6 / 18)
    assert "novel_share" not in scores


def test_a_caption_is_truthful_if_it_states_something_and_nothing_untrue() -> None:
    judgments = [
        [2, 2, 3, 8, 1],  # truthful
        [2, 1, 2, 8, 1],  # half of it is true
        [0, 0, 0, 4, 1],  # states nothing
        [0, 0, 0, 4, 0],  # was not understood
    ]
    said = [SAID[0], SAID[1], SAID[2], "two objects"]  # 7, 3, 7 and 2 words
    scores = scores_of(said, [*REFERENCES, ["a circle"]], judgments, unseen=[True, False, True, False])
    assert scores["truthful"] == 0.25
    assert scores["parsed"] == 0.75
    assert scores["facts_true"] == 3 / 4
    assert scores["coverage"] == pytest.approx(5 / 24)
    assert scores["truthful_long"] == 0.5
    assert scores["truthful_short"] == 0
    assert scores["truthful_unseen"] == 0.5
    assert scores["truthful_seen"] == 0
    assert scores["gap_seen_unseen"] == -0.5
    assert scores["harmonic_mean"] == 0
    assert scores["coverage_unseen"] == pytest.approx(3 / 12)
    assert scores["coverage_seen"] == pytest.approx(2 / 12)


def test_harmonic_mean_of_seen_and_unseen() -> None:
    right, wrong = [1, 1, 1, 4, 1], [1, 0, 0, 4, 1]
    said = [SAID[0]] * 5
    references = [[SAID[0]]] * 5
    scores = scores_of(said, references, [right, right, right, wrong, right], unseen=[True, False, True, True, False])
    assert scores["harmonic_mean"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert scores["gap_seen_unseen"] == pytest.approx(1 / 3)


def test_scores_by_length() -> None:
    metric = CaptionScores(VOCAB)
    others = [[ids(text) for text in texts] for texts in REFERENCES]
    judgments = torch.tensor([[1, 1, 1, 4, 1], [1, 0, 0, 4, 1], [1, 0, 0, 4, 1]])
    metric.update([ids(text) for text in SAID], others, judgments, torch.tensor([-1] * 3), torch.zeros(3).bool())
    each = cider_d([ids(text) for text in SAID], others)
    metric.compute()
    assert metric.by_length == {
        3: (1, pytest.approx(each[1]), 0),
        7: (2, pytest.approx((each[0] + each[2]) / 2), 0.5),
    }


def test_an_image_without_words_said_and_a_batch_of_one() -> None:
    scores = scores_of([""], [["a red circle"]], batches=1)
    assert scores["bleu_1"] == scores["cider_d"] == scores["exact_match"] == scores["length"] == 0
    assert math.isnan(scores["distinct_1"])
