"""The autoencoder: a fully convolutional encoder and decoder with a bottleneck, which learns from images alone.

Rumelhart, Hinton & Williams (1986); Hinton & Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks"
(2006). The code is the representation of a data set without annotations:

    code = encoder(x)        x̂ = decoder(code)        loss = |x̂ − x|², or another distance

A linear autoencoder finds the subspace of PCA, so a code has to beat the same number of principal components: they are
computed in the same run, and their error is logged beside the code's. With ``corruption``, the encoder sees a damaged
image and has to restore the original (Vincent et al., "Extracting and Composing Robust Features with Denoising
Autoencoders", 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.checks import at_least, one_of, within
from common.distributed import global_mean
from common.pictures import Preprocessing
from common.randomness import normal_of_samples, uniform_of_samples
from common.trainer import datamodule_of
from lit_models.networks.encoders import image_encoder
from lit_models.networks.image_coders import conv_down, conv_up_double
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.pictures import takes_pictures
from lit_models.scores.pca import find_components

if TYPE_CHECKING:
    from datamodules.parts.image_sets import ImageBatch

PCA_MOST = 4096
"""number of values in an image above which PCA, whose cost grows with its cube, is left out"""

Loss = Literal["mse", "l1", "bce"]
Corruption = Literal["none", "noise", "mask"]


def reconstruction_loss(kind: Loss, output: Tensor, images: Tensor) -> Tensor:
    """(B,): the mean over an image's pixels of (x̂ − x)², of |x̂ − x|, or of the cross-entropy of logits, in nats."""
    if kind == "mse":
        each = (output - images).square()
    elif kind == "l1":
        each = (output - images).abs()
    else:
        each = F.binary_cross_entropy_with_logits(output, images, reduction="none")
    return each.flatten(1).mean(1)


class Autoencoder(LightningModule):
    """A fully convolutional autoencoder of images of any size, down to the smallest that its code allows.

    n layers of stride 2 map an image of H×W to ⌈H/2ⁿ⌉×⌈W/2ⁿ⌉, and a last convolution maps that to the code. If the
    sides are not multiples of 2ⁿ, the image is padded by repeating its edge, and the output is cropped.

    Args:
        image_shape: (C, H, W) of the training images; other images need the same C.
        channels: of the layers of stride 2.
        code_channels: of the code.
        code_size: the code's map is ``code_size``×``code_size`` for images of ``image_shape``, which determines the
            kernel of the last convolution; ``null`` keeps the map unchanged. With 1 the code is a vector.
        encoder, width: a network of :func:`lit_models.networks.encoders.image_encoder`, shared with other techniques,
            followed by a linear layer, replaces the encoder's convolutions; images must then have ``image_shape``.
        loss: ``mse``, ``l1`` or ``bce``.
        corruption: of the encoder's input in training: ``noise`` adds a Gaussian of deviation ``corruption_level``,
            ``mask`` blackens that share of the pixels.
        corruption_level: see ``corruption``.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: the code size is larger than the map; an argument is out of range.
    """

    not_transferred: ClassVar = ("pca_mean", "pca_components")
    """buffers that a run which starts from another's weights leaves out"""

    pca_mean: Tensor
    pca_components: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        code_channels: int = 32,
        code_size: int | None = 1,
        encoder: str | None = None,
        width: int | None = None,
        loss: Loss = "mse",
        corruption: Corruption = "none",
        corruption_level: float = 0.25,
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer, warmup=0.05),
    ) -> None:
        super().__init__()
        one_of(Loss, loss=loss)
        one_of(Corruption, corruption=corruption)
        within("[0, 1)", corruption_level=corruption_level)
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.image_shape, self.stride = list(image_shape), 2 ** len(channels)
        self.preprocess = Preprocessing(self.image_shape, **preprocessing or {})
        self.loss, self.corruption, self.corruption_level = loss, corruption, corruption_level
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        side = min(-(-side // self.stride) for side in self.image_shape[1:])
        if code_size is not None and not 1 <= code_size <= side:
            raise ValueError(
                f"code_size={code_size}: expected 1 to {side}, the map's size after {len(channels)} layers"
            )
        if encoder is not None and code_size != 1:
            raise ValueError(f"code_size={code_size}: expected 1 with encoder={encoder!r}, whose output is a vector")
        self.kernel = kernel = 1 if code_size is None else side - code_size + 1
        layers = [self.image_shape[0], *channels]
        if encoder is None:
            self.encoder = nn.Sequential(conv_down(layers), nn.Conv2d(channels[-1], code_channels, kernel))
        else:
            network = image_encoder(encoder, self.image_shape, width=width)
            to_code = nn.Linear(network.out_dim, code_channels)
            self.encoder = nn.Sequential(network, to_code, nn.Unflatten(1, (code_channels, 1, 1)))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(code_channels, channels[-1], kernel), nn.ReLU(), conv_up_double(layers)
        )
        rows, columns = (-(-side // self.stride) - kernel + 1 for side in self.image_shape[1:])
        self.code_shape = [code_channels, rows, columns]
        self.code_dim = math.prod(self.code_shape)
        pixels = math.prod(self.image_shape)
        self.compares = pixels <= PCA_MOST
        # Of the training images, with as many components as the code has numbers; found when the training starts.
        self.register_buffer("pca_mean", torch.full((pixels,), torch.nan))
        self.register_buffer("pca_components", torch.zeros(min(self.code_dim, pixels) * self.compares, pixels))

        self.val_loss, self.mse, self.pca_mse = MeanMetric(), MeanMetric(), MeanMetric()

    # ---- the model -----------------------------------------------------------------------------------------------

    def code(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → (B, code_channels, h, w)."""
        height, width = images.shape[2:]
        if min(height, width) <= (self.kernel - 1) * self.stride:
            least = (self.kernel - 1) * self.stride + 1
            raise ValueError(f"images of {height}×{width}: expected at least {least}×{least} for this code")
        right, below = -width % self.stride, -height % self.stride
        padded = F.pad(images, (0, right, 0, below), mode="replicate") if right or below else images
        code: Tensor = self.encoder(padded)
        return code

    @takes_pictures
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → (B, D): the code as a vector."""
        return self.code(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → the decoder's output, of the same shape: logits for ``bce``."""
        output: Tensor = self.decoder(self.code(images))[:, :, : images.shape[2], : images.shape[3]]
        return output

    def to_pixels(self, output: Tensor) -> Tensor:
        """The decoder's output as images in 0..1."""
        return output.sigmoid() if self.loss == "bce" else output.clamp(0, 1)

    def corrupted(self, images: Tensor, *key: int) -> Tensor:
        """The encoder's input in training: a function of ``key``."""
        count, device = len(images), images.device
        if self.corruption == "noise":
            noise = normal_of_samples(count, images[0].numel(), "noise", *key, device=device).view_as(images)
            return images + self.corruption_level * noise.to(images.dtype)
        if self.corruption == "mask":  # all channels of a pixel
            draws = uniform_of_samples(count, images[0, 0].numel(), "mask", *key, device=device)
            return images * (draws.view_as(images[:, :1]) >= self.corruption_level)
        return images

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        output = self(self.corrupted(batch.images, self.seed, self.current_epoch, batch_idx))
        return {"loss": global_mean(reconstruction_loss(self.loss, output, batch.images))}

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Computes the principal components of the training images, unless a resumed run already has them."""
        if not self.compares or self.trainer.ckpt_path is not None:
            return
        data = datamodule_of(self.trainer)
        images = (batch.images for batch in data.plain_batches("train", self.device))
        find_components(images, self.pca_mean, self.pca_components)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: ImageBatch, stage: str) -> None:
        output = self(batch.images)
        self.val_loss.update(reconstruction_loss(self.loss, output, batch.images))
        self.mse.update(reconstruction_loss("mse", self.to_pixels(output), batch.images))
        self.log_dict({f"{stage}/loss": self.val_loss, f"{stage}/mse": self.mse})
        if self.compares:
            self.pca_mse.update(reconstruction_loss("mse", self.pca_reconstruction(batch.images), batch.images))
            self.log(f"{stage}/pca_mse", self.pca_mse)

    def pca_reconstruction(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) reconstructed from as many principal components as the code has numbers."""
        centered = images.flatten(1) - self.pca_mean
        restored = self.pca_mean + centered @ self.pca_components.T @ self.pca_components
        return restored.view_as(images).clamp(0, 1)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """The code of each image of the batch, and the image that is rebuilt from it."""
        return {"code": self.encode(batch.images), "reconstruction": self.to_pixels(self(batch.images))}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, images: object) -> Tensor:
        """(B, C, H, W) in 0..1: pictures, as :class:`common.pictures.Preprocessing` takes them, rebuilt."""
        with evaluating(self):
            return self.to_pixels(self(self._batch(images)))

    @torch.no_grad()
    def interpolate(self, a: object, b: object, steps: int = 8) -> Tensor:
        """(steps, C, H, W): images decoded on the straight line between the codes of two images."""
        at_least(2, steps=steps)
        height, width = self.image_shape[1:]
        with evaluating(self):
            first, last = (self.code(self._batch(image)) for image in (a, b))
            t = torch.linspace(0, 1, steps, dtype=first.dtype, device=self.device).view(-1, 1, 1, 1)
            return self.to_pixels(self.decoder(torch.lerp(first, last, t))[:, :, :height, :width])

    def _batch(self, images: object) -> Tensor:
        return self.preprocess(images, self)
