"""Shared by contrastive losses: the cross-entropy of positives among candidates, and how well they are separated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric

from common.distributed import mean_over_ranks

COLLAPSED = 0.05
"""spread of the projections below which they count as one point"""


def unit(z: Tensor) -> Tensor:
    """Vectors (…, D) of length 1, in at least single precision, which exp(sim/τ) needs."""
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float)), dim=-1)


def cross_entropy_of_positives(logits: Tensor, positives: Tensor) -> Tensor:
    """The mean over anchors and their positives of −log softmax(logits)[positive].

    Args:
        logits: (A, C) of A anchors and C candidates; −inf excludes a candidate.
        positives: (A, P) columns.
    """
    if positives.shape[1] == 1:
        return F.cross_entropy(logits, positives[:, 0])
    return (logits.logsumexp(1, keepdim=True) - logits.gather(1, positives)).mean()


@torch.no_grad()
def similarities(logits: Tensor, positives: Tensor, temperature: float) -> dict[str, Tensor]:
    """How well anchors find their positives, as means over the anchors.

    The cosine of the positives and of the hardest negative, and the share of anchors whose most similar candidate is a
    positive.
    """
    values, columns = logits.topk(min(positives.shape[1] + 1, logits.shape[1]), dim=1)  # one of them is no positive
    is_positive = (columns[:, :, None] == positives[:, None]).any(2)
    hardest = values.masked_fill(is_positive, -torch.inf).amax(1)
    return {
        "positive_similarity": logits.gather(1, positives).mean() * temperature,
        "negative_similarity": hardest.clamp_min(-1 / temperature).mean() * temperature,  # −1 where there is none yet
        "contrastive_accuracy": is_positive[:, 0].float().mean(),
    }


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """√D times the mean deviation of the dimensions of unit vectors (N, D): 1 on a sphere, 0 in a point.

    It covers the vectors of all ranks together.
    """
    centered = z - mean_over_ranks(z.mean(0))
    output: Tensor = mean_over_ranks(centered.square().mean(0)).sqrt().mean() * z.shape[1] ** 0.5
    return output


class ContrastiveScores(torch.nn.Module):
    """Running means of the loss, of :func:`similarities` and of :func:`spread` over evaluated batches."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.positive_similarity, self.negative_similarity = MeanMetric(), MeanMetric(), MeanMetric()
        self.contrastive_accuracy, self.projection_std = MeanMetric(), MeanMetric()

    def means(self) -> dict[str, MeanMetric]:
        return {name: mean for name, mean in self.named_children() if isinstance(mean, MeanMetric)}

    def add(self, scores: dict[str, Tensor]) -> None:
        means = self.means()
        for name, value in scores.items():
            means[name].update(value)

    def log(self, module: LightningModule, stage: str) -> None:
        """Logs them as ``val/…`` or ``test/…``, and warns if the projections have collapsed."""
        means = self.means()
        found = {name: mean.compute() for name, mean in means.items()}
        module.log_dict({f"{stage}/{name}": value for name, value in found.items()})
        for mean in means.values():
            mean.reset()
        if found["projection_std"] < COLLAPSED:
            rank_zero_warn(
                f"collapse: the projections of all images are nearly one point (step {module.global_step}, "
                f"{stage}/projection_std {float(found['projection_std']):.4f}); a lower learning rate may help"
            )
