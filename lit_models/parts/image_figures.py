"""Rows of images as one figure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor


def rows_figure(rows: Sequence[Tensor], labels: Sequence[str] = (), title: str = "", size: float = 0.72) -> Figure:
    """A grid of images, a row of it (n, C, H, W) in 0..1, each with a label at its left; ``size`` inches an image."""
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[2:]
    gap = max(1, width // 14)
    # One picture of all of them: an axes for each would take seconds.
    canvas = torch.ones(len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
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
