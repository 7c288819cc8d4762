"""VQAScores against naive loops."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import combinations
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lit_models.scores.vqa import VQAScores, entropy, kl_divergence, paired_consistency, score_of, truth_of
from tests.two_ranks import on_two_ranks

TYPES = ["color", "rel/near", "rel/far", "flat/one"]
ANSWERS = 5


class Given(NamedTuple):
    predicted: Tensor
    answers: Tensor
    question_types: Tensor
    question_ids: Tensor
    prior_answers: Tensor
    unseen: Tensor


def made_up(count: int = 300, soft: bool = False, seed: int = 0, types: int = 4) -> Given:
    """Random predictions that are right more often than by chance."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    truth = (draw(ANSWERS) * draw(ANSWERS)) % ANSWERS
    predicted = torch.where(draw(3) > 0, truth, draw(3))
    answers = truth
    if soft:
        answers = torch.rand(count, ANSWERS, generator=generator).round(decimals=1) * 0.7
        answers[torch.arange(count), truth] = 0.9
    return Given(predicted, answers, draw(types), draw(12), draw(2), draw(4) == 0)


def scores_of(given: Given, batches: int = 4) -> dict[str, float]:
    metric = VQAScores(TYPES, ANSWERS)
    for parts in zip(*(field.chunk(batches) for field in given), strict=True):
        metric.update(*parts)
    return {name: float(value) for name, value in metric.compute().items()}


def naive(given: Given) -> dict[str, float]:
    """The same figures, one question after the other."""
    soft = given.answers.dim() == 2
    rows = []
    for i in range(len(given.predicted)):
        said, prior = int(given.predicted[i]), int(given.prior_answers[i])
        if soft:
            row = given.answers[i].tolist()
            truth, score, blind = row.index(max(row)), row[said], row[prior]
        else:
            truth = int(given.answers[i])
            score, blind = float(said == truth), float(prior == truth)
        kind = TYPES[int(given.question_types[i])]
        rows.append((said, truth, score, blind, kind, int(given.question_ids[i]), bool(given.unseen[i])))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    result = {"accuracy": mean([row[2] for row in rows]), "blind_accuracy": mean([row[3] for row in rows])}
    result["gap_to_blind"] = result["accuracy"] - result["blind_accuracy"]
    of_type, of_group = defaultdict(list), defaultdict(list)
    for row in rows:
        of_type[row[4].split("/")[-1]].append(row[2])
        if "/" in row[4]:
            of_group[row[4].split("/")[0]].append(row[2])
    result |= {f"accuracy_{name}": mean(values) for name, values in [*of_type.items(), *of_group.items()]}

    def surprise(counts: Counter[int]) -> float:
        return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())

    said, true = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
    result["answer_entropy_ratio"] = surprise(said) / surprise(true)
    result["top_answer_share"] = max(said.values()) / len(rows)
    divergence = 0.0
    for kind in TYPES:
        members = [row for row in rows if row[4] == kind]
        for answer in range(ANSWERS):
            p = sum(row[0] == answer for row in members) / max(1, len(members))
            q = (sum(row[1] == answer for row in members) + 0.5) / (len(members) + 0.5 * ANSWERS)
            if p:
                divergence += len(members) / len(rows) * p * math.log(p / q)
    result["answer_kl"] = divergence
    pairs = [(a, b) for a, b in combinations(rows, 2) if a[5] == b[5] and a[1] != b[1]]
    result["paired_consistency"] = mean([float(a[2] >= 0.5 and b[2] >= 0.5) for a, b in pairs])
    seen, unseen = ([row[2] for row in rows if row[6] is new] for new in (False, True))
    if seen and unseen:
        result["accuracy_seen"], result["accuracy_unseen"] = mean(seen), mean(unseen)
        result["gap_seen_unseen"] = mean(seen) - mean(unseen)
        result["harmonic_mean"] = 2 / (1 / mean(seen) + 1 / mean(unseen))
    return result


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_all_figures_equal_naive_loops(soft: bool, seed: int) -> None:
    given = made_up(soft=soft, seed=seed)
    expected = naive(given)
    assert scores_of(given) == pytest.approx(expected, abs=1e-6)
    assert {"accuracy_color", "accuracy_near", "accuracy_far", "accuracy_rel", "accuracy_flat"} <= set(expected)


def test_order_and_size_of_batches_do_not_matter() -> None:
    given = made_up()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    expected = scores_of(given)
    assert scores_of(Given(*(field[order] for field in given)), batches=7) == pytest.approx(expected, abs=1e-6)
    assert scores_of(given, batches=1) == pytest.approx(expected, abs=1e-6)


def test_hard_answers_equal_soft_ones_that_are_certain() -> None:
    given = made_up()
    certain = given._replace(answers=torch.eye(ANSWERS)[given.answers])
    assert scores_of(certain) == pytest.approx(scores_of(given), abs=1e-6)


def test_unseen_figures_come_only_where_there_are_both() -> None:
    given = made_up()
    for value in (True, False):
        scores = scores_of(given._replace(unseen=torch.full_like(given.unseen, value)))
        assert not {"accuracy_seen", "accuracy_unseen", "gap_seen_unseen", "harmonic_mean"} & set(scores)
    nothing_right = given._replace(predicted=(given.answers + 1) % ANSWERS)
    assert scores_of(nothing_right)["harmonic_mean"] == 0


def test_a_type_without_a_question_has_no_figure() -> None:
    scores = scores_of(made_up(types=3))
    assert "accuracy_one" not in scores
    assert "accuracy_flat" not in scores


def test_reset_forgets() -> None:
    metric = VQAScores(TYPES, ANSWERS)
    metric.update(*made_up(seed=1))
    metric.reset()
    given = made_up(seed=2)
    metric.update(*given)
    assert float(metric.compute()["accuracy"]) == pytest.approx(naive(given)["accuracy"])
    assert int(metric.confusions().sum()) == 300


def test_confusions_count_true_rows_and_given_columns() -> None:
    given = made_up()
    metric = VQAScores(TYPES, ANSWERS)
    metric.update(*given)
    expected = torch.zeros(len(TYPES), ANSWERS, ANSWERS, dtype=torch.long)
    for said, true, kind in zip(given.predicted, given.answers, given.question_types, strict=True):
        expected[kind, true, said] += 1
    assert torch.equal(metric.confusions(), expected)


def test_one_answer_to_everything_has_no_entropy_and_all_of_the_share() -> None:
    given = made_up()
    scores = scores_of(given._replace(predicted=torch.zeros_like(given.predicted)))
    assert scores["answer_entropy_ratio"] == 0
    assert scores["top_answer_share"] == 1
    # Words alone give equal words equal answers, of which at most one of a differing pair is right.
    assert scores["paired_consistency"] == 0
    assert scores_of(given._replace(predicted=given.answers))["paired_consistency"] == 1
    assert scores_of(given._replace(predicted=given.answers))["answer_entropy_ratio"] == pytest.approx(1)


def test_paired_consistency_without_a_pair_is_not_a_number() -> None:
    ids, truth, right = torch.tensor([0, 0, 1]), torch.tensor([2, 2, 0]), torch.tensor([True, True, True])
    assert paired_consistency(ids, truth, right).isnan()


def test_paired_consistency_of_a_handful_by_hand() -> None:
    # Question 7: answers 0, 0, 1, 2, of which the second is wrong: pairs 02, 03, 12, 13, 23; right 02, 03, 23.
    # Question 9: answers 0, 1: right.
    ids = torch.tensor([7, 9, 7, 7, 9, 7])
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    right = torch.tensor([True, True, False, True, True, True])
    assert float(paired_consistency(ids, truth, right)) == pytest.approx(4 / 6)


def test_entropy_and_divergence_of_known_counts() -> None:
    assert float(entropy(torch.tensor([3.0, 3.0, 0.0]))) == pytest.approx(math.log(2))
    assert entropy(torch.tensor([[4.0, 0.0], [1.0, 1.0]])).tolist() == pytest.approx([0, math.log(2)])
    same = torch.tensor([1e6, 3e6])
    assert float(kl_divergence(same, same)) == pytest.approx(0, abs=1e-5)
    # Given is all of the first; true counts 0 and 1 become ½ and 1½.
    assert float(kl_divergence(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 1.0]))) == pytest.approx(math.log(4))


def test_score_is_the_chosen_answers() -> None:
    chosen = torch.tensor([1, 0])
    assert score_of(chosen, torch.tensor([1, 1])).tolist() == [1, 0]
    assert score_of(chosen, torch.tensor([[0, 0.25, 1], [0.5, 0, 1]])).tolist() == [0.25, 0.5]


# Two ranks.

SPLITS = {"equal": [[0, 2, 4, 6], [1, 3, 5, 7]], "unequal": [[0, 1, 2, 3, 4], [5, 6, 7]]}
"""which of eight answers each of two ranks has"""


def score_input() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    fields = [torch.randint(high, (8,), generator=generator) for high in (3, 3, 2, 2, 3, 2)]
    return [*fields[:5], fields[5].bool()]


def scores_on_a_rank(members: list[list[int]]) -> dict[str, float]:
    scores = VQAScores(["a", "b"], 3)
    scores.update(*[field[members[dist.get_rank()]] for field in score_input()])
    return {name: float(value) for name, value in scores.compute().items()}


@pytest.mark.parametrize("split", SPLITS)
def test_scores_on_two_ranks_are_those_of_all_answers(split: str) -> None:
    whole = VQAScores(["a", "b"], 3)
    whole.update(*score_input())
    expected = {name: float(value) for name, value in whole.compute().items()}
    assert "harmonic_mean" in expected
    for found in on_two_ranks(scores_on_a_rank, SPLITS[split]):
        assert found == pytest.approx(expected, nan_ok=True)


def test_questions_without_a_true_answer_are_counted_and_kept_out_of_comparisons() -> None:
    given = made_up(60, soft=True, seed=3)
    answers = given.answers.clone()
    answers[::4] = 0  # what is right is none of the answers
    assert truth_of(answers)[::4].tolist() == [-1] * 15
    scores = VQAScores(TYPES, answers.shape[1])
    scores.update(*given._replace(answers=answers))
    found = scores.compute()
    assert float(found["uncovered_share"]) == pytest.approx(0.25)
    kept = torch.ones(60, dtype=torch.bool)
    kept[::4] = False
    others = VQAScores(TYPES, answers.shape[1])
    others.update(*(field[kept] for field in given))
    expected = others.compute()
    assert "uncovered_share" not in expected
    assert float(found["accuracy"]) == pytest.approx(0.75 * float(expected["accuracy"]))  # nothing is right for them
    for name in ("answer_entropy_ratio", "answer_kl", "paired_consistency", "top_answer_share"):
        assert float(found[name]) == pytest.approx(float(expected[name]), nan_ok=True)
    assert torch.equal(scores.confusions(), others.confusions())
