"""How well generated images show what their sentences state, and how varied they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from datamodules.parts.scenes import stated_attributes


class GenerationScores(Metric):
    """Gathers what a classifier sees in real and generated images and computes all metrics at the end.

    ``compute`` returns, for generated images and the A attributes of their sentences:

    - ``attribute_accuracy``: share of the stated attributes that the classifier sees, and for each attribute
      ``attribute_accuracy_<name>``; ``all_attributes``: share of images that show everything stated;
    - ``classifier_accuracy``: that of the classifier on the real images, an upper bound for the above;
    - ``frechet_distance`` of the classifier's features on generated and on real images: see :func:`frechet_distance`.
      It is on this classifier's own scale, comparable only between runs on the same data;
    - ``mode_coverage``: share of the combinations of all attributes among the real images that occur among the
      generated ones; ``open_entropy_ratio``: for attributes that the sentence leaves open, the entropy of the values
      seen in generated images over that in real ones: 0 if the same value is always drawn;
    - if some are marked unseen: ``attribute_accuracy_seen`` and ``_unseen``, ``gap_seen_unseen``, their
      ``harmonic_mean``, and ``classifier_accuracy_unseen``.

    Args:
        attributes: the values of each.
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, attributes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.names = list(attributes)
        self.num_values = [len(values) for values in attributes.values()]
        for name in ("real", "fake", "real_features", "fake_features"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        objects: Tensor,
        judged_real: Tensor,
        judged_fake: Tensor,
        stated: Tensor,
        image_index: Tensor,
        unseen: Tensor,
        real_features: Tensor,
        fake_features: Tensor,
    ) -> None:
        """Adds I real images and N generated ones.

        Args:
            objects, judged_real: (I, A) true and seen values of the real images, −1 if there is none.
            judged_fake, stated: (N, A) seen and stated values of the generated ones, −1 if none is stated.
            image_index: (N,) the real image to which the sentence belongs.
            unseen: (I,) bool.
            real_features, fake_features: (I, F) and (N, F).
        """
        self.real.append(torch.cat([objects, judged_real, unseen[:, None].long()], 1))
        self.fake.append(torch.cat([objects[image_index], judged_fake, stated, unseen[image_index, None].long()], 1))
        self.real_features.append(real_features.double())
        self.fake_features.append(fake_features.double())

    def compute(self) -> dict[str, Tensor]:
        count = len(self.names)
        truth, judged_real, unseen_real = dim_zero_cat(self.real).split([count, count, 1], 1)
        true_of_fake, judged, stated, unseen = dim_zero_cat(self.fake).split([count, count, count, 1], 1)
        said, right = stated >= 0, judged == stated
        known = truth >= 0
        hit = judged_real == truth

        result = {"attribute_accuracy": share(right, said)}
        for i, name in enumerate(self.names):
            if said[:, i].any():
                result[f"attribute_accuracy_{name}"] = share(right[:, i], said[:, i])
        result["all_attributes"] = (right | ~said).all(1).double().mean()
        result["classifier_accuracy"] = share(hit, known)
        result["frechet_distance"] = frechet_distance(
            dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)
        )
        modes, made = {tuple(row) for row in truth.tolist()}, {tuple(row) for row in judged.tolist()}
        result["mode_coverage"] = judged.new_tensor(len(modes & made) / len(modes), dtype=torch.double)
        generated, real = (
            sum(entropy(values[~said[:, i], i], n) for i, n in enumerate(self.num_values))
            for values in (judged, true_of_fake.clamp_min(0))
        )
        result["open_entropy_ratio"] = torch.as_tensor(generated / real if real else torch.nan, dtype=torch.double)
        if unseen.any() and not unseen.all():
            new = unseen.bool()
            seen_accuracy, unseen_accuracy = share(right, said & ~new), share(right, said & new)
            result["attribute_accuracy_seen"], result["attribute_accuracy_unseen"] = seen_accuracy, unseen_accuracy
            result["gap_seen_unseen"] = seen_accuracy - unseen_accuracy
            total = (seen_accuracy + unseen_accuracy).clamp_min(1e-12)
            result["harmonic_mean"] = 2 * seen_accuracy * unseen_accuracy / total
            result["classifier_accuracy_unseen"] = share(hit, known & unseen_real.bool())
        return {name: value.float() for name, value in result.items()}


def agreeing(captions: Sequence[Sequence[str]], stated: Tensor, attributes: Mapping[str, Sequence[str]]) -> Tensor:
    """1 for each attribute for which caption and sentence state the same value, 0 for different values.

    Args:
        captions: of each generated image; the first one counts.
        stated: (N, A) values that its sentence states, −1 if it says nothing.
        attributes: the values of each.
    """
    same = []
    for (caption, *_), row in zip(captions, stated.tolist(), strict=True):
        seen = stated_attributes(caption, attributes)
        for (name, values), value in zip(attributes.items(), row, strict=True):
            if value >= 0 and name in seen:
                same.append(float(values[value] == seen[name]))
    return torch.tensor(same, device=stated.device)


def share(right: Tensor, counted: Tensor) -> Tensor:
    """The share of counted values that are right; NaN if there are none."""
    return (right & counted).sum().double() / counted.sum()


def entropy(values: Tensor, num_values: int) -> float:
    """In nats, of the values (N,) of 0 … num_values − 1; 0 of none."""
    p = torch.bincount(values, minlength=num_values).double() / max(1, len(values))
    return float(-torch.special.xlogy(p, p).sum())


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """The distance between normal distributions fitted to features (N, F) and (M, F): |μ − ν|² + tr(Σ + T − 2 (ΣT)^½).

    Heusel et al. 2017, eq. 6, whose features are an Inception network's. The trace of the root is the sum of the roots
    of ΣT's eigenvalues, which are those of the symmetric Σ^½ T Σ^½. In double precision.
    """
    a, b = a.double(), b.double()
    covariances = [torch.atleast_2d(torch.cov(x.T, correction=1 if len(x) > 1 else 0)) for x in (a, b)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * cross
    output: Tensor = distance.clamp_min(0)
    return output
