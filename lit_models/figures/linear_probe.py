"""The picture that explains a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from lit_models.linear_probe import LinearProbe


def illustrate(model: LinearProbe, batch: object) -> dict[str, Figure]:
    """Which classes are taken for which, in all that was evaluated."""
    assert model.confusions is not None
    return {"confusion": confusion_figure(model.confusions, model.class_names)}


def confusion_figure(counts: Tensor, names: Sequence[str]) -> Figure:
    """Which class (K rows) was taken for which, as shares of each row of counts (K, K)."""
    shares = counts.float().cpu() / counts.sum(1, keepdim=True).clamp_min(1).cpu()
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="taken for", ylabel="class")
    figure.colorbar(image, label="share of the class")
    return figure
