"""MoCo: contrast with a queue of earlier keys, made by an encoder that follows slowly.

He, Fan, Wu, Xie & Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning" (2020). A query is one
view of an image, its positive key another view of it, and its negatives are the keys of earlier batches (algorithm 1):

    q = f_q(x_q)      k₊ = f_k(x_k)      L_q = −log  exp(q·k₊/τ) / (exp(q·k₊/τ) + Σ_k exp(q·k/τ))        (eq. 1)

    θ_k ← m θ_k + (1 − m) θ_q                                                                          (eq. 2)

where the sum is over the queue.
So there can be many more negatives than images in a batch, and since m is close to 1 they are consistent with each
other, although encoders of different steps made them. Version 2 (Chen, Fan, Girshick & He, "Improved Baselines with
Momentum Contrastive Learning", 2020) has SimCLR's head (``head_layers: 2``), more augmentation and a cosine schedule.

Batch normalization leaks: the query and the positive key of a batch are normalized with the same images, which
distinguishes them from keys of other batches. So the batch is split into groups that are normalized separately
(``bn_splits``), and is shuffled first for the keys (section 3.3).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from common.checks import at_least, more_than, one_of, within
from common.distributed import gather_rows, rows_of_this_rank
from common.pictures import Preprocessing
from common.randomness import keyed_generator
from common.trainer import datamodule_of
from lit_models.networks.batch_norm import split_batch_norm
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


def momentum_at(step: int, steps: int, momentum: float, cosine: bool) -> float:
    """m of eq. 2: constant, or rising to 1 along half a cosine over ``steps`` (MoCo v3, Chen, Xie & He 2021)."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * step / steps)) / 2 if cosine else momentum


class KeyQueue(nn.Module):
    """The ``size`` newest keys (size, D), stored in the checkpoint; the oldest are overwritten first.

    Unfilled places do not count: at first there are no negatives, then those of one batch, and so on.
    """

    keys: Tensor
    steps: Tensor
    enqueued: Tensor

    not_transferred: ClassVar = ("keys", "steps", "enqueued")
    """buffers that a run which starts from another's weights leaves out"""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("steps", torch.zeros(size, dtype=torch.long))  # in which each was enqueued
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.long))  # keys so far

    def logits(self, queries: Tensor, temperature: float) -> Tensor:
        """(B, D) → (B, size): q·k/τ; −inf if there is no key yet."""
        there = torch.arange(len(self.keys), device=queries.device) < self.enqueued
        with full_precision(queries):
            logits = queries @ self.keys.T.to(queries.dtype) / temperature
        return logits.masked_fill(~there, -torch.inf)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, step: int) -> None:
        """Adds keys (N, D), which may be more than the queue holds."""
        total = self.enqueued + len(keys)
        newest = keys[-len(self.keys) :]
        places = (total - len(newest) + torch.arange(len(newest), device=keys.device)) % len(self.keys)
        # New tensors: the loss of this step has yet to read the old ones on its way back.
        self.keys = self.keys.index_copy(0, places, newest.to(self.keys.dtype))
        self.steps = self.steps.index_fill(0, places, step)
        self.enqueued = total

    def age(self, step: int) -> Tensor:
        """The mean number of steps since the keys were enqueued."""
        there = torch.arange(len(self.keys), device=self.keys.device) < self.enqueued
        return ((step - self.steps) * there).sum() / there.sum().clamp_min(1)


MomentumSchedule = Literal["constant", "cosine"]


class MoCo(LightningModule):
    """Momentum contrast, on two views of :class:`datamodules.contrastive_views.ContrastiveViews`: query and key.

    Args:
        image_shape: (C, H, W) of the views.
        encoder, stem, width: as :func:`lit_models.networks.encoders.image_encoder` takes them.
        pretrained: start from the library's ImageNet weights.
        head_layers: linear layers of the projection: 1 (v1) or 2 (v2).
        out_dim: of queries and keys.
        queue_size: K, the number of keys that serve as negatives.
        momentum: m of the key encoder.
        momentum_schedule: ``constant``, or ``cosine``, rising to 1 (MoCo v3).
        temperature: τ: 0.07 in v1, 0.2 in v2.
        bn_splits: number of groups of the global batch that are normalized separately, the authors' number of GPUs; a
            multiple of the number of ranks. 1 normalizes the whole batch, and keys are not shuffled.
        symmetric: each view is the query once and the key once, and both keys are enqueued.
        decay_vectors: whether weight decay applies to biases and the weights of norms, as it does in the authors' code.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: an argument is out of range; the queue holds more keys than there are training images.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        encoder: str = "resnet18",
        stem: Stem | None = None,
        width: int | None = None,
        pretrained: bool = False,
        head_layers: int = 2,
        out_dim: int = 128,
        queue_size: int = 4096,
        momentum: float = 0.99,
        momentum_schedule: MomentumSchedule = "constant",
        temperature: float = 0.2,
        bn_splits: int = 8,
        symmetric: bool = False,
        decay_vectors: bool = True,
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.06, momentum=0.9, weight_decay=5e-4),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer),
    ) -> None:
        super().__init__()
        at_least(1, out_dim=out_dim, queue_size=queue_size, bn_splits=bn_splits)
        within("[0, 1]", momentum=momentum)
        one_of(MomentumSchedule, momentum_schedule=momentum_schedule)
        more_than(0, temperature=temperature)
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"], logger=False)
        self.momentum, self.momentum_schedule, self.temperature = momentum, momentum_schedule, temperature
        self.bn_splits, self.symmetric, self.decay_vectors = bn_splits, symmetric, decay_vectors
        self.preprocess = Preprocessing(image_shape, **preprocessing or {})
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        network = image_encoder(encoder, image_shape, stem=stem, width=width, pretrained=pretrained)
        features = network.out_dim
        head = projection_head(features, features, out_dim, head_layers)
        self.query = nn.Sequential(OrderedDict(encoder=network, head=head))
        if bn_splits > 1:
            split_batch_norm(self.query, bn_splits)
        self.key = deepcopy(self.query).requires_grad_(False)  # head included
        self.queue = KeyQueue(queue_size, out_dim)
        # The same on all ranks: DDP need not send it in each step.
        self._ddp_params_and_buffers_to_ignore = [f"queue.{name}" for name, _ in self.queue.named_buffers()]
        self.steps = 1  # of the training, for the cosine
        self.scores = ContrastiveScores()

    def setup(self, stage: str) -> None:
        data: Any = datamodule_of(self.trainer)
        views, small = getattr(data, "views", 2), getattr(data, "small_views", 0)
        if (views, small) != (2, 0):
            raise ValueError(f"views={views}, small_views={small}: MoCo expects 2 and 0, a query and a key")

    def on_fit_start(self) -> None:
        data: Any = datamodule_of(self.trainer)
        size = len(self.queue.keys)
        if hasattr(data, "num_training_images") and size > (count := data.num_training_images):
            raise ValueError(
                f"queue_size={size}: expected at most the {count} training images, because in a longer queue each "
                "image meets its own keys as negatives"
            )
        if self.momentum_schedule == "cosine":
            if self.trainer.estimated_stepping_batches == math.inf:
                raise ValueError("momentum_schedule='cosine': needs trainer.max_epochs or max_steps as its length")
            self.steps = int(self.trainer.estimated_stepping_batches)

    # ---- the model -----------------------------------------------------------------------------------------------

    @takes_pictures
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → (B, D): the query encoder's representation."""
        output: Tensor = self.query.encoder(images)  # type: ignore[operator]
        return output

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        first, second = batch.views
        losses, keys = [], []
        for x_q, x_k in ((first, second), (second, first))[: 1 + self.symmetric]:
            q = unit(self.query(x_q))
            k, of_all_ranks = self.keys(x_k, batch_idx)
            logits = self.logits(q, k)
            losses.append(cross_entropy_of_positives(logits, self.zeros(logits)))
            keys.append(of_all_ranks)
        # After both losses: else a query of one half would meet its own image's key as a negative.
        age = self.queue.age(self.global_step)
        for of_all_ranks in keys:
            self.queue.enqueue(of_all_ranks, self.global_step)
        return {
            "loss": sum(losses[1:], losses[0]),
            **similarities(logits, self.zeros(logits), self.temperature),
            "projection_std": spread(q),
            "queue_age": age,
        }

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries and their keys, unit vectors (B, D) → (B, 1 + K): the positive first."""
        positive = (q * k).sum(1, keepdim=True) / self.temperature
        return torch.cat([positive, self.queue.logits(q, self.temperature)], 1)

    @staticmethod
    def zeros(logits: Tensor) -> Tensor:
        """The column of each query's positive."""
        return torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)

    @torch.no_grad()
    def keys(self, views: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The keys (B, D) of this rank's views (B, C, H, W), and those of all ranks in the order of the global batch.

        The global batch is shuffled, so that images share batch-norm groups with different images than as queries.
        """
        if self.bn_splits == 1:
            k = unit(self.key(views))
            return k, gather_rows(k)
        everyone = gather_rows(views)
        generator = keyed_generator(self.seed, "shuffle", self.current_epoch, batch_idx)
        order = torch.randperm(len(everyone), generator=generator).to(views.device)
        shuffled = unit(self.key(rows_of_this_rank(everyone[order])))
        of_all_ranks = gather_rows(shuffled)[order.argsort()]
        return rows_of_this_rank(of_all_ranks), of_all_ranks

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.follow(momentum_at(self.global_step, self.steps, self.momentum, self.momentum_schedule == "cosine"))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Eq. 2: moves the key encoder and its head toward the query's."""
        torch._foreach_lerp_(list(self.key.parameters()), list(self.query.parameters()), 1 - momentum)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        first, second = batch.views
        q, k = unit(self.query(first)), unit(self.key(second))
        logits = self.logits(q, k)
        scores = similarities(logits, self.zeros(logits), self.temperature)
        loss = cross_entropy_of_positives(logits, self.zeros(logits))
        self.scores.add({"loss": loss, **scores, "projection_std": spread(q)})

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
        """The query encoder's weights, named and used like those of :meth:`lit_models.simclr.SimCLR.export`."""
        return library_weights(self.query.encoder)  # type: ignore[arg-type]
