"""The pictures that explain SimCLR, or MoCo: what it is shown, and what it takes for alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lit_models.figures.canvas import Picture
from lit_models.figures.grids import map_figure, names_of_classes, panels, rows_page
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from datamodules.contrastive_views import ViewBatch
    from lit_models.simclr import SimCLR

COLUMNS = 12


def illustrate(model: SimCLR, batch: ViewBatch) -> dict[str, Picture]:
    """Views; nearest neighbors; a map of the representation; similarities of positives and of negatives."""
    return contrastive_figures(model, batch, model.project)


def contrastive_figures(model: Any, batch: ViewBatch, project: Callable[[Tensor], Tensor]) -> dict[str, Picture]:
    """:func:`illustrate` for any contrastive technique.

    Args:
        model: has ``encode``.
        project: views (V, B, C, S, S) → unit vectors (V, B, D), as the loss compares them.
    """
    with evaluating(model), torch.no_grad():
        features = F.normalize(model.encode(batch.images).float(), dim=1)
        return {
            "views": views_page(batch),
            "neighbors": neighbors_page(batch.images, features),
            "map": map_figure(features, batch.labels, names_of_classes(model)),
            "similarities": similarities_figure(project(batch.views)),
        }


def views_page(batch: ViewBatch) -> Image.Image:
    """Images and their augmented views: the network can learn only what the views still show."""
    rows = [batch.images[:COLUMNS], *(view[:COLUMNS] for view in batch.views)]
    return rows_page(rows, ["image", *(f"view {i + 1}" for i in range(len(batch.views)))])


def neighbors_page(images: Tensor, features: Tensor, queries: int = 8) -> Image.Image:
    """Images at the left, and the images of the batch with the most similar representations, most similar first."""
    queries, columns = min(queries, len(images)), min(COLUMNS, len(images))
    nearest = (features[:queries] @ features.T).topk(columns).indices
    return rows_page(list(images[nearest].unbind()), title="an image, and its nearest neighbors")


def similarities_figure(z: Tensor) -> Figure:
    """Cosines of positive pairs and of all other pairs of projections (V, B, D)."""
    first, second = z[0].float(), z[-1].float()
    cosines = (first @ second.T).cpu()
    same = torch.eye(len(cosines), dtype=torch.bool)
    figure, (axis,) = panels(6, 3.2, margins=(0.35, 0.15, 0.5, 0.1))
    for name, values in (("another image", cosines[~same]), ("the same image", cosines[same])):
        axis.hist(values.numpy(), bins=60, range=(-1, 1), density=True, alpha=0.6, label=name)
    axis.set(xlabel="cosine of two views' projections", yticks=[], ylabel="density")
    axis.legend(frameon=False)
    return figure
