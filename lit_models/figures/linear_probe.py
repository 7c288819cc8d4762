"""The picture that explains a linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from lit_models.figures.canvas import matrix_page

if TYPE_CHECKING:
    from lit_models.linear_probe import LinearProbe


def illustrate(model: LinearProbe, batch: object) -> dict[str, Image.Image]:
    """Which classes are taken for which, as shares of each class, in all that was evaluated."""
    assert model.confusions is not None
    counts = model.confusions.double().cpu()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    title = f"{float(counts.diagonal().sum() / counts.sum()):.1%} of {int(counts.sum())}"
    return {"confusion": matrix_page(shares.numpy(), model.class_names, title, "taken for", "class")}
