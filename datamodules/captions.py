"""Captions of images: the batch that every captioning data set yields, and captions of procedural scenes.

A batch is drawn by *image*. It holds each image once, so that a model encodes it once, and an index vector says which
image each caption describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.checks import at_least, within
from common.vocabulary import UNK, build_vocab, encode, tokenize
from datamodules import easy_vqa
from datamodules.parts import loader
from datamodules.parts.image_loaders import ImageLoaders
from datamodules.parts.loader import TensorLoader, training_draws
from datamodules.parts.scene_grammar import ATTRIBUTES, counts, without
from datamodules.parts.scene_sentences import describe
from datamodules.parts.scenes import COLORS, IMAGE_SIZE, RADII, draw_scenes, place_of, render, stated_attributes
from datamodules.parts.visual_questions import split_images

PARTS = ("train", "val", "test")
KINDS_OF = {"train": (0, 1), "val": (2,), "test": (3,)}  # of scenes: no scene is in two parts


class CaptionBatch(NamedTuple):
    """I images with N captions of at most T tokens; K objects with A attributes if there is a ground truth."""

    images: Tensor
    """(I, C, H, W), uint8 as stored and float in 0..1 when it reaches the model; or features, if the data hold those"""
    captions: Tensor
    """(N, T) token ids, 0 after the end; without start and end tokens, which the model adds"""
    lengths: Tensor
    """(N,) number of tokens in each caption"""
    image_index: Tensor
    """(N,) the row of ``images`` that each caption describes, ascending"""
    image_ids: Tensor
    """(I,) the number of the image within its part of the data"""
    objects: Tensor
    """(I, K, A + 2) int64: value of each attribute, then row and column of the center in pixels, in no meaningful order
    of objects; all -1 if there is no object. K = 0 if there is no ground truth"""
    stated: Tensor
    """(N, A) int64: for images of one object, the value of each attribute that a caption states, -1 if it says nothing;
    all -1 for images of several objects and if there is no ground truth"""
    unseen: Tensor
    """(I,) bool: the image shows a combination of attributes that was held out of training"""

    references: Tensor
    """(N, T): as ``captions``, but words outside the vocabulary have ids of their own, from its size on"""


OF_CAPTIONS = ("captions", "lengths", "image_index", "stated", "references")
"""the fields of a batch that have a row per caption"""


class CaptionTable:
    """Images and their captions; indexed by a vector of images, it returns one :class:`CaptionBatch`.

    Args:
        images: (I, C, H, W) uint8, or features.
        captions: at least one for each image.
        vocab: the words that token ids refer to; others become ``<unk>``.
        attributes: of the objects; {} if there is no ground truth.
        objects: (I, K, A + 2), see :class:`CaptionBatch`.
        unseen: (I,) bool.
        split: a caption into its words.

    Raises:
        ValueError: an image has no caption, or a caption has no word.
    """

    def __init__(
        self,
        images: Tensor,
        captions: Sequence[Sequence[str]],
        vocab: Sequence[str],
        attributes: dict[str, list[str]] | None = None,
        objects: Tensor | None = None,
        unseen: Tensor | None = None,
        split: Callable[[str], list[str]] = tokenize,
    ) -> None:
        attributes = attributes or {}
        for number, texts in enumerate(captions):
            if not texts:
                raise ValueError(f"image {number}: expected at least one caption")
        assert len(images) == len(captions)
        self.images = images
        self.counts = torch.tensor([len(texts) for texts in captions])
        self.starts = self.counts.cumsum(0) - self.counts
        all_of_them = [text for texts in captions for text in texts]
        others = {word for text in all_of_them for word in split(text)} - set(vocab)
        self.references, self.lengths = encode(all_of_them, [*vocab, *sorted(others)], split)
        unknown = vocab.index(UNK)
        self.captions = self.references.where(self.references < len(vocab), unknown)
        no_objects = torch.zeros(len(images), 0, len(attributes) + 2, dtype=torch.long)
        self.objects = no_objects if objects is None else objects
        self.unseen = torch.zeros(len(images), dtype=torch.bool) if unseen is None else unseen
        self.stated = torch.full((len(self.captions), len(attributes)), -1)
        single = ((self.objects[:, :, 0] >= 0).sum(1) == 1).tolist()
        for is_single, texts, start in zip(single, captions, self.starts.tolist(), strict=True):
            for row, text in enumerate(texts if is_single else (), start):
                for column, (name, values) in enumerate(attributes.items()):
                    value = stated_attributes(text, attributes).get(name)
                    self.stated[row, column] = -1 if value is None else values.index(value)

    def __len__(self) -> int:
        return len(self.counts)

    def fingerprint(self) -> int:
        """A checksum of images, captions and ground truth."""
        return loader.checksum([self.images, self.counts, self.captions, self.objects])

    def __getitem__(self, indices: Tensor) -> CaptionBatch:
        counts = self.counts[indices]
        image_index = torch.arange(len(indices)).repeat_interleave(counts)
        within = torch.arange(len(image_index)) - (counts.cumsum(0) - counts)[image_index]
        rows = self.starts[indices][image_index] + within
        lengths = self.lengths[rows]
        return CaptionBatch(
            images=self.images.index_select(0, indices),
            captions=self.captions[rows, : int(lengths.max())],
            lengths=lengths,
            image_index=image_index,
            image_ids=indices,
            objects=self.objects[indices],
            stated=self.stated[rows],
            unseen=self.unseen[indices],
            references=self.references[rows, : int(lengths.max())],
        )


def choose_captions(batch: CaptionBatch, draws: Tensor, count: int) -> CaptionBatch:
    """The batch with ``count`` captions of each image, or all if it has fewer: those with the lowest ``draws``.

    Args:
        draws: (I, at least the largest number of captions of an image); the i-th caption of an image uses its i-th
            draw.
    """
    places = torch.arange(len(batch.image_index)) - torch.searchsorted(batch.image_index, batch.image_index)
    draw = torch.full_like(draws, torch.inf)
    draw[batch.image_index, places] = draws[batch.image_index, places]
    rank = draw.argsort(1).argsort(1)[batch.image_index, places]
    fields = {name: getattr(batch, name)[rank < count] for name in OF_CAPTIONS}
    for name in ("captions", "references"):
        fields[name] = fields[name][:, : int(fields["lengths"].max())]
    return batch._replace(**fields)


class Captions(ImageLoaders):
    """Shared by all captioning data sets: facts, loaders, and the last steps of a batch.

    A source sets the facts in its constructor and fills ``tables`` with "train", "val" and "test" in ``setup``.

    Args:
        batch_size: images per rank and batch.
        captions_per_image: number of captions of each image in training, drawn anew each epoch; ``null`` means all.

    Attributes:
        vocab: the words of the training captions.
        longest: number of tokens in the longest training caption.
        image_shape: channels, height, width.
        attributes: the attributes of the objects in the images with their values; {} if there is no ground truth.

    Raises:
        ValueError: an argument is out of range.
    """

    vocab: list[str]
    longest: int
    image_shape: list[int]
    preprocessing: dict[str, Any] = {"fit": "squash", "stored": None}  # noqa: RUF012 - it is only read
    attributes: dict[str, list[str]]
    split: Callable[[str], list[str]] = staticmethod(tokenize)

    def __init__(self, batch_size: int, captions_per_image: int | None = None) -> None:
        super().__init__(batch_size)
        at_least(1, captions_per_image=captions_per_image)
        self.captions_per_image = captions_per_image
        self.tables: dict[str, CaptionTable] = {}

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Counts words as a checkpoint's model does; its unknown words become ``<unk>``.

        Where the data have no ground truth, it does not matter which attributes the model knows.
        """
        assert not self.tables
        self.vocab, self.longest = list(facts.get("vocab", self.vocab)), facts.get("longest", self.longest)
        return {"vocab", "longest", "preprocessing"} | ({"attributes"} if not self.attributes else set())

    def learn_words(self, train: Sequence[Sequence[str]], min_count: int = 1) -> None:
        """Takes ``vocab`` and ``longest`` from the training captions."""
        texts = [text for of_image in train for text in of_image]
        self.vocab = build_vocab(texts, min_count, self.split)
        self.longest = int(encode(texts, self.vocab, self.split)[1].max())

    def loader(self, part: str, **options: Any) -> TensorLoader:
        return TensorLoader(self.tables[part], self.batch_size, **options)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The number of each image in its part."""
        return {"image": range(len(self.tables[part]))}

    def on_before_batch_transfer(self, batch: CaptionBatch, dataloader_idx: int) -> CaptionBatch:
        if self.captions_per_image is None or self.trainer is None or not self.trainer.training:
            return batch
        # As many draws for each image, whatever its batch: so two ranks draw what one would.
        most = int(self.tables["train"].counts.max())
        draws = training_draws(self.trainer, len(batch.images), most, self.order_seed)
        return choose_captions(batch, draws, self.captions_per_image)

    def on_after_batch_transfer(self, batch: CaptionBatch, dataloader_idx: int) -> CaptionBatch:
        found: CaptionBatch = self.to_float(batch)
        return found


def parse_holdout(holdout: Sequence[str], attributes: dict[str, list[str]]) -> list[tuple[int, int]]:
    """The indices of the shapes and colors in pairs such as ``square-red``.

    Raises:
        ValueError: there is no such pair, or a shape or color is held out completely.
    """
    shapes, colors = attributes["shape"], attributes["color"]
    pairs = {f"{shape}-{color}": (s, c) for s, shape in enumerate(shapes) for c, color in enumerate(colors)}
    for pair in holdout:
        if pair not in pairs:
            raise ValueError(f"holdout={pair!r}: expected shape-color pairs such as {f'{shapes[1]}-{colors[0]}'!r}")
    for side, values in enumerate((shapes, colors)):
        for number, value in enumerate(values):
            if all(pair in holdout for pair, which in pairs.items() if which[side] == number):
                raise ValueError(f"holdout={list(holdout)}: leaves no {value} object to train on, expected some")
    return [pairs[pair] for pair in holdout]


def shows(objects: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """(I,) bool: whether one of an image's objects (I, K, A + 2) has one of these pairs of shape and color."""
    found = torch.zeros(len(objects), dtype=torch.bool)
    for shape, color in pairs:
        found |= ((objects[:, :, 0] == shape) & (objects[:, :, 1] == color)).any(1)
    return found


class Scenes(Captions):
    """Procedural scenes of a few colored objects, with five sentences about each.

    Each part depends only on ``data_seed`` (and on ``holdout``), not on the sizes of the others. No scene is in two
    parts: there are so few scenes of a single object that some would repeat by chance.

    Args:
        batch_size: images per rank and batch.
        num_train, num_val, num_test: number of images.
        min_objects, max_objects: range of the number of objects in each, drawn uniformly.
        captions_per_image: see :class:`Captions`.
        holdout: shape-color pairs, such as ``square-red``, that training and validation never show. Test images that
            show one are marked ``unseen``.
        paint: share of the training scenes that have colors other than the named ones. Their sentences have ``<unk>``
            for each color, so they teach shapes without colors.
        scatter: share of the training scenes whose objects are dots without a shape, with ``<unk>`` for each shape;
            none of their sentences counts objects. So neither option shows a held-out pair under its names.
        data_seed: seed of the scenes and sentences, independent of the run's seed.

    Raises:
        ValueError: a number is out of range; ``holdout`` has an unknown pair, or all pairs of a shape or color.
    """

    MOST: ClassVar[int] = 4
    """largest number of objects; with more, random placement soon finds no free place"""

    def __init__(
        self,
        batch_size: int = 32,
        num_train: int = 6000,
        num_val: int = 500,
        num_test: int = 2000,
        min_objects: int = 1,
        max_objects: int = 4,
        captions_per_image: int | None = None,
        holdout: Sequence[str] = (),
        paint: float = 0.0,
        scatter: float = 0.0,
        data_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, captions_per_image)
        within("[0, 1]", paint=paint, scatter=scatter)
        if paint + scatter > 1:
            raise ValueError(f"paint={paint} and scatter={scatter}: expected at most 1 together")
        at_least(1, num_train=num_train, num_val=num_val, num_test=num_test)
        within(f"[1, {self.MOST}]", max_objects=max_objects)
        self.paint, self.scatter = paint, scatter
        self.sizes = dict(zip(PARTS, (num_train, num_val, num_test), strict=True))
        if not 1 <= min_objects <= max_objects:
            raise ValueError(f"min_objects={min_objects}: expected 1 to max_objects={max_objects}")
        self.min_objects, self.max_objects = min_objects, max_objects
        self.data_seed = data_seed
        self.attributes = {name: list(values) for name, values in ATTRIBUTES.items()}
        self.pairs = parse_holdout(holdout, self.attributes)
        self.image_shape = [3, IMAGE_SIZE, IMAGE_SIZE]
        self._train = self._make("train")
        self.learn_words(self._train[1])

    def _make(self, part: str) -> tuple[np.ndarray, list[list[str]]]:
        """Scenes and their sentences."""
        rng = np.random.default_rng([self.data_seed, PARTS.index(part)])
        held_out = () if part == "test" else self.pairs
        scenes = draw_scenes(self.sizes[part], rng, self.min_objects, self.max_objects, held_out, KINDS_OF[part])
        return scenes, describe(scenes, rng)

    def setup(self, stage: str | None = None) -> None:
        for part in PARTS:
            if part not in self.tables:
                scenes, sentences = self._train if part == "train" else self._make(part)
                objects = torch.from_numpy(scenes)
                unseen = shows(objects, self.pairs)
                if part == "train" and (self.paint or self.scatter):
                    images, sentences = self._concepts_alone(scenes, sentences)
                else:
                    images = render(scenes)
                self.tables[part] = CaptionTable(images, sentences, self.vocab, self.attributes, objects, unseen)

    def _concepts_alone(self, scenes: np.ndarray, sentences: list[list[str]]) -> tuple[Tensor, list[list[str]]]:
        """Images and sentences, some of which teach shapes without colors, and some colors without shapes."""
        rng = np.random.default_rng([self.data_seed, len(PARTS)])
        fate = rng.random(len(scenes))
        painted, scattered = fate < self.paint, (self.paint <= fate) & (fate < self.paint + self.scatter)
        changed = []
        for number, texts in enumerate(sentences):
            if painted[number]:
                texts = [without(text, "color") for text in texts]
            elif scattered[number]:
                told = [text for text in texts if not counts(text)]
                texts = [without(text, "shape") for text in told] or texts
                scattered[number] = bool(told)
            changed.append(texts)
        palettes = np.broadcast_to(np.array(list(COLORS.values()), np.uint8), (len(scenes), len(COLORS), 3)).copy()
        palettes[painted] = rng.integers(0, 256, palettes[painted].shape)
        side = 2 * max(RADII) + 1
        dots = (rng.random((len(scenes), side, side)) < 0.5) & scattered[:, None, None]
        return render(scenes, palettes, dots), changed


class EasyVQACaptions(Captions):
    """EasyVQA's images of one shape in one of eight colors, with five sentences about each.

    Validation images are taken from the official *training* images; the test images are the official ones. The ground
    truth is read from the pixels and does not include sizes.

    Args:
        batch_size: images per rank and batch.
        val_fraction: share of the training images used for validation.
        captions_per_image: see :class:`Captions`.
        holdout: as in :class:`Scenes`, such as ``rectangle-red``.
        data_seed: seed of the sentences and of the validation split, independent of the run's seed.

    Raises:
        ValueError: as :class:`Scenes`; ``val_fraction`` leaves a part empty.
    """

    def __init__(
        self,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        captions_per_image: int | None = None,
        holdout: Sequence[str] = (),
        data_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, captions_per_image)
        self.attributes = {
            "shape": list(easy_vqa.SHAPES),
            "color": list(easy_vqa.COLORS),
            "place": list(ATTRIBUTES["place"]),
        }
        self.pairs = parse_holdout(holdout, self.attributes)
        self.data_seed = data_seed
        self.image_shape = [3, easy_vqa.IMAGE_SIZE, easy_vqa.IMAGE_SIZE]
        objects, sentences = self._read("train")
        shown = ~shows(objects, self.pairs)
        parts = zip(("train", "val"), split_images(len(objects), val_fraction, data_seed), strict=True)
        self._chosen = {part: [i for i in images if shown[i]] for part, images in parts}
        self._made = objects, sentences
        self.learn_words([sentences[i] for i in self._chosen["train"]])

    def _read(self, part: str) -> tuple[Tensor, list[list[str]]]:
        objects = read_objects(easy_vqa.read_images(part), self.attributes)
        rng = np.random.default_rng([self.data_seed, PARTS.index(part)])
        return objects, describe(objects.numpy(), rng, self.attributes)

    def setup(self, stage: str | None = None) -> None:
        for part in PARTS:
            if part in self.tables:
                continue
            objects, sentences = self._read("test") if part == "test" else self._made
            chosen = range(len(objects)) if part == "test" else self._chosen[part]
            rows = torch.tensor(list(chosen))
            images = easy_vqa.read_images("test" if part == "test" else "train")[rows]
            texts = [sentences[i] for i in chosen]
            unseen = shows(objects[rows], self.pairs)
            self.tables[part] = CaptionTable(images, texts, self.vocab, self.attributes, objects[rows], unseen)


def read_objects(images: Tensor, attributes: dict[str, list[str]]) -> Tensor:
    """The one object (N, 1, 5) of each of EasyVQA's images, read from its pixels: shape, color, place, row, column."""
    pairs = [pair.split("-") for pair in easy_vqa.attributes(images)]
    looks = torch.tensor([[attributes["shape"].index(s), attributes["color"].index(c)] for s, c in pairs])
    is_object = (images != easy_vqa.ground_of(images)).any(1)

    def middle(occupied: Tensor) -> Tensor:
        """(N, S) bool → (N,): halfway from the first to the last."""
        last = occupied.shape[1] - 1 - occupied.flip(1).int().argmax(1)
        return (occupied.int().argmax(1) + last) // 2

    rows, columns = middle(is_object.any(2)), middle(is_object.any(1))
    place = torch.from_numpy(place_of(rows.numpy(), columns.numpy(), images.shape[-1]))
    return torch.stack([looks[:, 0], looks[:, 1], place, rows, columns], 1)[:, None]
