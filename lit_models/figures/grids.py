"""Figures with rows of images, and maps of their representations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor


def rows_figure(
    rows: Sequence[Tensor], labels: Sequence[str] = (), title: str = "", size: float = 0.72, between: float = 1.0
) -> Figure:
    """A grid of images from rows (n, C, H, W) in 0..1, each with a label at its left; ``size`` inches per image.

    ``between`` is the brightness of the gaps, which separate images on white.
    """
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[2:]
    gap = max(1, width // 14)
    # One picture of all of them: an axes for each would take seconds.
    canvas = torch.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), between)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.detach().float().cpu().clamp(0, 1)):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image.movedim(0, -1).expand(-1, -1, 3)
    shape = (size * columns + (1.3 if labels else 0), size * len(rows) * height / width + (0.4 if title else 0.1))
    figure = Figure(figsize=shape, layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas.numpy(), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([i * (height + gap) + height / 2 for i in range(len(labels))], labels, size=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, size=10)
    return figure


def map_figure(features: Tensor, labels: Tensor) -> Figure:
    """Features (B, D) in two dimensions, by PCA and by t-SNE, colored by class."""
    points, classes = features.float().cpu().numpy(), labels.cpu().numpy()
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axis, (name, flat) in zip(figure.subplots(1, 2), _maps(points).items(), strict=False):
        scatter = axis.scatter(flat[:, 0], flat[:, 1], c=classes, cmap="tab10", s=9)
        axis.set(title=name, xticks=[], yticks=[])
    if len(set(classes.tolist())) > 1:
        figure.colorbar(scatter, ax=figure.axes, ticks=sorted(set(classes.tolist()))[:20], label="class")
    return figure


def _maps(points: np.ndarray) -> dict[str, np.ndarray]:
    """Two maps of points (N, D) to the plane (N, 2); t-SNE only if there are enough points."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    wide = points if points.shape[1] > 1 else np.repeat(points, 2, 1)
    found = {"PCA": PCA(2, random_state=0).fit_transform(wide) if len(wide) > 1 else wide[:, :2]}
    if len(wide) >= 30:
        perplexity = min(30, len(wide) / 4)
        found["t-SNE"] = TSNE(2, perplexity=perplexity, random_state=0, init="pca").fit_transform(wide)
    return found
