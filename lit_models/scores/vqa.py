"""The quality of answers and their known weaknesses: one metric, exact over any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class VQAScores(Metric):
    """Gathers every answer of an evaluation and computes all metrics at the end.

    ``compute`` returns, with A answers and K question types:

    - ``accuracy`` and ``accuracy_<type>``: mean score of the given answers (with hard targets: share that is right);
      types named ``<group>/<type>`` also get the group's ``accuracy_<group>``;
    - ``blind_accuracy``: the same for the language prior's answers, and ``gap_to_blind``: accuracy minus that; neither
      where the prior is not known;
    - repetitiveness: ``answer_entropy_ratio``, the entropy of the given answers over that of the true ones;
      ``top_answer_share``, the share of the most frequent answer; ``answer_kl``, the KL divergence in nats of the given
      from the true answers, per question type, averaged by the number of questions;
    - ``paired_consistency``: of all pairs of images with the same question and different true answers, the share where
      both are answered right (a blind model gets 0);
    - ``uncovered_share``: if some questions' true answer is none of the A, their share: nothing is right for them, and
      they are in none of the metrics that compare the given with the true answers;
    - if some are marked unseen: ``accuracy_seen``, ``accuracy_unseen``, ``gap_seen_unseen`` and the
      ``harmonic_mean`` of the first two.
    """

    full_state_update = False
    rows: list[Tensor]
    scores: list[Tensor]

    def __init__(self, question_types: Sequence[str], num_answers: int) -> None:
        super().__init__()
        self.question_types = list(question_types)
        self.num_answers = num_answers
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predicted: Tensor,
        answers: Tensor,
        question_types: Tensor,
        question_ids: Tensor,
        prior_answers: Tensor,
        unseen: Tensor,
    ) -> None:
        """Adds answers, all (Q,), as in ``VQABatch``; ``answers`` may be (Q, A) scores; the best is the truth."""
        truth = truth_of(answers)
        blind = score_of(prior_answers.clamp_min(0), answers).where(prior_answers >= 0, torch.nan)
        scores = [score_of(predicted, answers), blind]
        self.rows.append(torch.stack([predicted, truth, question_types, question_ids, unseen.long()], 1))
        self.scores.append(torch.stack(scores, 1))

    def compute(self) -> dict[str, Tensor]:
        _, truth, kinds, ids, unseen = dim_zero_cat(self.rows).unbind(1)
        scores, blind = dim_zero_cat(self.scores).double().unbind(1)
        result = {"accuracy": scores.mean()}
        groups: dict[str, list[Tensor]] = {}
        for i, kind in enumerate(self.question_types):
            members = kinds == i
            if members.any():
                result[f"accuracy_{kind.rpartition('/')[2]}"] = scores[members].mean()
            if "/" in kind and members.any():
                groups.setdefault(kind.partition("/")[0], []).append(scores[members])
        result |= {f"accuracy_{group}": torch.cat(parts).mean() for group, parts in groups.items()}
        if not blind.isnan().any():
            result["blind_accuracy"] = blind.mean()
            result["gap_to_blind"] = scores.mean() - blind.mean()

        confusions = self.confusions().double()
        true, given = confusions.sum(2), confusions.sum(1)  # (K, A): how often under each type
        result["answer_entropy_ratio"] = entropy(given.sum(0)) / entropy(true.sum(0))
        result["top_answer_share"] = given.sum(0).max() / given.sum()
        result["answer_kl"] = (kl_divergence(given, true) * given.sum(1)).sum() / given.sum()
        covered = truth >= 0
        result["paired_consistency"] = paired_consistency(ids[covered], truth[covered], scores[covered] >= 0.5)
        if not covered.all():
            result["uncovered_share"] = 1 - covered.double().mean()
        if unseen.any() and not unseen.all():
            new = unseen.bool()
            seen_accuracy, unseen_accuracy = scores[~new].mean(), scores[new].mean()
            result["accuracy_seen"], result["accuracy_unseen"] = seen_accuracy, unseen_accuracy
            result["gap_seen_unseen"] = seen_accuracy - unseen_accuracy
            total = (seen_accuracy + unseen_accuracy).clamp_min(1e-12)
            result["harmonic_mean"] = 2 * seen_accuracy * unseen_accuracy / total
        return {name: value.float() for name, value in result.items()}

    def confusions(self) -> Tensor:
        """(K, A, A): for each question type, how often each answer (column) was given for each true answer (row)."""
        rows = dim_zero_cat(self.rows)
        predicted, truth, kinds, *_ = rows[rows[:, 1] >= 0].unbind(1)
        kinds_count, n = len(self.question_types), self.num_answers
        cells = torch.bincount((kinds * n + truth) * n + predicted, minlength=kinds_count * n * n)
        return cells.view(kinds_count, n, n)


def truth_of(answers: Tensor) -> Tensor:
    """(Q,) the true answer of hard (Q,) or soft (Q, A) targets; of the latter the best, or -1 if none is right."""
    if answers.dim() == 1:
        return answers
    best, truth = answers.max(1)
    return truth.where(best > 0, -1)


def score_of(chosen: Tensor, answers: Tensor) -> Tensor:
    """(Q,) float: the score of each chosen answer against hard (Q,) or soft (Q, A) targets."""
    if answers.dim() == 1:
        return (chosen == answers).float()
    return answers.gather(1, chosen[:, None])[:, 0].float()


def entropy(counts: Tensor) -> Tensor:
    """The entropy in nats of the distribution given by ``counts`` (…, A), with 0·log 0 = 0."""
    p = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    output: Tensor = -torch.special.xlogy(p, p).sum(-1)
    return output


def kl_divergence(given: Tensor, true: Tensor) -> Tensor:
    """KL(given ‖ true) in nats along the last axis of counts; ½ is added to each true count to keep it finite."""
    p = given / given.sum(-1, keepdim=True).clamp_min(1)
    smoothed = true + 0.5
    q = smoothed / smoothed.sum(-1, keepdim=True)
    output: Tensor = torch.special.xlogy(p, p / q).sum(-1)
    return output


def paired_consistency(ids: Tensor, truth: Tensor, right: Tensor) -> Tensor:
    """Share of the pairs with equal ``ids`` (Q,) and different ``truth`` (Q,) that are both ``right`` (Q,).

    They are counted without forming the pairs: with n_a questions of true answer a among those with the same words, the
    number of pairs that differ in their answer is ½((Σ n_a)² − Σ n_a²). NaN if there is no pair.
    """
    if not len(ids):
        return torch.tensor(torch.nan, dtype=torch.double)
    cells, cell = torch.stack([ids, truth], 1).unique(dim=0, return_inverse=True)
    _, group = cells[:, 0].unique(return_inverse=True)
    pairs = []
    for weight in (torch.ones_like(right, dtype=torch.double), right.double()):
        per_cell = torch.zeros(len(cells), dtype=torch.double, device=ids.device).index_add_(0, cell, weight)
        per_group = torch.zeros(int(group.max()) + 1, dtype=torch.double, device=ids.device)
        per_group = per_group.index_add_(0, group, per_cell)
        pairs.append(per_group.square().sum() - per_cell.square().sum())
    return pairs[1] / pairs[0]
