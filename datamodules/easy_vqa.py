"""EasyVQA: questions about one colored shape, from the data set that PyPI's ``easy-vqa`` ships (MIT license)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from common.checks import within
from common.vocabulary import build_vocab, tokenize
from datamodules.parts.visual_questions import (
    NOT_OF_PAIRS,
    Question,
    QuestionTable,
    VisualQuestions,
    VQABatch,
    language_prior,
    split_images,
)

SHAPES = ("circle", "rectangle", "triangle")
COLORS = {  # as the data set draws them
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
HOLDOUT = ("rectangle-red", "rectangle-teal", "circle-blue", "circle-yellow", "triangle-green", "triangle-gray")
"""A compositional hold-out: each shape loses two colors, but every color and shape still occurs in training."""

IMAGE_SIZE = 64
BLOCKS = 8  # to a side, of :func:`scatter_color`


class EasyVQA(VisualQuestions):
    """Images of one shape in one of eight colors on a pale background, with questions about its shape and color.

    Validation images are taken from the official *training* images; the test images are the official ones. Training
    images are mirrored and their shape is moved to a random place, which leaves every answer true.

    Args:
        batch_size: images per rank and batch; about ten questions come with each.
        val_fraction: share of the training images used for validation.
        holdout: shape-color pairs, such as ``rectangle-red``, that training and validation never show. Test questions
            about them are marked ``unseen``.
        prior_shift: in the manner of VQA-CP (Agrawal et al. 2018), the share of training and validation questions
            "is there a <color> shape?" in whose image the color *is* there: this for black, blue, brown and gray, and
            one minus it for green, red, teal and yellow. The test questions have it the other way round, so that what
            training's language suggests is wrong. Made by leaving questions out. ``null`` leaves the data as it is.
        augment: mirror and move the training images.
        paint: share of the training images whose shape is painted in an arbitrary color, and of which only
            questions without a color are asked: so the network's notion of a shape cannot depend on its color.
        scatter: the other way round, share of the training images whose shape is replaced by scattered blocks of its
            color, and of which only questions without a shape are asked.
        split_seed: seed of the validation split and of ``prior_shift``, apart from the run's seed.

    Raises:
        ValueError: an unknown pair in ``holdout``; a share out of range, or ``paint`` and ``scatter`` above 1 together.
    """

    def __init__(
        self,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        holdout: Sequence[str] = (),
        prior_shift: float | None = None,
        augment: bool = True,
        paint: float = 0.0,
        scatter: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        known = [f"{shape}-{color}" for shape in SHAPES for color in COLORS]
        for pair in holdout:
            if pair not in known:
                raise ValueError(f"holdout={pair!r}: expected shape-color pairs such as 'rectangle-red'")
        within("(0, 1)", prior_shift=prior_shift)
        within("[0, 1]", paint=paint, scatter=scatter)
        for name, share in (("paint", paint), ("scatter", scatter)):
            if share and not augment:
                raise ValueError(f"{name}={share} with augment=false: expected 0")
        if paint + scatter > 1:
            raise ValueError(f"paint={paint} and scatter={scatter}: expected at most 1 together")
        self.draws = 0 if not augment else 3 if not (paint or scatter) else 7 + BLOCKS**2
        self.paint, self.scatter = paint, scatter
        self.holdout = list(holdout)
        self.prior_shift = prior_shift
        self.split_seed = split_seed
        self._train_questions = _read_questions("train")
        num_images = 1 + max(question.image for question in self._train_questions)
        self._train_images, self._val_images = split_images(num_images, val_fraction, split_seed)

        chosen = set(self._train_images)
        train = [question for question in self._train_questions if question.image in chosen]
        self.vocab = build_vocab(question.text for question in train)
        self.answers = sorted({question.answer for question in train})
        self.question_types = sorted({question.kind for question in train})
        self.image_shape = [3, IMAGE_SIZE, IMAGE_SIZE]

    def setup(self, stage: str | None = None) -> None:
        if self.tables:
            return
        train_images, test_images = read_images("train"), read_images("test")
        train_questions, test_questions = self._train_questions, _read_questions("test")
        if self.prior_shift is None and not self.holdout:  # nobody asks what an image shows
            train_pairs, test_pairs = [""] * len(train_images), [""] * len(test_images)
        else:
            train_pairs, test_pairs = attributes(train_images), attributes(test_images)
        shown = [i for i, pair in enumerate(train_pairs) if pair not in self.holdout]
        kept = set(shown)
        train_questions = [question for question in train_questions if question.image in kept]
        if self.prior_shift is not None:
            shift, rng = self.prior_shift, random.Random(self.split_seed)
            train_questions = _shift_prior(train_questions, train_pairs, shift, rng)
            test_questions = _shift_prior(test_questions, test_pairs, 1 - shift, rng)

        def part(
            images: Tensor, questions: list[Question], chosen: Sequence[int]
        ) -> tuple[Tensor, list[Question], list[int]]:
            """The chosen images that still have questions, these with renumbered images, and the numbers before."""
            asked = {question.image for question in questions}
            chosen = [image for image in chosen if image in asked]
            place = {image: i for i, image in enumerate(chosen)}
            kept = [replace(q, image=place[q.image]) for q in questions if q.image in place]
            return images[chosen], kept, chosen

        test_questions = [replace(q, unseen=test_pairs[q.image] in self.holdout) for q in test_questions]
        parts = {
            "train": part(train_images, train_questions, sorted(set(shown) & set(self._train_images))),
            "val": part(train_images, train_questions, sorted(set(shown) & set(self._val_images))),
            "test": part(test_images, test_questions, range(len(test_images))),
        }
        prior = language_prior(parts["train"][1])
        for name, (images, questions, numbers) in parts.items():
            self.tables[name] = QuestionTable(
                images,
                questions,
                prior=prior if self.knows_prior else None,
                vocab=self.vocab,
                answers=self.answers,
                question_types=self.question_types,
                image_numbers=numbers,
            )

    def augment(self, batch: VQABatch, draws: Tensor) -> VQABatch:
        batch = batch._replace(images=mirror_and_move(batch.images, draws[:, :3]))
        if not (self.paint or self.scatter):
            return batch
        painted = draws[:, 3] < self.paint
        scattered = ~painted & (draws[:, 3] < self.paint + self.scatter)
        images = torch.where(painted[:, None, None, None], repaint(batch.images, draws[:, 4:7]), batch.images)
        images = torch.where(scattered[:, None, None, None], scatter_color(images, draws[:, 7:]), images)

        about_color = self._mentions(batch, ["color", *COLORS])
        about_shape = self._mentions(batch, SHAPES) | (batch.question_types == self.question_types.index("shape"))
        kept = ~(painted[batch.image_index] & about_color | scattered[batch.image_index] & about_shape)
        if not kept.any():  # nothing is asked of these images but what was taken from them
            return batch
        pairs = {name: getattr(batch, name)[kept] for name in batch._fields if name not in NOT_OF_PAIRS}
        return batch._replace(images=images, **pairs)

    def _mentions(self, batch: VQABatch, words: Sequence[str]) -> Tensor:
        """(Q,) bool: whether one of the words occurs in a pair's question."""
        ids = torch.tensor([self.vocab.index(word) for word in words if word in self.vocab])
        return torch.isin(batch.questions, ids.to(batch.questions.device)).any(1)[batch.question_index]


def mirror_and_move(images: Tensor, draws: Tensor) -> Tensor:
    """Mirrors each image with probability ½ and moves its shape to a uniformly drawn place where all of it fits.

    Args:
        images: (N, C, H, W) of one object on a uniform background.
        draws: (N, 3) in [0, 1): vertical place, horizontal place, mirror.
    """
    channels, height, width = images.shape[1:]
    is_object = (images != ground_of(images)).view(torch.uint8).amax(1)

    def source(occupied: Tensor, draw: Tensor) -> Tensor:
        """(N, S): the source row (or column) of each row of the moved image; the background wraps around the edge."""
        size = occupied.shape[1]
        first = occupied.argmax(1)
        last = size - 1 - occupied.flip(1).argmax(1)
        shift = (draw * (size - (last - first))).long() - first
        return (torch.arange(size, device=images.device) - shift[:, None]) % size

    rows = source(is_object.amax(2), draws[:, 0])
    columns = source(is_object.amax(1), draws[:, 1])
    columns = torch.where(draws[:, 2:] < 0.5, columns, columns.flip(1))
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = images.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1))
    return moved.view(-1, channels, height, width)


def repaint(images: Tensor, colors: Tensor) -> Tensor:
    """Paints the object of each image (N, 3, H, W) uint8 in another color (N, 3) in 0..1, keeping its soft edges."""
    images, ground = images.float(), ground_of(images).float()
    contrast = (images - ground).abs().sum(1, keepdim=True)
    opacity = contrast / contrast.amax((2, 3), keepdim=True).clamp_min(1)
    return (ground + opacity * (255 * colors[:, :, None, None] - ground)).round().to(torch.uint8)


def scatter_color(images: Tensor, draws: Tensor) -> Tensor:
    """Replaces each image's object with blocks of its color on the background: (N, 3, H, W) uint8.

    Args:
        draws: (N, BLOCKS²) in [0, 1): a block is colored if its draw is below 0.12, or the lowest.
    """
    ground = ground_of(images)
    contrast = (images.int() - ground.int()).abs().sum(1).flatten(1)
    color = images.flatten(2).gather(2, contrast.argmax(1)[:, None, None].expand(-1, 3, -1))[..., None]
    colored = (draws < 0.12) | (draws == draws.amin(1, keepdim=True))
    size = images.shape[2] // BLOCKS
    blocks = colored.view(-1, 1, BLOCKS, BLOCKS).repeat_interleave(size, 2).repeat_interleave(size, 3)
    return torch.where(blocks, color, ground)


def ground_of(images: Tensor) -> Tensor:
    """(N, C, 1, 1): the object covers at most one corner, so the lower median of the four is the background."""
    height, width = images.shape[2:]
    return images[:, :, :: height - 1, :: width - 1].flatten(2).median(2).values[:, :, None, None]


def attributes(images: Tensor) -> list[str]:
    """The ``shape-color`` of each image (N, 3, H, W), read from its pixels.

    The color is the palette color nearest to the pixel that differs most from the background; the shape follows from
    the share of its bounding box that it fills: rectangle 1, circle π/4, triangle ½.
    """
    palette = torch.tensor(list(COLORS.values()))
    contrast = (images.short() - ground_of(images).short()).abs_()
    distance = contrast.sum(1, dtype=torch.short).flatten(1)  # (N, H·W)
    highest, where = distance.max(1, keepdim=True)
    pixels = images.flatten(2).gather(2, where[:, None].expand(-1, 3, -1))[:, :, 0].int()
    colors = (pixels[:, None] - palette).abs().sum(2).argmin(1)

    is_object = (distance > highest // 2).unflatten(1, images.shape[2:])

    def extent(occupied: Tensor) -> Tensor:
        """(N, S) bool → (N,): from the first to the last."""
        return occupied.shape[1] - occupied.flip(1).int().argmax(1) - occupied.int().argmax(1)

    filled = is_object.sum((1, 2)) / (extent(is_object.any(2)) * extent(is_object.any(1)))
    shapes = ["rectangle" if share > 0.92 else "circle" if share > 0.70 else "triangle" for share in filled.tolist()]
    return [f"{shape}-{list(COLORS)[color]}" for shape, color in zip(shapes, colors.tolist(), strict=True)]


@lru_cache(maxsize=2)  # as the images
def _read_questions(part: str) -> list[Question]:
    import easy_vqa

    texts, answers, images = getattr(easy_vqa, f"get_{part}_questions")()
    return [
        Question(image=image, text=text, answer=answer, kind=_kind(text, answer), number=number)
        for number, (text, answer, image) in enumerate(zip(texts, answers, images, strict=True))
    ]


@cache  # there are few different ones
def _kind(text: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no_color" if set(tokenize(text)) & set(COLORS) else "yes_no_shape"
    return "shape" if answer in SHAPES else "color"


@lru_cache(maxsize=2)  # both parts, for who makes several data modules in one process
def read_images(part: str) -> Tensor:
    """(N, 3, 64, 64) uint8 in the order of their numbers."""
    import easy_vqa
    from PIL import Image

    paths = getattr(easy_vqa, f"get_{part}_image_paths")()
    images = np.stack([np.asarray(Image.open(paths[i]).convert("RGB")) for i in range(len(paths))])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _shift_prior(
    questions: list[Question], pairs: list[str], share_present: float, rng: random.Random
) -> list[Question]:
    """``questions`` without some yes/no questions, so that the asked color is present in the given share of them."""
    by_color: dict[tuple[str, bool], list[int]] = {(color, there): [] for color in COLORS for there in (True, False)}
    for i, question in enumerate(questions):
        if question.kind == "yes_no_color":
            (asked,) = set(tokenize(question.text)) & set(COLORS)
            by_color[asked, pairs[question.image].endswith(asked)].append(i)
    dropped: set[int] = set()
    for rank, color in enumerate(COLORS):
        share = share_present if rank < len(COLORS) // 2 else 1 - share_present
        present, absent = by_color[color, True], by_color[color, False]
        total = min(len(present) / share, len(absent) / (1 - share))
        for group, size in ((present, round(total * share)), (absent, round(total * (1 - share)))):
            dropped.update(rng.sample(group, len(group) - size))
    return [question for i, question in enumerate(questions) if i not in dropped]
