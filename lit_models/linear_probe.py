"""Offline evaluation of a representation: a linear classifier on a trained encoder, which is frozen or fine-tuned.

The protocol of SimCLR (section 2.3) and MoCo (section 4.1): after pre-training, the head is thrown away and a linear
layer learns the classes from h = encode(x). A frozen encoder stays fixed: its weights and its batch normalization
statistics. With all labels this measures the representation; with 1 % or 10 % of them (``data.label_fraction``) and the
encoder trained too (``frozen: false``), it measures its use when labels are scarce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from common.distributed import global_mean
from common.pictures import Preprocessing, are_several
from lit_models.networks.batch_norm import GlobalBatchNorm1d, whole_batch_norm
from lit_models.networks.encoders import RESNETS, Pooled, ResNet, library_weights
from lit_models.parts.checkpoints import rebuilt, trained_module
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import WarmupCosine, configure_optimizers

if TYPE_CHECKING:
    from datamodules.contrastive_views import ViewBatch


class LinearProbe(LightningModule):
    """A linear classifier on the features that a trained module's ``encode`` computes from images.

    Training uses the first view of :class:`datamodules.contrastive_views.ContrastiveViews`, evaluation the images
    themselves.

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes.
        checkpoint: of a module of this repository that has ``encode``; may contain ``~`` and environment variables.
        network: instead of a checkpoint, a network as :func:`lit_models.networks.encoders.image_encoder` takes it:
            of torchvision or, as ``timm/<name>``, of timm.
        pretrained: for ``network``: begin with that library's ImageNet weights; else with initial ones, which with
            ``frozen: false`` is supervised learning from scratch.
        frozen: train only the linear layer; otherwise the encoder too.
        standardize: normalize the features by batch statistics, without a learned scale, before the linear layer, since
            their scale is arbitrary.
        class_names: names of the classes, for :meth:`classify`.
        encoder: the module's class and arguments; a checkpoint of this class holds them, so it needs no other.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: the checkpoint is not of such a module; the data have no classes.
    """

    adjustable: ClassVar = ("checkpoint", "network", "encoder")
    """arguments that may differ from a checkpoint's"""

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        checkpoint: str = "",
        network: str | None = None,
        pretrained: bool = True,
        frozen: bool = True,
        standardize: bool = True,
        class_names: Sequence[str] | None = None,
        encoder: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer),
    ) -> None:
        super().__init__()
        if network is not None and checkpoint:
            raise ValueError(f"checkpoint={checkpoint} with network={network!r}: expected one of the two")
        if network is None and encoder is None and not checkpoint:
            raise ValueError("checkpoint='' with network=null: expected one of the two")
        if num_classes == 0:
            raise ValueError(
                "num_classes=0: a linear probe learns classes, which these pictures do not have; expected a folder for "
                "each class, or a labels.csv with file,label in each line"
            )
        weights = None
        if encoder is None and network is not None:
            arguments: dict[str, Any] = {
                "image_shape": list(image_shape),
                "encoder": network,
                "representation": "random",
            }
            if pretrained:
                arguments |= {"representation": "pretrained", "stem": "imagenet" if network in RESNETS else None}
            encoder = {"class_path": "lit_models.untrained.Untrained", "init_args": arguments}
        elif encoder is None:
            encoder, weights = trained_module(checkpoint)
        self.encoder = rebuilt(encoder)
        if network is not None:  # a checkpoint of this class brings the weights along
            encoder = {**encoder, "init_args": encoder["init_args"] | {"representation": "random"}}
        if not hasattr(self.encoder, "encode"):
            raise ValueError(f"checkpoint={checkpoint}: contains a {encoder['class_path']}, which has no encode")
        if weights is not None:
            try:
                self.encoder.load_state_dict(weights)
            except RuntimeError as error:
                reason = str(error).splitlines()[1].strip()
                raise ValueError(f"checkpoint={checkpoint}: does not fit {encoder['class_path']} ({reason})") from None
        whole_batch_norm(self.encoder)
        trained_on = list(getattr(self.encoder, "image_shape", encoder["init_args"].get("image_shape", image_shape)))
        if trained_on != list(image_shape):
            raise ValueError(f"checkpoint={checkpoint}: trained on images of {trained_on}, but these are {image_shape}")
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"], logger=False)
        self.hparams["encoder"] = encoder
        self.image_shape, self.frozen = list(image_shape), frozen
        self.preprocess = Preprocessing(self.image_shape, **preprocessing or {})
        self.class_names = list(class_names or [])
        self.optimizer, self.scheduler = optimizer, scheduler
        features = self._train_what_encodes(not frozen)
        self.norm = GlobalBatchNorm1d(features, affine=False) if standardize else nn.Identity()
        self.classifier = nn.Linear(features, num_classes)
        self.loss = MeanMetric()
        self.train()  # Lightning leaves each part in the mode that it finds
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.confusions: Tensor | None = None  # (K, K) counts of the last evaluation: class by what it was taken for

    def _train_what_encodes(self, trained: bool) -> int:
        """Makes the parameters that ``encode`` depends on trainable, if any; returns the size of its output."""
        with evaluating(self.encoder), torch.enable_grad():
            self.encoder.requires_grad_(True)  # an untrained encoder is frozen
            features = self.encoder.encode(torch.zeros(1, *self.image_shape)).flatten(1)  # type: ignore[operator]
            if features.requires_grad:
                features.sum().backward()
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(trained and parameter.grad is not None)
            parameter.grad = None
        size: int = features.shape[1]
        return size

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → logits (B, K)."""
        output: Tensor = self.classifier(self.norm(self.encoder.encode(images).flatten(1)))  # type: ignore[operator]
        return output

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch.views[0])
        loss = global_mean(F.cross_entropy(logits, batch.labels, reduction="none"))
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: ViewBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: ViewBatch, stage: str) -> None:
        logits = self(batch.images)
        self.loss.update(F.cross_entropy(logits, batch.labels, reduction="none"))
        self.accuracy.update(logits, batch.labels)
        self.confusion.update(logits, batch.labels)
        self.log_dict({f"{stage}/loss": self.loss, f"{stage}/accuracy": self.accuracy})

    def on_validation_epoch_end(self) -> None:
        self.confusions = self.confusion.compute()
        self.confusion.reset()

    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any]:
        """The likeliest class of each image of the batch, by name, and its probability."""
        best = self(batch.images).softmax(1).max(1)
        names = [self.class_names[i] if self.class_names else i for i in best.indices.tolist()]
        return {"prediction": names, "probability": best.values}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    @torch.no_grad()
    def classify(self, images: object) -> dict[str, float] | list[dict[str, float]]:
        """The probability of each class by its name, likeliest first; a list of these for several pictures.

        Args:
            images: one or several, as :class:`common.pictures.Preprocessing` takes them.
        """
        with evaluating(self):
            probabilities = self(self.preprocess(images, self)).softmax(1).tolist()
        names = self.class_names or [str(i) for i in range(len(probabilities[0]))]
        found = [dict(sorted(zip(names, row, strict=True), key=lambda item: -item[1])) for row in probabilities]
        return found if are_several(images) else found[0]

    def export(self) -> dict[str, Tensor]:
        """The encoder's weights and the classifier's under torchvision's or timm's names, to be loaded there.

        The features' normalization becomes part of the classifier, which is ``fc`` as in a ResNet: other networks call
        theirs otherwise.

        Raises:
            ValueError: the encoder is not one that these libraries know.
        """
        encoder = next((part for part in self.encoder.modules() if isinstance(part, (ResNet, Pooled))), None)
        if encoder is None:
            raise ValueError(f"encoder={type(self.encoder).__name__}: expected a network of torchvision or timm")
        weight, bias = self.classifier.weight.detach(), self.classifier.bias.detach()
        if isinstance(self.norm, GlobalBatchNorm1d):
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            weight = weight / (self.norm.running_var + self.norm.eps).sqrt()
            bias = bias - weight @ self.norm.running_mean
        return {**library_weights(encoder), "fc.weight": weight.clone(), "fc.bias": bias.clone()}
