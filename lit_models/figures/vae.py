"""The pictures that explain a VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lit_models.figures.canvas import Picture
from lit_models.figures.grids import panels, rows_page
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from datamodules.parts.image_sets import ImageBatch
    from lit_models.vae import VAE

COLUMNS = 10


def illustrate(model: VAE, batch: ImageBatch) -> dict[str, Picture]:
    """Samples; reconstructions, several of each image; each dimension's effect; interpolations; the code plane."""
    assert model.mean_kl is not None
    shown, kl = batch.images[:COLUMNS], model.mean_kl
    dimensions = kl.argsort(descending=True).tolist()
    with evaluating(model), torch.no_grad():
        made: dict[str, Picture] = {
            "samples": rows_page(model.sample(6 * COLUMNS, seed=0).split(COLUMNS), title="decoded from the prior"),
            "reconstructions": reconstructions_page(model, shown),
            "traversals": traversals_page(model, shown[:1], dimensions[:8], kl),
            "interpolations": interpolations_page(model, shown),
            "manifold": manifold_page(model, shown[0], dimensions[:2]),
        }
        made["kl"] = kl_figure(kl)
    return made


def reconstructions_page(model: VAE, images: Tensor, draws: int = 5) -> Image.Image:
    """Each image, its reconstruction, and decoded draws of its code: similar, but not the same."""
    rows = [images, model.decode(model.encode(images))]
    rows += [model.decode(model.encode(images, sample=True, seed=seed)) for seed in range(draws)]
    return rows_page(rows, ["image", "from the mean", *(f"draw {i + 1}" for i in range(draws))])


def traversals_page(model: VAE, image: Tensor, dimensions: list[int], kl: Tensor) -> Image.Image:
    """One dimension of the code changed at a time; those that hold the most come first."""
    values = torch.linspace(-3, 3, COLUMNS + 1).tolist()
    rows = [model.traverse(image, dimension, values) for dimension in dimensions]
    labels = [f"z{dimension}: {float(kl[dimension]):.2f} nats" for dimension in dimensions]
    return rows_page(rows, labels, "one dimension of the code from −3 to 3")


def interpolations_page(model: VAE, images: Tensor) -> Image.Image:
    """On great circles between pairs of codes."""
    pairs = zip(images[0::2], images[1::2], strict=False)
    return rows_page([model.interpolate(a, b, COLUMNS) for a, b in pairs] or [images])


def manifold_page(model: VAE, image: Tensor, dimensions: list[int], side: int = 15) -> Image.Image:
    """The decoded codes on a plane, at the quantiles of the prior, as in Kingma & Welling's figure 4.

    The plane spans the two dimensions that hold the most; the other dimensions are those of one image's code (with two
    dimensions, the plane is the whole code).
    """
    quantiles = torch.linspace(0.03, 0.97, side, device=image.device)
    points = torch.special.ndtri(quantiles).to(image.dtype)
    z = model.encode(image[None]).repeat(side * side, 1)
    for dimension, values in zip(dimensions, torch.meshgrid(points, points, indexing="ij"), strict=False):
        z[:, dimension] = values.flatten()
    return rows_page(model.decode(z).split(side), size=0.45)


def kl_figure(kl: Tensor) -> Figure:
    """The number of nats in each dimension of the code."""
    figure, (axis,) = panels(6, 3)
    axis.bar(range(len(kl)), kl.sort(descending=True).values.float().cpu())
    axis.set(
        xlabel="dimensions of the code, the fullest first", ylabel="mean KL (nats)", title=f"{float(kl.sum()):.1f} nats"
    )
    return figure
