"""The pictures that explain a restoration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.degradations import Denoise
from lit_models.deep_image_prior import FRAMES, TRACE, fitted
from lit_models.figures.canvas import Captioned, Picture, captioned_page, pixels_of
from lit_models.figures.fonts import DPI
from lit_models.figures.grids import panels

if TYPE_CHECKING:
    from datamodules.restoration import RestorationBatch
    from lit_models.deep_image_prior import DeepImagePrior


@torch.no_grad()
def illustrate(model: DeepImagePrior, batch: RestorationBatch) -> dict[str, Picture]:
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
        "restored": restored_page(shown, scores),
        "iterations": iterations_figure(model.trace[:, 0].float().cpu(), int(model.stop.kept_step[0])),
        "frames": restored_page(frames | {"kept": model.restored[0]}, {}),
    }


def _first(batch: RestorationBatch) -> RestorationBatch:
    return type(batch)(*(tensor[:1] for tensor in batch))


def restored_page(images: dict[str, Tensor], scores: dict[str, float]) -> Image.Image:
    """Images (C, H, W) of one scene, each with the most detailed part of it enlarged below it."""
    last = list(images.values())[-1]
    detail = _detailed(last)
    height, width = pixels_of(last[None], 2.2 * DPI).shape[1:3]
    whole, parts = [], []
    for name, image in images.items():
        picture = Image.fromarray(pixels_of(image[None], image.shape[2])[0])
        box = tuple(share * side for share, side in zip(detail, picture.size * 2, strict=True))
        part = picture.resize((width, height), Image.Resampling.NEAREST, box=box)  # type: ignore[arg-type]
        way = Image.Resampling.BOX if picture.width > width else Image.Resampling.NEAREST
        picture = picture.resize((width, height), way)
        frame = [round(share * side) for share, side in zip(detail, picture.size * 2, strict=True)]
        ImageDraw.Draw(picture).rectangle(frame, outline="red")
        title = f"{name}\n{scores[name]:.2f} dB" if name in scores else name
        whole.append(Captioned(np.asarray(picture), title))
        parts.append(Captioned(np.asarray(part)))
    return captioned_page([*whole, *parts], len(images))


def _detailed(image: Tensor, part: float = 0.3) -> tuple[float, float, float, float]:
    """The part of the image (C, H, W) with the most contrast: left, top, right and bottom as shares of the sides."""
    gray = image.detach().float().cpu().mean(0)
    h, w = (max(1, int(part * side)) for side in gray.shape)
    patches = gray.unfold(0, h, max(1, h // 2)).unfold(1, w, max(1, w // 2))
    best = int(patches.flatten(2).var(2, correction=0).argmax())
    row, column = divmod(best, patches.shape[1])
    left, top = column * max(1, w // 2) / gray.shape[1], row * max(1, h // 2) / gray.shape[0]
    return left, top, left + w / gray.shape[1], top + h / gray.shape[0]


def iterations_figure(trace: Tensor, kept_step: int) -> Figure:
    """PSNR and variance over iterations (T, 4), with the stop that the variance chose."""
    misfit, variance, raw, average = trace.unbind(1)
    has_truth = bool(raw.isfinite().any())
    figure, axes = panels(7, 5.6 if has_truth else 3, rows=1 + has_truth, gaps=(0, 0.15), sharex=True)
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
    figure, (axis,) = panels(6, 3.6, margins=(0.7, 0.15, 0.5, 0.1))
    for name, curve in curves.items():
        axis.loglog(range(1, len(curve) + 1), curve.cpu(), label=name)
    axis.set(xlabel="iteration", ylabel="misfit (MSE)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure
