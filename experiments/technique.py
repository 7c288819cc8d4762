"""The contract between a technique, its data and what runs them: everything that is asked of either by name.

Nothing here has to be inherited. A LightningModule and a LightningDataModule that Lightning can run, run here; each
protocol below is an offer. Whoever has its members gets what its docstring says, and nobody else is asked for them.

Facts
    What a model must know of its data (``vocab``, ``num_classes``, ``image_shape``, …) is an attribute of the data
    module. It reaches every constructor argument of the model with the same name: :mod:`experiments.facts`. Where a
    checkpoint is used, its facts win: :class:`AdoptsFacts`. Lists of names stand before anything else along a
    dimension of a weight that they index, and ``num_classes`` counts ``class_names``.
Weights from a library
    A model that fetches some asks for them by an argument ``pretrained: bool``, and keeps it out of its checkpoint
    (``save_hyperparameters(ignore=["pretrained", …])``): it is false whenever a checkpoint's weights follow.
Batches
    are NamedTuples whose first field has a row for each sample. ``training_step(batch: ViewBatch, …)`` says which kind
    it takes, and the first batch is compared with that before the first step. Lists, dicts and tensors work too: their
    first tensor's rows are the samples. A batch that is counted in something else is :class:`Counted`.
Predictions
    ``predict_step`` returns columns by their names, with a value for each sample: a list of texts or numbers; a tensor,
    where (B, C, H, W) with C 1 or 3 are pictures in 0..1; or a list of drawings, which have ``to_svg()``. Whatever
    Lightning takes works too. :mod:`experiments.predictions` writes it beside the names of the samples.
Training metrics
    ``training_step`` returns the loss, or a dict of ``loss`` and scalars to average, which are logged as ``train/…``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# ---- what a technique may offer --------------------------------------------------------------------------------------


@runtime_checkable
class Encodes(Protocol):
    """A representation learner: the probe measures its features wherever the data are :class:`LabeledImages`."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), floats in 0..1 at the data's size → features (B, …), which the probe flattens."""
        ...


@runtime_checkable
class Illustrates(Protocol):
    """Draws pictures that explain the state of the technique; they are written by :mod:`experiments.callbacks.figures`.

    For modules from outside. The pictures of a technique of this project are drawn by ``illustrate(module, batch)`` in
    ``lit_models/figures/<technique>.py``, which is found by its name.
    """

    def illustrate(self, batch: Any) -> Mapping[str, Figure | Image | str]:
        """By name: figures of matplotlib, images of Pillow, SVG text, or plain text under a name that ends in ``.txt``.

        Args:
            batch: the first batch of the last evaluation.
        """
        ...


@runtime_checkable
class Adjustable(Protocol):
    """Has arguments that may be changed on the command line when a checkpoint is evaluated."""

    adjustable: ClassVar[tuple[str, ...]]
    """names of constructor arguments; elsewhere, an argument that contradicts the checkpoint is refused"""


@runtime_checkable
class StartsAnew(Protocol):
    """A part of a model, or all of it, with a state that belongs to one training: a queue, a stop, a threshold."""

    not_transferred: ClassVar[tuple[str, ...]]
    """names of its parameters, buffers and parts; a run that starts from another's weights leaves them out"""


@runtime_checkable
class TakenWhole(Protocol):
    """A part of a model that was trained beforehand, and is taken from another run's weights whole or not at all."""

    taken_whole: ClassVar[bool]


@runtime_checkable
class MakesOptimizer(Protocol):
    """Makes its optimizers by calling ``optimizer``, so that a rule for the global batch can scale the rate."""

    optimizer: Callable[..., Optimizer]


@runtime_checkable
class AccumulatesGradients(Protocol):
    """A module with manual optimization, which accumulates gradients itself because the Trainer can't."""

    accumulate_grad_batches: int


# ---- what a data module may offer ------------------------------------------------------------------------------------


@runtime_checkable
class AdoptsFacts(Protocol):
    """Data that a trained model can be used on although they are not those that it was trained on."""

    def adopt(self, facts: Mapping[str, Any]) -> Collection[str]:
        """Takes over a checkpoint's facts, by name: a word, a class, a unit then means what it does to the model.

        Called right after the constructor, before ``setup``. Without this method, or where a fact is not among those
        that it returns, such data are refused.

        Args:
            facts: those in which the data differ.

        Returns:
            the names of the facts that no longer stand in the way: taken over, or of no matter to these data.

        Raises:
            ValueError: they can't be; names the first differences.
        """
        ...


@runtime_checkable
class TakesOwnDefaults(Protocol):
    """A class that, named on the command line in the place of another one, takes nothing over from that one.

    Elsewhere, the arguments that both have stay as they were chosen; those of optimizers and schedules never do.
    """

    takes_own_defaults: ClassVar[bool]


@runtime_checkable
class ListsSamples(Protocol):
    """Data whose samples have names, by which a person finds them in what ``predict`` writes."""

    parts_are_cut: bool
    """whether the parts are cut from one whole here, so that other data of the kind are predicted as a whole"""

    @property
    def part_names(self) -> Sequence[str]:
        """The parts that there are: of "train", "val" and "test"."""
        ...

    def plain_loader(self, part: str) -> Any:
        """A loader of each sample of a part once, in the order of storage and unchanged."""
        ...

    def sample_names(self, part: str) -> Mapping[str, Sequence[Any]]:
        """Columns that say which sample each is, in that order: ``{"file": ["a/1.png", …]}``.

        They have a row for each prediction; where that is not one a sample, ``predict_step`` says by ``row`` which of
        these rows each prediction is about.
        """
        ...


@runtime_checkable
class ReportsResults(Protocol):
    """Data whose field has a format for results, which its own evaluation code reads."""

    def official_results(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """What ``predict`` writes as JSON beside its table; None for predictions of another kind.

        Args:
            rows: of the table: what names each sample, and what ``predict_step`` said of it.
        """
        ...


@runtime_checkable
class LabeledImages(Protocol):
    """Images with labels, of which each can be had once, plain and in order: what the probe needs."""

    num_classes: int

    def plain_loader(self, part: str) -> Any:
        """A TensorLoader of ``part`` ("train", "val" or "test"): each sample once over all ranks, no augmentation.

        Its batches have ``images`` and ``labels`` (B,), -1 where an image has none.
        """
        ...

    def to_float(self, batch: Any) -> Any:
        """A batch of that loader with images as the model takes them."""
        ...

    def labeled_subset(self, fraction: float) -> Tensor:
        """Rows (N,) of a share of the labeled training images, balanced over classes.

        Raises:
            ValueError: there are no labels.
        """
        ...


@runtime_checkable
class TwoViews(Protocol):
    """Images of which there are augmented views: the probe measures how far apart two views of an image are."""

    def two_views(self, batch: Any) -> tuple[Any, Any]:
        """Two batches, each with one view of every image of ``batch``."""
        ...


@runtime_checkable
class Batched(Protocol):
    """Says how many samples a batch of one device has, so that the global batch can be stated and scaled by."""

    batch_size: int


# ---- what a loader or a batch may offer ------------------------------------------------------------------------------


@runtime_checkable
class Fingerprinted(Protocol):
    """A loader that knows its data: a run is not resumed on data other than those it was trained on."""

    def fingerprint(self) -> int | None:
        """A checksum of the data and of their order of storage; None where there is none."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A loader whose place in the epoch Lightning saves: a run goes on with the batch after it."""

    def state_dict(self) -> dict[str, Any]:
        """``position``: batches of the epoch that were handed out, 0 after the last."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator begin there."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A batch whose size is not counted in samples: of running text, characters, say."""

    @property
    def unit(self) -> str:
        """In the plural: the speed is logged as ``perf/<unit>_per_second``."""
        ...

    @property
    def num_units(self) -> int:
        """How many of them the batch has."""
        ...


# ---- questions -------------------------------------------------------------------------------------------------------


def mismatch(made: object, protocol: type) -> str | None:
    """What keeps ``made`` from a protocol that it seems to offer: the first method that can't be called like it.

    Returns:
        a line such as ``Tokens.encode takes (images, vocabulary); expected (images)``; None where all fit.
    """
    for name, wanted in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(wanted):
            continue
        taken = inspect.signature(getattr(made, name))
        arguments = list(inspect.signature(wanted).parameters)[1:]
        try:
            taken.bind(*arguments)
        except TypeError:
            found = ", ".join(taken.parameters)
            return f"{type(made).__name__}.{name} takes ({found}); expected ({', '.join(arguments)})"
    return None


def size_of(batch: Any) -> int:
    """How much a batch holds, in its :func:`unit_of`: by default rows of its first tensor."""
    if isinstance(batch, Counted):
        return batch.num_units
    while isinstance(batch, (tuple, list, Mapping)) and len(batch):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(batch)


def unit_of(batch: Any) -> str:
    """What a batch is counted in."""
    return batch.unit if isinstance(batch, Counted) else "samples"
