"""The pictures that explain MoCo: those of SimCLR, of the queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lit_models.figures.canvas import Picture
from lit_models.figures.simclr import contrastive_figures
from lit_models.parts.contrastive import unit

if TYPE_CHECKING:
    from datamodules.contrastive_views import ViewBatch
    from lit_models.moco import MoCo


def illustrate(model: MoCo, batch: ViewBatch) -> dict[str, Picture]:
    """Views; nearest neighbors; a map of the representation; similarities of positives and of negatives."""

    def project(views: Tensor) -> Tensor:
        output: Tensor = unit(model.query(views.flatten(0, 1))).unflatten(0, views.shape[:2])
        return output

    return contrastive_figures(model, batch, project)
