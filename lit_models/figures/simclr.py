"""The pictures that explain a contrastive technique: what it is shown, and what it takes for alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.figures.grids import map_figure, rows_figure
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from datamodules.contrastive_views import ViewBatch

COLUMNS = 12


def figures(model: Any, batch: ViewBatch, project: Callable[[Tensor], Tensor]) -> dict[str, Figure]:
    """All of them, of a batch.

    Args:
        model: has ``encode``.
        project: views (V, B, C, H, W) → unit vectors (V, B, D), as the loss compares them.
    """
    images = batch.images
    with evaluating(model), torch.no_grad():
        features = F.normalize(model.encode(images).float(), dim=1)
        return {
            "views": views_figure(batch, images),
            "neighbors": neighbors_figure(images, features),
            "map": map_figure(features, batch.labels),
            "similarities": similarities_figure(project(batch.views)),
        }


def views_figure(batch: ViewBatch, images: Tensor) -> Figure:
    """Images and what the augmentation makes of them: what must still be told from it can be learned."""
    rows = [images[:COLUMNS], *(view[:COLUMNS] for view in batch.views)]
    return rows_figure(rows, ["image", *(f"view {i + 1}" for i in range(len(batch.views)))])


def neighbors_figure(images: Tensor, features: Tensor, queries: int = 8) -> Figure:
    """Images at the left, and those of the batch whose representation is most similar, the most similar first."""
    queries, columns = min(queries, len(images)), min(COLUMNS, len(images))
    nearest = (features[:queries] @ features.T).topk(columns).indices
    return rows_figure(list(images[nearest].unbind()), title="an image, and its nearest neighbors")


def similarities_figure(z: Tensor) -> Figure:
    """Cosines of positive pairs and of all others, of projections (V, B, D)."""
    first, second = z[0].float(), z[-1].float()
    cosines = (first @ second.T).cpu()
    same = torch.eye(len(cosines), dtype=torch.bool)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, values in (("another image", cosines[~same]), ("the same image", cosines[same])):
        axis.hist(values.numpy(), bins=60, range=(-1, 1), density=True, alpha=0.6, label=name)
    axis.set(xlabel="cosine of two views' projections", yticks=[], ylabel="density")
    axis.legend(frameon=False)
    return figure
