"""Pages with rows of images, maps of their representations, and the axes of plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from common.trainer import datamodule_of
from lit_models.figures.canvas import MARGIN, pixels_of, shortened, write
from lit_models.figures.fonts import DPI, font, height_of, width_of


def rows_page(
    rows: Sequence[Tensor], labels: Sequence[str] = (), title: str = "", size: float = 0.72, between: float = 1.0
) -> Image.Image:
    """A grid of images from rows (n, C, H, W) in 0..1, each with a label at its left; about ``size`` inches per image.

    ``between`` is the brightness of the gaps, which separate images on white.
    """
    letters, heading = font(8), font(10)
    pixels = [pixels_of(row, size * DPI) for row in rows]
    height, width = pixels[0].shape[1:3]
    columns, gap = max(map(len, pixels)), max(2, width // 14)
    grid = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), round(255 * between), np.uint8)
    for i, row in enumerate(pixels):
        for j, image in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            grid[y : y + height, x : x + width] = image
    left = MARGIN + (max(width_of(label, letters) for label in labels) + MARGIN if labels else 0)
    top = MARGIN + (height_of(title, heading) + MARGIN if title else 0)
    across = max(grid.shape[1], width_of(title, heading))
    page = Image.new("RGB", (left + across + MARGIN, top + len(grid) + MARGIN), "white")
    page.paste(Image.fromarray(grid), (left, top))
    write(page, (left, MARGIN), title, heading)
    for i, label in enumerate(labels):
        middle = top + i * (height + gap) + height / 2
        write(page, (left - MARGIN, middle - height_of(label, letters) / 2), label, letters, align="right")
    return page


def panels(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    margins: tuple[float, float, float, float] = (0.7, 0.15, 0.5, 0.35),
    gaps: tuple[float, float] = (0.75, 0.3),
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with axes, row by row; everything in inches.

    Matplotlib's layout engines would find the margins by measuring all text, for which they draw everything twice.

    Args:
        margins: left, right, bottom and top.
        gaps: from column to column and from row to row.
        options: of ``Figure.subplots``.
    """
    left, right, bottom, top = margins
    across = (width - left - right - (columns - 1) * gaps[0]) / columns
    down = (height - bottom - top - (rows - 1) * gaps[1]) / rows
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        *(left / width, bottom / height, 1 - right / width, 1 - top / height), gaps[0] / across, gaps[1] / down
    )
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.ravel().tolist()


NAMED = 20
"""classes that can be told apart by their colors"""


def names_of_classes(module: LightningModule) -> list[str]:
    """Those of the data that a module is evaluated on, in the order of the labels; none where there are none."""
    trainer = module._trainer  # the property raises where there is none
    return list(getattr(datamodule_of(trainer), "class_names", ())) if trainer is not None else []


def map_figure(features: Tensor, labels: Tensor, names: Sequence[str] = (), scale: str | None = None) -> Figure:
    """Features (B, D) in two dimensions, by PCA and by t-SNE, colored by class.

    Args:
        labels: (B,) integers, or -1 for a gray point.
        names: of the labels; by default their numbers. Of more than :data:`NAMED` the most frequent are colored.
        scale: what the labels measure, if they are no classes: they are colored from dark to bright.
    """
    points, classes = features.float().cpu().numpy(), labels.cpu().numpy()
    maps = _maps(points)
    colors, legend = ({}, []) if scale else _colors(classes, names)
    longest = max((len(text) for text, _ in legend), default=0)
    beside = 0.9 if scale else 0.35 + 0.085 * longest if legend else 0.1
    width = beside + 4.55 * len(maps)
    figure, axes = panels(width, 4.6, columns=len(maps), margins=(0.1, beside, 0.1, 0.35), gaps=(0.1, 0))
    for axis, (name, flat) in zip(axes, maps.items(), strict=True):
        inks: Any = {"c": classes, "cmap": "viridis"} if scale else {"c": [colors[each] for each in classes.tolist()]}
        scatter = axis.scatter(flat[:, 0], flat[:, 1], s=9, **inks)
        axis.set(title=name, xticks=[], yticks=[])
    if scale:
        bar = figure.add_axes((1 - 0.8 / width, 0.1 / 4.6, 0.2 / width, 1 - 0.45 / 4.6))
        figure.colorbar(scatter, cax=bar, label=scale)
    elif legend:
        marks = [
            Line2D([], [], label=text, color=color, marker="o", markersize=4, linestyle="") for text, color in legend
        ]
        place = (1 - (beside - 0.05) / width, 1 - 0.3 / 4.6)
        options: Any = {"frameon": False, "fontsize": 8, "handletextpad": 0.1}
        figure.legend(handles=marks, loc="upper left", bbox_to_anchor=place, **options)
    return figure


def _colors(classes: np.ndarray, names: Sequence[str]) -> tuple[dict[int, Any], list[tuple[str, Any]]]:
    """The color of each class, -1 included, and the entries of a legend, none where there are no classes."""
    known, counts = np.unique(classes[classes >= 0], return_counts=True)
    wheel = [colormaps["tab10" if len(known) <= 10 else "tab20"](place) for place in range(NAMED)]
    first = known
    if len(known) > NAMED:
        wheel = [*wheel[:14], *wheel[16:]]  # without the grays, which are the others' here
        first = np.sort(known[np.argsort(-counts, kind="stable")[: len(wheel)]])
    colors: dict[int, Any] = dict.fromkeys([-1, *known.tolist()], "lightgray" if len(known) else "tab:blue")
    legend = []
    for place, code in enumerate(first.tolist()):
        colors[code] = wheel[place]
        legend.append((shortened(names[code] if code < len(names) else str(code)), colors[code]))
    if len(first) < len(known):
        legend.append((f"{len(known) - len(first)} other classes", "lightgray"))
    elif len(known) and (classes < 0).any():
        legend.append(("no class", "lightgray"))
    return colors, legend


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
