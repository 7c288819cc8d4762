"""SimCLR: two augmented views of an image should have the same representation, views of other images different ones.

Chen, Kornblith, Norouzi & Hinton, "A Simple Framework for Contrastive Learning of Visual Representations" (2020). Each
of N images is augmented twice, which gives 2N views; the two views of an image are a positive pair, and the other
2(N − 1) are its negatives. With an encoder f and a projection head g, an MLP that is thrown away afterwards:

    h = f(x)        z = g(h)        ℓ(i, j) = −log  exp(sim(z_i, z_j)/τ) / Σ_{k ≠ i} exp(sim(z_i, z_k)/τ)        (eq. 1)

averaged over all positive pairs, where sim is the cosine. The network learns what the augmentations leave unchanged:
see docs/simclr.md for an experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from common.checks import at_least, more_than, one_of
from common.distributed import gather_rows_with_gradient, places_of_this_rank
from common.pictures import Preprocessing
from common.trainer import datamodule_of
from lit_models.networks.encoders import Stem, image_encoder, library_weights
from lit_models.networks.heads import projection_head
from lit_models.parts.contrastive import (
    ContrastiveScores,
    cross_entropy_of_positives,
    similarities,
    spread,
    unit,
)
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.pictures import takes_pictures
from lit_models.parts.precision import full_precision

if TYPE_CHECKING:
    from datamodules.contrastive_views import ViewBatch


def pairwise_logits(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The similarities of eq. 1, with the views of all ranks as candidates.

    Args:
        z: unit vectors (V, B, D): V views of this rank's B images.

    Returns:
        logits (V·B, V·N), sim/τ of each view with all views of the N images of all ranks, −inf with itself; and the
        columns (V·B, V − 1) of its positives, the other views of the same image.
    """
    views, count, _ = z.shape
    everyone = gather_rows_with_gradient(z.transpose(0, 1)).transpose(0, 1)  # (V, N, D)
    # Row v·B + b is view v of this rank's image b, and column v·N + i is view v of image i of all.
    image = places_of_this_rank(count, z.device)
    columns = torch.arange(views, device=z.device)[:, None] * everyone.shape[1] + image  # (V, B) of this rank's views
    with full_precision(z):
        logits = (z / temperature).flatten(0, 1) @ everyone.flatten(0, 1).T
    logits = logits.scatter(1, columns.flatten()[:, None], -torch.inf)
    others = [columns.roll(-shift, 0).flatten() for shift in range(1, views)]
    return logits, torch.stack(others, 1)


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """The normalized temperature-scaled cross-entropy of projections (V, B, D): eq. 1, averaged over positive pairs.

    With more than two views, every two views of an image are a pair, and the other positives stay among the candidates.
    """
    return cross_entropy_of_positives(*pairwise_logits(unit(z), temperature))


Representation = Literal["encoder", "projection"]


class SimCLR(LightningModule):
    """SimCLR, on the views of :class:`datamodules.contrastive_views.ContrastiveViews`.

    Args:
        image_shape: (C, H, W) of the views.
        encoder, stem, width: f, as :func:`lit_models.networks.encoders.image_encoder` takes them.
        pretrained: start from the library's ImageNet weights.
        head_layers: linear layers of g (2 in the paper, 3 in its authors' code).
        head_dim: hidden units of g; by default the size of h.
        head_norm: use batch normalization in g.
        out_dim: size of z.
        temperature: τ.
        representation: the output of :meth:`encode`: h, or z, which keeps less of what the augmentation changes
            (section 4.2).
        decay_vectors: whether weight decay applies to biases and the weights of norms.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: an argument out of range.
    """

    adjustable: ClassVar = ("representation",)
    """arguments that may differ from a checkpoint's"""

    def __init__(
        self,
        image_shape: Sequence[int],
        encoder: str = "resnet18",
        stem: Stem | None = None,
        width: int | None = None,
        pretrained: bool = False,
        head_layers: int = 2,
        head_dim: int | None = None,
        head_norm: bool = False,
        out_dim: int = 128,
        temperature: float = 0.5,
        representation: Representation = "encoder",
        decay_vectors: bool = False,
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.06, momentum=0.9, weight_decay=5e-4),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer),
    ) -> None:
        super().__init__()
        at_least(1, head_dim=head_dim, out_dim=out_dim)
        more_than(0, temperature=temperature)
        one_of(Representation, representation=representation)
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"], logger=False)
        self.temperature, self.representation, self.decay_vectors = temperature, representation, decay_vectors
        self.preprocess = Preprocessing(image_shape, **preprocessing or {})
        self.optimizer, self.scheduler = optimizer, scheduler
        self.encoder = image_encoder(encoder, image_shape, stem=stem, width=width, pretrained=pretrained)
        features = self.encoder.out_dim
        self.head = projection_head(features, head_dim or features, out_dim, head_layers, head_norm)
        self.scores = ContrastiveScores()

    def setup(self, stage: str) -> None:
        data = datamodule_of(self.trainer)
        if getattr(data, "views", 2) + getattr(data, "small_views", 0) < 2:
            raise ValueError(f"views={data.views}: SimCLR expects at least 2 per image")

    # ---- the model -----------------------------------------------------------------------------------------------

    @takes_pictures
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → h (B, D), the representation; the head is only for the loss."""
        h = self.encoder(images)
        output: Tensor = h if self.representation == "encoder" else self.head(h)
        return output

    def project(self, views: Tensor) -> Tensor:
        """(V, B, C, H, W) → (V, B, D): z, as unit vectors.

        All views go through the network together: with batch normalization, separate passes would be a different
        function with a different gradient.
        """
        z = self.head(self.encoder(views.flatten(0, 1)))
        output: Tensor = unit(z).unflatten(0, views.shape[:2])
        return output

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._contrast(batch)

    def _contrast(self, batch: ViewBatch) -> dict[str, Tensor]:
        z = self.project(batch.views)
        if len(batch.small):  # of another size, so by themselves
            z = torch.cat([z, self.project(batch.small)])
        logits, positives = pairwise_logits(z, self.temperature)
        loss = cross_entropy_of_positives(logits, positives)
        return {
            "loss": loss,
            **similarities(logits, positives, self.temperature),
            "projection_std": spread(z.flatten(0, 1)),
        }

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        self.scores.add(self._contrast(batch))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.scores.log(self, "val")

    def on_test_epoch_end(self) -> None:
        self.scores.log(self, "test")

    def predict_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        """The representation of each image of the batch, without augmentation."""
        return {"features": self.encode(batch.images)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler, self.decay_vectors)

    # ---- use -----------------------------------------------------------------------------------------------------

    def export(self) -> dict[str, Tensor]:
        """The encoder's weights under torchvision's or timm's names, for ``load_state_dict(…, strict=False)`` there.

        They do not include a classifier. A ResNet that was not pretrained takes pixels in −1..1.
        """
        return library_weights(self.encoder)
