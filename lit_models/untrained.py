"""Representations that learn nothing from the task: baselines for every other row of the table.

The pixels; their principal components (Pearson 1901), as many as an encoder has features; those features with the
encoder's initial weights; and with the ImageNet weights of a library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from common.checks import one_of
from common.pictures import Preprocessing
from common.trainer import datamodule_of
from lit_models.networks.encoders import RESNETS, Stem, image_encoder
from lit_models.parts.pictures import takes_pictures
from lit_models.scores.pca import find_components

Representation = Literal["pixels", "pca", "random", "pretrained"]


class Untrained(LightningModule):
    """A representation measured like a trained one: one epoch, in which nothing is trained.

    Args:
        image_shape: (C, H, W).
        representation: ``pixels``, ``pca``, ``random`` or ``pretrained``.
        encoder, stem, width: as :func:`lit_models.networks.encoders.image_encoder` takes them; they also determine the
            number of principal components.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.

    Raises:
        ValueError: no such representation.
    """

    not_transferred: ClassVar = ("mean", "components")
    """buffers that a run which starts from another's weights leaves out"""

    mean: Tensor
    components: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        representation: Representation,
        encoder: str = "conv",
        stem: Stem | None = None,
        width: int | None = None,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        one_of(Representation, representation=representation)
        self.save_hyperparameters(logger=False)
        pretrained = representation == "pretrained"
        if pretrained:  # a checkpoint brings the weights along
            stem = "imagenet" if encoder in RESNETS else stem
            self.hparams.update(representation="random", stem=stem)
        self.representation, self.preprocess = representation, Preprocessing(image_shape, **preprocessing or {})
        network = image_encoder(encoder, image_shape, stem=stem, width=width, pretrained=pretrained)
        is_network = representation in ("random", "pretrained")
        self.encoder: nn.Module = network.requires_grad_(False) if is_network else nn.Flatten()
        self.nothing = nn.Parameter(torch.zeros(0))  # what is trained
        if representation == "pca":
            pixels = int(torch.tensor(image_shape).prod())
            self.register_buffer("mean", torch.zeros(pixels))
            self.register_buffer("components", torch.zeros(min(network.out_dim, pixels), pixels))

    @takes_pictures
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → (B, D)."""
        features: Tensor = self.encoder(images)
        return (features - self.mean) @ self.components.T if self.representation == "pca" else features

    def on_fit_start(self) -> None:
        """Computes the principal components of the training images."""
        if self.representation != "pca":
            return
        data = datamodule_of(self.trainer)
        images = (batch.images for batch in data.plain_batches("train", self.device))
        find_components(images, self.mean, self.components)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.nothing.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The representation of each image of the batch."""
        return {"features": self.encode(batch.images).flatten(1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.nothing], lr=0.0)
