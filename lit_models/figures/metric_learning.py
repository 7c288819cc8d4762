"""The pictures that explain an embedding: neighbors, false neighbors, and the distances of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lit_models.figures.canvas import Picture
from lit_models.figures.grids import map_figure, names_of_classes, panels, rows_page
from lit_models.parts.evaluating import evaluating
from lit_models.scores.retrieval import Verification

if TYPE_CHECKING:
    from lit_models.metric_learning import MetricLearning

COLUMNS = 12
HIT, MISS, PLAIN = (0.2, 0.65, 0.3), (0.85, 0.2, 0.2), (1.0, 1.0, 1.0)


def illustrate(model: MetricLearning, batch: object) -> dict[str, Picture]:
    """Neighbors with hits and misses; a map; the distances of positive and negative pairs; the hardest pairs.

    Of examples from all batches: where data are sorted by class, one batch would be of one class.
    """
    assert model.verification is not None
    images, labels = (torch.cat(parts) for parts in zip(*model.examples, strict=True))
    with evaluating(model), torch.no_grad():
        z = model.embed(images).float()
    distances = torch.cdist(z, z)
    return {
        "neighbors": neighbors_page(images, labels, distances),
        "map": map_figure(z, labels, names_of_classes(model)),
        "distances": distances_figure(model.verification, float(model.threshold)),
        "hardest_pairs": hardest_pairs_page(images, labels, distances),
    }


def neighbors_page(images: Tensor, labels: Tensor, distances: Tensor, queries: int = 8) -> Image.Image:
    """Images at the left and their nearest neighbors, framed green if they have the same class and red if not."""
    rows = torch.arange(0, len(images), max(1, len(images) // queries))[:queries]
    apart = distances.clone().fill_diagonal_(torch.inf)
    nearest = apart[rows].topk(min(COLUMNS, len(images)) - 1, largest=False).indices
    shown = []
    for row, found in zip(rows.tolist(), nearest, strict=True):
        hits = (labels[found] == labels[row]).tolist()
        frames = [PLAIN, *(HIT if hit else MISS for hit in hits)]
        shown.append(framed(images[[row, *found.tolist()]], frames))
    return rows_page(shown, title="an image, and its nearest: green of its class, red of another")


def hardest_pairs_page(images: Tensor, labels: Tensor, distances: Tensor, count: int = COLUMNS) -> Image.Image:
    """The farthest pairs of one class and the nearest pairs of two, with each image in at most one pair."""
    first, second = torch.triu_indices(len(images), len(images), 1, device=images.device)
    apart, same = distances[first, second], labels[first] == labels[second]
    rows, names = [], []
    for name, kept, furthest in (("alike", same, True), ("different", ~same, False)):
        order = kept.nonzero()[:, 0]
        order = order[apart[order].argsort(descending=furthest)][:2000]
        pairs: list[tuple[int, int]] = []
        for pair in zip(first[order].tolist(), second[order].tolist(), strict=True):
            if len(pairs) < count and not any(image in other for other in pairs for image in pair):
                pairs.append(pair)
        if pairs:
            rows += [images[list(column)] for column in zip(*pairs, strict=True)]
            names += [name, ""]
    return rows_page(rows, names)


def distances_figure(pairs: Verification, threshold: float) -> Figure:
    """The distances of pairs of one class and of two, with the threshold, and the ROC curve of separating them."""
    figure, (histogram, roc) = panels(9, 3.4, columns=2, margins=(0.35, 0.15, 0.5, 0.35), width_ratios=(1.6, 1))
    edges = pairs.edges.cpu()
    for name, counts, color in (("alike", pairs.positives, HIT), ("different", pairs.negatives, MISS)):
        coarse = counts.cpu().view(-1, 20).sum(1)
        histogram.stairs(coarse / coarse.sum(), edges[::20], fill=True, alpha=0.6, color=color, label=name)
    if threshold == threshold:
        histogram.axvline(threshold, color="black", linewidth=1, linestyle="--", label="threshold")
    histogram.set(xlabel="distance of two embeddings", ylabel="share of the pairs", yticks=[])
    histogram.legend(frameon=False)
    true, false = pairs.rates()
    roc.plot(false.cpu(), true.cpu(), color="black")
    roc.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    roc.set(xlabel="share of different pairs taken for alike", ylabel="share of alike pairs found", aspect="equal")
    roc.set_title(f"area {pairs.auc():.4f}", size=10)
    return figure


def framed(images: Tensor, colors: list[tuple[float, float, float]]) -> Tensor:
    """Images (n, C, H, W), each in a colored frame: (n, 3, H + 2f, W + 2f)."""
    width = max(1, images.shape[3] // 12)
    wide = F.pad(images.float().cpu().expand(-1, 3, -1, -1), [width] * 4, value=-1.0)
    frame = torch.tensor(colors)[:, :, None, None]
    return torch.where(wide < 0, frame, wide)
