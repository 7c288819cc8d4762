"""The pictures that explain an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.figures.grids import map_figure, rows_figure
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from datamodules.parts.image_sets import ImageBatch
    from lit_models.autoencoder import Autoencoder

COLUMNS = 12


def illustrate(model: Autoencoder, batch: ImageBatch) -> dict[str, Figure]:
    """Reconstructions beside PCA's, with their errors; interpolations; a map of the codes."""
    with evaluating(model), torch.no_grad():
        return {
            "reconstructions": reconstructions_figure(model, batch.images[:COLUMNS]),
            "interpolations": interpolations_figure(model, batch.images[:10]),
            "codes": map_figure(model.encode(batch.images), batch.labels),
        }


def reconstructions_figure(model: Autoencoder, images: Tensor) -> Figure:
    """Images, their reconstructions from the code and from as many principal components, and the errors of both."""
    ours = model.to_pixels(model(images))
    rows, labels = [images, ours, (ours - images).abs()], ["image", f"code of {model.code_dim}", "its error"]
    if model.compares:
        pca = model.pca_reconstruction(images)
        rows += [pca, (pca - images).abs()]
        labels += [f"PCA, {len(model.pca_components)}", "its error"]
    return rows_figure(rows, labels)


def interpolations_figure(model: Autoencoder, images: Tensor) -> Figure:
    """On straight lines between pairs of codes."""
    pairs = zip(images[0::2], images[1::2], strict=False)
    return rows_figure([model.interpolate(a, b, COLUMNS) for a, b in pairs] or [images])
