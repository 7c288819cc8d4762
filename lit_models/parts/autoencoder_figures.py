"""The pictures that explain an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.parts.evaluating import evaluating
from lit_models.parts.image_figures import rows_figure

if TYPE_CHECKING:
    from datamodules.images import ImageBatch
    from lit_models.autoencoder import Autoencoder

COLUMNS = 12


def figures(model: Autoencoder, batch: ImageBatch) -> dict[str, Figure]:
    """All of them, of a batch."""
    with evaluating(model), torch.no_grad():
        return {
            "reconstructions": reconstructions_figure(model, batch.images[:COLUMNS]),
            "interpolations": interpolations_figure(model, batch.images[:10]),
            "codes": codes_figure(model.encode(batch.images), batch.labels),
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


def codes_figure(codes: Tensor, labels: Tensor) -> Figure:
    """The codes (B, D) in two dimensions, by PCA and by t-SNE, colored by class."""
    points, classes = codes.float().cpu().numpy(), labels.cpu().numpy()
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axis, (name, flat) in zip(figure.subplots(1, 2), maps(points).items(), strict=False):
        scatter = axis.scatter(flat[:, 0], flat[:, 1], c=classes, cmap="tab10", s=9)
        axis.set(title=name, xticks=[], yticks=[])
    if len(set(classes.tolist())) > 1:
        figure.colorbar(scatter, ax=figure.axes, ticks=sorted(set(classes.tolist()))[:20], label="class")
    return figure


def maps(points: np.ndarray) -> dict[str, np.ndarray]:
    """Two maps of points (N, D) to the plane (N, 2); t-SNE only of enough points."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    wide = points if points.shape[1] > 1 else np.repeat(points, 2, 1)
    found = {"PCA of the codes": PCA(2, random_state=0).fit_transform(wide) if len(wide) > 1 else wide[:, :2]}
    if len(wide) >= 30:
        perplexity = min(30, len(wide) / 4)
        found["t-SNE of the codes"] = TSNE(2, perplexity=perplexity, random_state=0, init="pca").fit_transform(wide)
    return found
