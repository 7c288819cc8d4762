"""The pictures that explain a restoration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from datamodules.degradations import Denoise
from lit_models.deep_image_prior import FRAMES, TRACE, fitted

if TYPE_CHECKING:
    from datamodules.restoration import RestorationBatch
    from lit_models.deep_image_prior import DeepImagePrior


@torch.no_grad()
def illustrate(model: DeepImagePrior, batch: RestorationBatch) -> dict[str, Figure]:
    """What became of the first image.

    Degraded, restored and true, with a part enlarged; PSNR and variance over iterations; outputs on the way.
    """
    references = model.references(batch)
    images = {"measured": batch.degraded, "trivial": references["trivial"]}
    if torch.equal(images["trivial"], images["measured"]):
        del images["trivial"]
    images |= {"total variation": references["tv"], "deep image prior": model.restored, "truth": batch.truth}
    shown = {name: image[0] for name, image in images.items() if image.shape[1]}
    scores = {}
    if batch.truth.shape[1]:
        same = {name: image for name, image in images.items() if image.shape[2:] == batch.truth.shape[2:]}
        scores = {
            name: float(model.scored(image[:1], _first(batch))) for name, image in same.items() if name != "truth"
        }
    steps = int(model.stop.steps)
    frames = {f"iteration {at}": frame for at, frame in zip(FRAMES, model.frames, strict=True) if at <= steps}
    return {
        "restored": restored_figure(shown, scores),
        "iterations": iterations_figure(model.trace[:, 0].float().cpu(), int(model.stop.kept_step[0])),
        "frames": restored_figure(frames | {"kept": model.restored[0]}, {}),
    }


def _first(batch: RestorationBatch) -> RestorationBatch:
    return type(batch)(*(tensor[:1] for tensor in batch))


def restored_figure(images: dict[str, Tensor], scores: dict[str, float]) -> Figure:
    """Images (C, H, W) of one scene, each above an enlargement of its most detailed part, a quarter of the side."""
    figure = Figure(figsize=(2.3 * len(images), 4.9), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    top, left, part = _detailed(list(images.values())[-1])
    for (whole, zoom), (name, image) in zip(axes.T, images.items(), strict=True):
        picture = image.detach().float().cpu().clamp(0, 1).movedim(0, -1).expand(-1, -1, 3).numpy()
        height, width = picture.shape[:2]
        y, x, h, w = (
            round(share * side) for share, side in ((top, height), (left, width), (part, height), (part, width))
        )
        whole.imshow(picture, interpolation="nearest")
        whole.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, edgecolor="tab:red"))
        zoom.imshow(picture[y : y + max(1, h), x : x + max(1, w)], interpolation="nearest")
        whole.set_title(f"{name}\n{scores[name]:.2f} dB" if name in scores else name, size=9)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    return figure


def _detailed(image: Tensor, part: float = 0.3) -> tuple[float, float, float]:
    """The part of the image (C, H, W) with the most contrast: its top and left as shares of the sides."""
    gray = image.detach().float().cpu().mean(0)
    h, w = (max(1, int(part * side)) for side in gray.shape)
    patches = gray.unfold(0, h, max(1, h // 2)).unfold(1, w, max(1, w // 2))
    best = int(patches.flatten(2).var(2, correction=0).argmax())
    row, column = divmod(best, patches.shape[1])
    return row * max(1, h // 2) / gray.shape[0], column * max(1, w // 2) / gray.shape[1], part


def iterations_figure(trace: Tensor, kept_step: int) -> Figure:
    """PSNR and windowed variance over iterations (T, 4), with the stop that the variance chose."""
    misfit, variance, raw, average = trace.unbind(1)
    has_truth = bool(raw.isfinite().any())
    figure = Figure(figsize=(7, 5.6 if has_truth else 3), layout="constrained")
    axes = figure.subplots(1 + has_truth, 1, sharex=True, squeeze=False)[:, 0]
    iterations = torch.arange(1, len(trace) + 1)
    if has_truth:
        axes[0].plot(iterations, raw, color="0.7", lw=0.8, label="output")
        axes[0].plot(iterations, average, color="tab:blue", label="running average")
        lowest = float(average[len(average) // 20 :].min())
        axes[0].set(ylabel="PSNR (dB)", ylim=(lowest - 0.5, None))
        axes[0].legend(fontsize=8, loc="lower right")
    below = axes[-1]
    below.semilogy(iterations, variance.where(variance.isfinite(), torch.nan), color="tab:orange", label="variance")
    below.semilogy(iterations, misfit, color="tab:green", lw=0.8, label="misfit")
    below.set(xlabel="iteration", ylabel="mean over pixels")
    below.legend(fontsize=8)
    for axis in axes:
        axis.axvline(kept_step, color="tab:red", lw=1, ls="--")
        axis.grid(alpha=0.25)
    axes[0].set_title(f"stop at iteration {kept_step}", size=10)
    return figure


def learning_curves(image: Tensor, iterations: int, **options: object) -> dict[str, Tensor]:
    """The misfit (T,) over iterations for networks that learn an image (C, H, W), noise, and targets in between.

    The noise is uniform; the shuffled pixels are the image's own.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(image.shape, generator=generator)
    order = torch.randperm(image[0].numel(), generator=generator)
    targets = {
        "image": image,
        "image + noise": (image + 25 / 255 * torch.randn(image.shape, generator=generator)).clamp(0, 1),
        "shuffled pixels": image.flatten(1)[:, order].view_as(image),
        "noise": noise,
    }
    plain = {"patience": None, "input_noise": 0.0, **options}
    model = fitted(torch.stack(list(targets.values())), Denoise(None), iterations, **plain)  # type: ignore[arg-type]
    return dict(zip(targets, model.trace[:, :, TRACE.index("misfit")].unbind(1), strict=True))


def learning_figure(curves: dict[str, Tensor]) -> Figure:
    """How fast each target is learned: natural images first, noise last (the paper's figure 2)."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, curve in curves.items():
        axis.loglog(range(1, len(curve) + 1), curve.cpu(), label=name)
    axis.set(xlabel="iteration", ylabel="misfit (MSE)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure
