"""A classifier of image content that judges generated images; it is trained only on real ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.randomness import keyed_generator
from lit_models.networks.encoders import ConvEncoder

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch

CHANNELS = (16, 32, 64, 64)
FEATURES = 128


def whole_image_encoder(image_shape: Sequence[int], out_dim: int) -> nn.Sequential:
    """A small CNN that is sensitive to positions: images (N, C, H, W) in 0..1 → (N, out_dim)."""
    channels, height, width = image_shape
    rows, columns = (-(-side // 2 ** len(CHANNELS)) for side in (height, width))
    return nn.Sequential(
        # Group norm: the same in training as in use, for one image as for many.
        ConvEncoder(channels, CHANNELS, norm="group"),
        nn.Flatten(),
        nn.Linear(CHANNELS[-1] * rows * columns, out_dim),
    )


class AttributeClassifier(nn.Module):
    """Images (N, C, H, W) in 0..1 → logits (N, values) of each attribute, and the features (N, 128) before them.

    Args:
        image_shape: (C, H, W).
        num_values: number of values of each attribute.
    """

    taken_whole: ClassVar = True
    """of another run's weights: ``trained`` is true of all of it, or of nothing"""
    trained: Tensor

    def __init__(self, image_shape: Sequence[int], num_values: Mapping[str, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(whole_image_encoder(image_shape, FEATURES), nn.ReLU(inplace=True))
        self.heads = nn.ModuleList(nn.Linear(FEATURES, count) for count in num_values.values())
        self.register_buffer("trained", torch.tensor(False))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.body(images)
        return [head(features) for head in self.heads], features


def choices(logits: Sequence[Tensor]) -> Tensor:
    """(N, A): the likeliest value of each attribute, of one (N, values) an attribute."""
    return torch.stack([of_attribute.argmax(1) for of_attribute in logits], 1)


def fit_classifier(
    classifier: AttributeClassifier,
    batches: Iterable[CaptionBatch],
    epochs: int,
    device: torch.device,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> None:
    """Trains it on all images of ``batches`` (of one object each), whose stored pixels are uint8.

    The result depends only on the images: every rank gets the same classifier, and the run's generators are unchanged.
    Attributes that an image lacks (−1) do not count.
    """
    images, objects = (torch.cat(parts) for parts in zip(*((b.images, b.objects[:, 0]) for b in batches), strict=True))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        for module in classifier.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
        classifier.requires_grad_(True).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr)
        total = epochs * -(-len(images) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=keyed_generator("classifier", epoch))
            for rows in order.split(batch_size):
                pixels = images[rows].to(device).float() / 255
                logits, _ = classifier(pixels)
                targets = objects[rows].to(device)
                losses = [
                    F.cross_entropy(of_attribute, targets[:, i], ignore_index=-1, reduction="sum")
                    for i, of_attribute in enumerate(logits)
                ]
                optimizer.zero_grad()
                (torch.stack(losses).sum() / len(rows)).backward()
                optimizer.step()
                schedule.step()
    classifier.requires_grad_(False)
    classifier.trained.fill_(True)
