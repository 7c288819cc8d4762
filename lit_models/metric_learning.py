"""Metric learning: a representation supervised by examples of what is alike (+) and what is not (−).

Hadsell, Chopra & LeCun, "Dimensionality Reduction by Learning an Invariant Mapping" (2006): two images go through the
same (siamese) network, and with d the distance of their embeddings

    L = ½ d²   for a pair that is alike,       L = ½ max(0, m − d)²   for one that is not                    (eq. 4)

Schroff, Kalenichenko & Philbin, "FaceNet" (2015): an anchor should be nearer to its positive than to its negative,

    L = max(0, d(a, p)² − d(a, n)² + m)                                                                      (eq. 3)

Most triplets soon become easy, so a miner chooses hard ones: the hardest of a batch (Hermans, Beyer & Leibe 2017), the
semi-hard ones, whose negative is farther than the positive, but by less than the margin (FaceNet), or by distance (Wu
et al. 2017). Khosla et al., "Supervised Contrastive Learning" (2020), put all positives of a batch into the softmax of
SimCLR. The baseline for all of them is learning to classify and throwing the classifier away.

Losses, miners, distances and reducers are those of pytorch-metric-learning, under their names there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from common.checks import at_least, nearest, one_of
from common.distributed import gather_rows, gather_rows_with_gradient, world_size
from common.pictures import Preprocessing, are_several
from common.randomness import keyed_generator
from common.trainer import datamodule_of
from lit_models.networks.encoders import Stem, image_encoder, library_weights
from lit_models.networks.heads import projection_head
from lit_models.parts.contrastive import spread
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.pictures import takes_pictures
from lit_models.parts.precision import full_precision
from lit_models.scores.retrieval import (
    Verification,
    bootstrap_interval,
    nearest_of,
    retrieval_scores,
    verification,
)

if TYPE_CHECKING:
    from datamodules.labelled_pairs import ExampleBatch

SHOWN = 400
"""number of images in the figures"""
COLLAPSED = 0.01
"""mean distance of negative pairs, relative to the mean length of the embeddings or the margin of the loss, below which
the embeddings count as one point"""


# ---- losses ----------------------------------------------------------------------------------------------------------


class SiameseLoss(losses.ContrastiveLoss):
    """Equation 4 of Hadsell et al. 2006: ½ d² of positive pairs, ½ max(0, margin − d)² of negative ones.

    pytorch-metric-learning's ``ContrastiveLoss`` is the same without the squares.

    Raises:
        ValueError: the distance is a similarity, or is already squared.
    """

    def __init__(self, margin: float = 1.0, **options: Any) -> None:
        super().__init__(pos_margin=0, neg_margin=margin, **options)
        if self.distance.is_inverted or self.distance.power != 1:
            name, power = type(self.distance).__name__, self.distance.power
            raise ValueError(
                f"distance={name} of power {power}: expected a distance of power 1, because the loss squares it"
            )

    def get_per_pair_loss(self, pair_dists: Tensor, pos_or_neg: str) -> Tensor:
        output: Tensor = super().get_per_pair_loss(pair_dists, pos_or_neg).square() / 2
        return output


class ClassificationLoss(nn.Module):
    """The cross-entropy of a linear classifier of the embeddings: the baseline, which compares no pairs."""

    def __init__(self, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(embedding_size, num_classes)

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: object = None) -> Tensor:
        return F.cross_entropy(self.classifier(embeddings), labels)


Representation = Literal["encoder", "embedding"]

OWN = {"SiameseLoss": SiameseLoss, "ClassificationLoss": ClassificationLoss}
FACENET = {"name": "LpDistance", "power": 2}
"""the default distance of TripletMarginLoss: squared, unlike the library's own"""


def chosen(argument: str, spec: Mapping[str, Any], library: ModuleType, **facts: Any) -> Any:
    """An object of pytorch-metric-learning or :data:`OWN`, by ``name``; the rest of ``spec`` are its arguments.

    Args:
        argument: name of the option, for messages.
        facts: arguments that are passed if the object has them.

    Raises:
        ValueError: no such name or argument.
    """
    options = dict(spec)
    name = options.pop("name", None)
    known = {key: value for key, value in vars(library).items() if isinstance(value, type)} | (
        OWN if library is losses else {}
    )
    if name not in known:
        hint = nearest(str(name), known)
        raise ValueError(f"{argument}.name={name!r}: expected a class of {library.__name__}{hint}")
    wanted: set[str] = set()
    for base in known[name].__mro__:
        wanted |= set(signature(vars(base)["__init__"]).parameters) if "__init__" in vars(base) else set()
    wanted -= {"self", "args", "kwargs", "options"}
    if unknown := [key for key in options if key not in wanted]:
        raise ValueError(
            f"{argument}.{unknown[0]}: {name} has no such argument; expected one of {', '.join(sorted(wanted))}"
            f"{nearest(unknown[0], wanted)}"
        )
    try:
        return known[name](**{key: value for key, value in facts.items() if key in wanted}, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{argument}={dict(spec)}: {error}") from error


def pairs_of(same: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pairs in groups as pytorch-metric-learning takes them for embeddings (N·G, D).

    Args:
        same: (N, G − 1), whether each example is like its group's anchor.

    Returns:
        Rows of the anchors and of the others of positive pairs, and those of negative pairs.
    """
    size = same.shape[1] + 1
    (alike, other_alike), (unlike, other_unlike) = (pairs.nonzero().unbind(1) for pairs in (same, ~same))
    return alike * size, alike * size + 1 + other_alike, unlike * size, unlike * size + 1 + other_unlike


@contextmanager
def drawing(device: torch.device, *key: int | str) -> Iterator[None]:
    """Makes torch's draws inside (those of a miner) a function of ``key``, equal on all ranks, without side effects."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(keyed_generator(*key).initial_seed())
        yield


# ---- the module ------------------------------------------------------------------------------------------------------


class MetricLearning(LightningModule):
    """An image encoder that is trained on the examples of :class:`datamodules.labelled_pairs.LabelledPairs`.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: for losses with weights for each class.
        encoder, stem, width, pretrained: as :func:`lit_models.networks.encoders.image_encoder` takes them.
        out_dim: of the embedding that the loss compares; ``null`` uses the encoder's own features.
        head_layers, head_dim: number of linear layers from the features to the embedding, and their hidden units.
        normalize: whether embeddings have length 1.
        loss: ``name`` and arguments of one of pytorch-metric-learning's losses, of :class:`SiameseLoss` or of
            :class:`ClassificationLoss`.
        miner: one of its miners, which choose among the pairs or triplets of a batch; ``null`` uses all.
        distance, reducer: of its distances and reducers; ``null`` means the loss's own, and for triplets FaceNet's
            squared distance. A miner uses the loss's distance. They apply to embeddings of length 1 if ``normalize`` is
            true or the distance has ``normalize_embeddings``.
        freeze_batch_norm: freeze the batch-norm statistics of the encoder, as is usual with pretrained weights and
            small batches.
        representation: the output of :meth:`encode`: the encoder's features, or the embedding.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: an argument is out of range; a loss, miner, distance or reducer does not exist, or does not fit the
            loss.
    """

    adjustable: ClassVar = ("representation",)
    """arguments that may differ from a checkpoint's"""
    threshold: Tensor

    not_transferred: ClassVar = ("threshold",)
    """buffers that a run which starts from another's weights leaves out"""

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        encoder: str = "resnet18",
        stem: Stem | None = None,
        width: int | None = None,
        pretrained: bool = False,
        out_dim: int | None = 128,
        head_layers: int = 1,
        head_dim: int | None = None,
        normalize: bool = True,
        loss: dict[str, Any] = {"name": "TripletMarginLoss", "margin": 0.2},  # noqa: B006 - it is only read
        miner: dict[str, Any] | None = None,
        distance: dict[str, Any] | None = None,
        reducer: dict[str, Any] | None = None,
        freeze_batch_norm: bool = False,
        representation: Representation = "encoder",
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer),
    ) -> None:
        super().__init__()
        at_least(1, "or null for the encoder's own features", out_dim=out_dim)
        one_of(Representation, representation=representation)
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"], logger=False)
        self.image_shape, self.normalize, self.representation = list(image_shape), normalize, representation
        self.preprocess = Preprocessing(self.image_shape, **preprocessing or {})
        self.freeze_batch_norm = freeze_batch_norm
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        self.encoder = image_encoder(encoder, image_shape, stem=stem, width=width, pretrained=pretrained)
        features = self.encoder.out_dim
        self.head: nn.Module = nn.Identity()
        if out_dim is not None:
            self.head = projection_head(features, head_dim or features, out_dim, head_layers)
        shared: dict[str, Any] = {}
        if loss.get("name") == "ClassificationLoss":
            for argument, value in (("miner", miner), ("distance", distance), ("reducer", reducer)):
                if value is not None:
                    raise ValueError(
                        f"{argument}={value}: expected null with ClassificationLoss, which does not compare pairs"
                    )
        if distance is None and loss.get("name") == "TripletMarginLoss":
            distance = FACENET
        if distance:
            shared["distance"] = chosen("distance", distance, distances)
        if reducer:
            shared["reducer"] = chosen("reducer", reducer, reducers)
        self.loss = chosen("loss", loss, losses, num_classes=num_classes, embedding_size=out_dim or features, **shared)
        measure = getattr(self.loss, "distance", None)
        # All normalize unless they are told not to, and a cosine always does.
        if (
            measure
            and "normalize_embeddings" not in (distance or {})
            and type(measure) is not distances.CosineSimilarity
        ):
            measure.normalize_embeddings = normalize
        self.miner = chosen("miner", miner, miners, **({"distance": measure} if measure else {})) if miner else None
        self.margin = 0.0  # as a distance of embeddings, where they are measured as they are
        if isinstance(measure, distances.LpDistance) and not measure.normalize_embeddings:
            margin = getattr(self.loss, "neg_margin", getattr(self.loss, "margin", 0))
            self.margin = max(0.0, float(margin)) ** (1 / measure.power)

        self._evaluated: list[tuple[Tensor, Tensor]] = []  # embeddings and labels, on this rank
        self.register_buffer("threshold", torch.tensor(torch.nan))  # between pairs that are alike and others
        # Of the last evaluation, for its figures:
        self.verification: Verification | None = None  # of all pairs
        self.examples: list[tuple[Tensor, Tensor]] = []  # some images and their labels
        self.train()  # Lightning leaves each part in the mode that it finds

    def train(self, mode: bool = True) -> MetricLearning:
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def setup(self, stage: str) -> None:
        size = getattr(datamodule_of(self.trainer), "group_size", 1) if stage == "fit" else 1
        if size > 1 and self.miner is not None:
            raise ValueError(
                f"miner={type(self.miner).__name__}: expected null, because data.groups says what is compared"
            )
        # Others compare an anchor's positives with its negatives, of which a pair has only one.
        if size == 2 and not isinstance(self.loss, losses.ContrastiveLoss):
            raise ValueError(
                f"loss.name={type(self.loss).__name__!r}: expected 'SiameseLoss' or 'ContrastiveLoss', because "
                "data.groups are pairs"
            )
        if size == 3 and not isinstance(self.loss, losses.GenericPairLoss | losses.TripletMarginLoss):
            raise ValueError(
                f"loss.name={type(self.loss).__name__!r}: expected a loss of pairs or triplets, because data.groups "
                "are triplets"
            )

    # ---- the model -----------------------------------------------------------------------------------------------

    @takes_pictures
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → the representation (B, D)."""
        return self.encoder(images) if self.representation == "encoder" else self.embed(images)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 → the embedding (B, out_dim), whose distances are learned."""
        z = self.head(self.encoder(images))
        z = z.to(torch.promote_types(z.dtype, torch.float))
        return F.normalize(z, dim=1) if self.normalize else z

    def training_step(self, batch: ExampleBatch, batch_idx: int) -> dict[str, Tensor]:
        shape = batch.images.shape[:2]
        z = self.embed(batch.images.flatten(0, 1)).unflatten(0, shape)
        # Pairs and triplets are formed across ranks: each has all embeddings, and the loss of all.
        z = gather_rows_with_gradient(z).flatten(0, 1)
        labels, same = gather_rows(batch.labels).flatten(), gather_rows(batch.same.long()).bool()
        with full_precision(z), drawing(z.device, self.seed, self.current_epoch, batch_idx):
            if shape[1] > 1:
                loss, mined = self.loss(z, None, pairs_of(same)), None
            else:
                mined = self.miner(z, labels) if self.miner else None
                loss = self.loss(z, labels, mined)
        scores = {"loss": loss, "embedding_std": spread(F.normalize(z.detach(), dim=1))}
        if mined is not None:
            scores["mined"] = z.new_tensor(float(len(mined[0])))
        return scores

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.examples, self._evaluated = [], []

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: ExampleBatch, batch_idx: int) -> None:
        self._collect(batch, int(sum(self.trainer.num_val_batches)))

    def test_step(self, batch: ExampleBatch, batch_idx: int) -> None:
        self._collect(batch, int(sum(self.trainer.num_test_batches)))

    def _collect(self, batch: ExampleBatch, num_batches: int) -> None:
        images, labels = batch.images[:, 0], batch.labels[:, 0]
        self._evaluated.append((self.embed(images), labels))
        rows = torch.arange(0, len(images), max(1, len(images) * num_batches // SHOWN))  # data may be sorted by class
        self.examples.append((images[rows], labels[rows]))

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        z, labels = self._log_scores("test")
        data = datamodule_of(self.trainer)
        try:
            data.labeled_subset(1.0)
        except ValueError:  # how it says that no training image is of a class of the test's
            return
        for batch in data.plain_batches("train", self.device):
            with self.trainer.precision_plugin.forward_context():  # as Lightning does around test_step
                self._evaluated.append((self.embed(batch.images), batch.labels))
        gallery, classes = self._collected()
        if torch.isin(labels, classes).any():
            self.log(
                "test/precision_at_1_in_training", float((classes[nearest_of(z, gallery)] == labels).float().mean())
            )

    def _collected(self) -> tuple[Tensor, Tensor]:
        """The embeddings and labels collected on all ranks."""
        z, labels = (torch.cat(parts) for parts in zip(*self._evaluated, strict=True))
        self._evaluated = []
        if world_size() > 1:
            z, labels = (torch.cat(gather_all_tensors(rows)) for rows in (z, labels))
        return z, labels

    def _log_scores(self, stage: str) -> tuple[Tensor, Tensor]:
        z, labels = self._collected()
        scores = retrieval_scores(z, labels)
        found = {name: float(values.mean()) for name, values in scores.items()}
        if stage == "test":
            for name, values in scores.items():
                found[f"{name}_low"], found[f"{name}_high"] = bootstrap_interval(values)
            if not self.normalize:  # comparable to embeddings of length 1, whose order by distance is that by cosine
                by_cosine = retrieval_scores(F.normalize(z, dim=1), labels)
                found |= {f"cosine_{name}": float(values.mean()) for name, values in by_cosine.items()}
        pairs = self.verification = verification(z, labels)
        if stage == "val":
            self.threshold.fill_(pairs.best_threshold())
        found["verification_auc"] = pairs.auc()
        if not self.threshold.isnan():  # as it is of a model that was never validated
            found["verification_accuracy"] = pairs.accuracy(float(self.threshold))
        found |= {"positive_distance": pairs.positive_distance, "negative_distance": pairs.negative_distance}
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()})
        if pairs.negative_distance <= COLLAPSED * max(float(z.norm(dim=1).mean()), self.margin):
            rank_zero_warn(
                f"collapse: all images are embedded in nearly one point (step {self.global_step}, mean distance of "
                f"negative pairs {pairs.negative_distance:.2g}), where the loss equals its margin and has no gradient; "
                "another miner, a lower learning rate or a larger batch may help"
            )
        return z, labels

    def predict_step(self, batch: ExampleBatch, batch_idx: int) -> dict[str, Tensor]:
        """The embedding of each image of the batch."""
        return {"embedding": self.embed(batch.images[:, 0])}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embedding(self, image: object) -> Tensor:
        """The embedding (out_dim,) of one picture, or (B, out_dim) of several.

        Args:
            image: as :class:`common.pictures.Preprocessing` takes it.
        """
        with evaluating(self):
            embeddings = self.embed(self.preprocess(image, self))
        return embeddings if are_several(image) else embeddings[0]

    def distance(self, a: object, b: object) -> float:
        """The Euclidean distance of two images' embeddings."""
        return float((self.embedding(a) - self.embedding(b)).norm())

    def alike(self, a: object, b: object) -> bool:
        """Whether two images are nearer to each other than the threshold that separated validation pairs best.

        Raises:
            ValueError: the model was never validated, so there is no threshold.
        """
        if self.threshold.isnan():
            raise ValueError("threshold=nan: expected a model that was validated")
        return self.distance(a, b) < float(self.threshold)

    def nearest(self, image: object, gallery: Sequence[object], k: int = 5) -> list[tuple[int, float]]:
        """The k images of a gallery that are nearest to an image, as (index in the gallery, distance), nearest first.

        Raises:
            ValueError: the gallery is empty, or k is less than 1.
        """
        at_least(1, k=k)
        if not len(gallery):
            raise ValueError("gallery=[]: expected at least one image")
        query = self.embedding(image)
        found = (torch.cat([self.embedding([other]) for other in gallery]) - query).norm(dim=1)
        smallest = found.topk(min(k, len(gallery)), largest=False)
        return list(zip(smallest.indices.tolist(), smallest.values.tolist(), strict=True))

    def export(self) -> dict[str, Tensor]:
        """The encoder's weights under torchvision's or timm's names: see :meth:`lit_models.simclr.SimCLR.export`."""
        return library_weights(self.encoder)
