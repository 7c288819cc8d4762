"""How good a representation is, by the same yardstick for every technique: features (N, D) in, a few numbers out.

Pure functions of tensors, on whatever device they are. What the numbers mean is best seen beside those of a
representation that learned nothing: the pixels, their principal components, an encoder with random weights, which
``configs/representations/`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import at_least, more_than
from common.decompositions import MOST, gram, refuse_large

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""penalties of the linear probe's weights, added to the *mean* loss; validation chooses among them"""
FRACTIONS = {"1pct": 0.01, "10pct": 0.1}
"""shares of the training labels on which a probe is fitted too"""
BLOCK = 2**22
"""numbers in a block of similarities: 16 MB of reused memory; larger blocks take a CPU twice as long"""
MOST_COMPARED = 10_000
"""features that are compared pair by pair; if there are more, this many evenly spaced ones are used"""


# ---- accuracy --------------------------------------------------------------------------------------------------------


def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """The class voted for by the k most similar features in the bank: Wu et al. 2018, section 3.4.

    A neighbor with cosine similarity s has exp(s / temperature) votes.

    Args:
        bank, labels: features (N, D) and their classes (N,).
        queries: features (M, D).
        k: number of neighbors; all of them if the bank has fewer.

    Returns:
        (M,) classes.
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    predicted = []
    for block in queries.split(max(1, BLOCK // len(bank))):
        similarity, nearest = (block @ bank.T).topk(min(k, len(bank)), sorted=False)
        # The largest is taken out, which changes no decision, so that a small temperature does not overflow.
        votes = ((similarity - similarity.amax(1, keepdim=True)) / temperature).double().exp()
        scores = votes.new_zeros(len(block), num_classes).scatter_add_(1, labels[nearest], votes)
        predicted.append(scores.argmax(1))
    return torch.cat(predicted)


class LinearProbe(NamedTuple):
    """A linear classifier of standardized features: scores x W + b."""

    weight: Tensor
    """(D, K) float64"""
    bias: Tensor
    """(K,) float64"""

    def predict(self, features: Tensor) -> Tensor:
        """Standardized features (N, D) float64 → classes (N,)."""
        return (features @ self.weight + self.bias).argmax(1)


def fit_linear_probes(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> Iterator[LinearProbe]:
    """Multinomial logistic regression by full-batch L-BFGS, for each penalty λ starting where the previous one ended.

        mean cross-entropy + λ/2 ‖W‖²        (scikit-learn's C = 1 / (λ N); the bias costs nothing)

    Deterministic, and without autograd, which ``inference_mode`` turns off. Needs about 16 N D bytes, and 24 of the
    square of N or D, whichever is less.

    Args:
        features: (N, D), standardized. If they are float32, so are the large products, which halves the time; all else
            is float64.
        labels: (N,), each below ``num_classes``.
        tolerance: largest element of the gradient, in the coordinates below, at which it has converged; the default
            is as in scikit-learn.

    Raises:
        ValueError: N and D are both more than :data:`common.decompositions.MOST`.
    """
    if len(features) < features.shape[1]:
        yield from _fit_in_their_span(features, labels, num_classes, penalties, tolerance, max_iterations)
        return
    refuse_large("a linear probe", *features.shape)
    # L-BFGS takes long over features of very unequal spread. Along an eigenvector of their covariance the curvature is
    # at most about s/4 + λ, so in coordinates V with W = U diag(s/4 + λ)^-½ V it is at most about 1, and a third of the
    # steps suffice. The minimum is the same.
    spread, basis = torch.linalg.eigh((features.T @ features).double() / len(features))
    # The scores of the true classes are linear in W and b, so that their mean needs the features only once. Classes are
    # rows: along short rows PyTorch's softmax is slow.
    true = F.one_hot(labels, num_classes).T.to(features.dtype)
    true_mean, share = (true @ features).T.double() / len(labels), true.mean(1).double()
    weight, bias = torch.zeros_like(true_mean), torch.zeros_like(share)
    for penalty in penalties:
        root = (spread.clamp(min=0) / 4 + penalty).sqrt()[:, None]
        coordinates = root * (basis.T @ weight)

        def loss_and_gradient(
            root: Tensor = root, coordinates: Tensor = coordinates, penalty: float = penalty
        ) -> float:
            weight = basis @ (coordinates / root)
            scores = torch.addmm(bias.to(features.dtype)[:, None], weight.T.to(features.dtype), features.T)  # (K, N)
            total = scores.logsumexp(0)
            loss = total.mean(dtype=torch.double) - (weight * true_mean).sum() - bias @ share
            p = scores.sub_(total).exp_()
            gradient = (p @ features).T.double() / len(labels) - true_mean + penalty * weight
            coordinates.grad = basis.T @ gradient / root
            bias.grad = p.mean(1, dtype=torch.double) - share
            return float(loss + 0.5 * penalty * weight.square().sum())

        torch.optim.LBFGS(
            [coordinates, bias],
            max_iter=max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        ).step(loss_and_gradient)
        weight = basis @ (coordinates / root)
        yield LinearProbe(weight, bias.clone())


def _fit_in_their_span(features: Tensor, labels: Tensor, num_classes: int, *options: Any) -> Iterator[LinearProbe]:
    """:func:`fit_linear_probes` of fewer features N than dimensions D.

    The penalty leaves nothing in W that is orthogonal to all features, X = U S Vᵀ: so W = V W′, and W′ is fitted to the
    N coordinates U S, which have the same products.
    """
    refuse_large("a linear probe", *features.shape)
    squares, left = torch.linalg.eigh(gram(features))
    there = squares > 1e-12 * squares[-1]  # the rest is rounding
    singular, left = squares[there].sqrt(), left[:, there]
    if not len(singular):  # all features are 0
        singular, left = squares.new_ones(1), squares.new_zeros(len(features), 1)
    for probe in fit_linear_probes(left * singular, labels, num_classes, *options):
        weight = probe.weight.new_empty(features.shape[1], num_classes)
        of_rows = left @ (probe.weight / singular[:, None])
        step = max(1, BLOCK // len(features))
        for place, block in zip(weight.split(step), features.split(step, 1), strict=True):
            torch.mm(block.double().T, of_rows, out=place)
        yield LinearProbe(weight, probe.bias)


def standardize(bank: Tensor, *others: Tensor) -> list[Tensor]:
    """Each dimension minus the bank's mean, divided by its deviation, in float64; constant dimensions become 0."""
    mean = bank.mean(0, dtype=torch.double)
    deviation = bank.double().sub_(mean).square_().mean(0).sqrt_()
    # What is left of a constant in float32 is rounding, not a feature.
    varies = deviation > 1e-6 * mean.abs()
    scale = torch.where(varies, 1 / deviation, torch.zeros_like(deviation))
    return [features.double().sub_(mean).mul_(scale) for features in (bank, *others)]


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


# ---- geometry --------------------------------------------------------------------------------------------------------


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """log mean exp(−t ‖x − y‖²) over pairs of different normalized features (N, D): Wang & Isola 2020, section 4.1.

    0 if all features are one point; near −2t if they are spread evenly over a sphere of many dimensions.
    """
    x = F.normalize(evenly_spaced(features).float(), dim=1)
    if len(x) < 2:
        return math.nan
    total, start = x.new_zeros((), dtype=torch.double), 0
    for block in x.split(max(1, BLOCK // len(x))):
        kernel = (block @ x.T).clamp_(max=1).sub_(1).mul_(2 * t).exp_()  # ‖x − y‖² = 2 − 2 x·y
        kernel.diagonal(start).zero_()  # of the features with themselves
        total += kernel.sum(dtype=torch.double)
        start += len(block)
    return math.log(float(total) / (len(x) * (len(x) - 1)))


def alignment(a: Tensor, b: Tensor, alpha: float = 2.0) -> float:
    """Mean ‖x − y‖^α over positive pairs, the normalized rows of a and b (N, D): Wang & Isola 2020, section 4.1."""
    difference = F.normalize(a.double(), dim=1) - F.normalize(b.double(), dim=1)
    return float(difference.norm(dim=1).pow(alpha).mean())


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of (N, D), normalized to sum 1: RankMe (Garrido et al. 2023).

    Between 1 and min(N, D); 0 if all features are 0. (The paper's ε, which guards the logarithm, is not needed.)
    Where D is large, of fewer features.
    """
    x = evenly_spaced(features, MOST_COMPARED if features.shape[1] <= MOST else MOST)
    # The eigenvalues of either product are the squares: of the smaller one.
    singular = torch.linalg.eigvalsh(gram(x.T if x.shape[1] <= len(x) else x)).clamp(min=0).sqrt()
    if not (total := singular.sum()) > 0:
        return 0.0
    return float(torch.special.entr(singular / total).sum().exp())


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the deviation of normalized features (N, D): Chen & He 2021 (SimSiam), section 4.1.

    0 if they have collapsed to one point, 1/√D if they are spread evenly over the sphere.
    """
    return float(F.normalize(features.double(), dim=1).std(0, correction=0).mean())


def evenly_spaced(rows: Tensor, most: int = MOST_COMPARED) -> Tensor:
    """All rows, or ``most`` of them."""
    return rows if len(rows) <= most else rows[torch.arange(most, device=rows.device) * len(rows) // most]


# ---- all of it -------------------------------------------------------------------------------------------------------


def probe(
    features_train: Tensor,
    labels_train: Tensor,
    features_eval: Tensor,
    labels_eval: Tensor,
    features_select: Tensor | None = None,
    labels_select: Tensor | None = None,
    *,
    num_classes: int | None = None,
    subsets: Mapping[str, Tensor] | None = None,
    k: int = 200,
    temperature: float = 0.1,
    penalties: Sequence[float] = PENALTIES,
) -> dict[str, float]:
    """Every metric of a representation, by its name without the stage.

    Args:
        features_train, labels_train: the data for the neighbors and for fitting the linear probe: (N, D), (N,).
        features_eval, labels_eval: the data to evaluate: (M, D), (M,).
        features_select, labels_select: the data that choose the probe's penalty, by accuracy; of equally good penalties
            the largest. By default the evaluated data, which is right only for a validation part, and slightly
            optimistic for it.
        num_classes: by default the number of classes in the labels.
        subsets: rows of the training features whose labels a separate probe may use, by the suffix of its name; the
            features are standardized using all rows.
        k, temperature: see :func:`knn_predict`.

    Returns:
        ``knn_accuracy``, ``probe_accuracy``, and one ``probe_accuracy_…`` for each subset, from training to evaluated
        part; ``uniformity``, ``effective_rank``, ``feature_std`` of the evaluated features. All are NaN if a feature is
        not finite.

    Raises:
        ValueError: k or the temperature is not positive, a part is empty, or there are too many features of too many
            dimensions.
    """
    at_least(1, k=k)
    more_than(0, temperature=temperature)
    if not (len(features_train) and len(features_eval)):
        raise ValueError(f"{len(features_train)} training and {len(features_eval)} evaluated features: expected some")
    if features_select is None or labels_select is None:
        features_select, labels_select = features_eval, labels_eval
    if num_classes is None:
        num_classes = 1 + int(max(labels_train.max(), labels_eval.max(), labels_select.max()))
    subsets = subsets or {}
    names = ["probe_accuracy", *(f"probe_accuracy_{name}" for name in subsets)]
    parts = (features_train, features_eval, features_select)
    if not all(bool(part.isfinite().all()) for part in parts):
        return dict.fromkeys(["knn_accuracy", *names, "uniformity", "effective_rank", "feature_std"], math.nan)

    neighbors = knn_predict(features_train, labels_train, features_eval, num_classes, k, temperature)
    metrics = {"knn_accuracy": accuracy(neighbors, labels_eval)}
    bank, evaluated, selecting = standardize(*parts)
    bank = bank.float()
    everything = torch.arange(len(bank), device=bank.device)
    for name, rows in zip(names, [everything, *subsets.values()], strict=True):
        x = bank if rows is everything else bank[rows]
        probes = list(fit_linear_probes(x, labels_train[rows], num_classes, sorted(penalties, reverse=True)))
        best = max(probes, key=lambda fitted: accuracy(fitted.predict(selecting), labels_select))
        metrics[name] = accuracy(best.predict(evaluated), labels_eval)
    metrics["uniformity"] = uniformity(features_eval)
    metrics["effective_rank"] = effective_rank(features_eval)
    metrics["feature_std"] = feature_std(features_eval)
    return metrics
