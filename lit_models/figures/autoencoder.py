"""The pictures that explain an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from lit_models.figures.canvas import Picture
from lit_models.figures.grids import map_figure, names_of_classes, rows_page
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from datamodules.parts.image_sets import ImageBatch
    from lit_models.autoencoder import Autoencoder

COLUMNS = 12


def illustrate(model: Autoencoder, batch: ImageBatch) -> dict[str, Picture]:
    """Reconstructions beside PCA's, with their errors; interpolations; a map of the codes."""
    with evaluating(model), torch.no_grad():
        return {
            "reconstructions": reconstructions_page(model, batch.images[:COLUMNS]),
            "interpolations": interpolations_page(model, batch.images[:10]),
            "codes": map_figure(model.encode(batch.images), batch.labels, names_of_classes(model)),
        }


def reconstructions_page(model: Autoencoder, images: Tensor) -> Image.Image:
    """Images, their reconstructions from the code and from as many principal components, and the errors of both."""
    ours = model.to_pixels(model(images))
    rows, labels = [images, ours, (ours - images).abs()], ["image", f"code of {model.code_dim}", "its error"]
    if model.compares:
        pca = model.pca_reconstruction(images)
        rows += [pca, (pca - images).abs()]
        labels += [f"PCA, {len(model.pca_components)}", "its error"]
    return rows_page(rows, labels)


def interpolations_page(model: Autoencoder, images: Tensor) -> Image.Image:
    """On straight lines between pairs of codes."""
    pairs = zip(images[0::2], images[1::2], strict=False)
    return rows_page([model.interpolate(a, b, COLUMNS) for a, b in pairs] or [images])
