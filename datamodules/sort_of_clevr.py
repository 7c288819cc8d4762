"""Sort-of-CLEVR: procedural scenes of six colored objects, with questions about one object or its relations.

After Santoro et al., "A simple neural network module for relational reasoning" (2017), with questions as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.checks import at_least
from common.vocabulary import build_vocab
from datamodules.parts.visual_questions import Question, QuestionTable, VisualQuestions, language_prior

SHAPES = ("circle", "square")
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "orange": (255, 156, 0),
    "gray": (128, 128, 128),
    "yellow": (255, 255, 0),
}
IMAGE_SIZE = 75
RADIUS = 5  # of a circle, and half the side of a square

SENTENCES = {
    "nonrelational/shape": (
        "what is the shape of the {color} object?",
        "what shape is the {color} object?",
        "which shape does the {color} object have?",
    ),
    "nonrelational/left": (
        "is the {color} object on the left?",
        "is the {color} object in the left half of the image?",
        "does the {color} object lie on the left?",
    ),
    "nonrelational/top": (
        "is the {color} object at the top?",
        "is the {color} object in the upper half of the image?",
        "does the {color} object lie at the top?",
    ),
    "relational/closest": (
        "what is the shape of the object closest to the {color} object?",
        "what shape is the object nearest to the {color} object?",
        "which shape does the object closest to the {color} object have?",
    ),
    "relational/furthest": (
        "what is the shape of the object furthest from the {color} object?",
        "what shape is the object farthest from the {color} object?",
        "which shape does the object furthest from the {color} object have?",
    ),
    "relational/count": (
        "how many objects have the shape of the {color} object?",
        "how many objects are of the same shape as the {color} object?",
        "what is the number of objects with the shape of the {color} object?",
    ),
}


@dataclass
class Scenes:
    """N scenes of K objects; object k has the k-th color."""

    centers: np.ndarray
    """(N, K, 2) int: row and column"""
    shapes: np.ndarray
    """(N, K) int: an index into :data:`SHAPES`"""


def draw_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Scenes whose objects do not touch and in which no two objects are equally far from a third.

    (The commonly used generator compares *squared* distances with 999 when it looks for the closest object, so a few
    percent of its answers are wrong. Here distances are compared exactly, and there are no ties.)
    """
    objects = len(COLORS)
    centers = np.zeros((count, objects, 2), int)
    pending = np.arange(count)
    while len(pending):
        drawn = rng.integers(RADIUS + 1, IMAGE_SIZE - RADIUS - 1, (len(pending), objects, 2))
        apart = np.abs(drawn[:, :, None] - drawn[:, None]).max(-1) > 2 * RADIUS + 1  # a free pixel between
        distances = np.sort(squared_distances(drawn), -1)  # the first is an object's distance to itself
        ties = (np.diff(distances[:, :, 1:], axis=-1) == 0).any((1, 2))
        good = (apart | np.eye(objects, dtype=bool)).all((1, 2)) & ~ties
        centers[pending[good]] = drawn[good]
        pending = pending[~good]
    return Scenes(centers, rng.integers(0, len(SHAPES), (count, objects)))


def squared_distances(centers: np.ndarray) -> np.ndarray:
    """(N, K, 2) → (N, K, K)."""
    array: np.ndarray = np.square(centers[:, :, None] - centers[:, None]).sum(-1)
    return array


def render(scenes: Scenes) -> Tensor:
    """(N, 3, 75, 75) uint8: the objects on white."""
    count = len(scenes.centers)
    images = np.full((count, IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    offset = np.arange(-RADIUS, RADIUS + 1)
    disk = offset[:, None] ** 2 + offset**2 <= RADIUS**2
    stamps = np.stack([disk, np.ones_like(disk)])  # by shape
    scene = np.arange(count)[:, None, None]
    for k, color in enumerate(COLORS.values()):
        rows = scenes.centers[:, k, 0, None, None] + offset[:, None]
        columns = scenes.centers[:, k, 1, None, None] + offset
        covered = stamps[scenes.shapes[:, k]][..., None]
        images[scene, rows, columns] = np.where(covered, np.array(color, np.uint8), images[scene, rows, columns])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def ask(scenes: Scenes, per_group: int, rng: np.random.Generator) -> list[Question]:
    """``per_group`` non-relational and equally many relational questions about each scene.

    Color, kind and wording are drawn independently, so a question may come twice.
    """
    kinds, names = list(SENTENCES), list(COLORS)
    halves = [[i for i, kind in enumerate(kinds) if kind.startswith(group)] for group in ("nonrel", "rel")]
    distances = squared_distances(scenes.centers)
    own = np.eye(len(names), dtype=bool)
    closest = np.where(own, distances.max() + 1, distances).argmin(-1)
    furthest = distances.argmax(-1)
    same = (scenes.shapes[:, :, None] == scenes.shapes[:, None]).sum(-1)
    questions = []
    for group in halves:
        shape = (len(scenes.centers), per_group)
        drawn_kinds = rng.choice(group, shape)
        drawn_colors, wordings = rng.integers(0, len(names), shape), rng.integers(0, 3, shape)
        for n in range(shape[0]):
            shapes, centers = scenes.shapes[n], scenes.centers[n]
            for kind_id, k, wording in zip(drawn_kinds[n], drawn_colors[n], wordings[n], strict=True):
                kind = kinds[kind_id]
                match kind.partition("/")[2]:
                    case "shape":
                        answer = SHAPES[shapes[k]]
                    case "left":
                        answer = "yes" if centers[k, 1] < IMAGE_SIZE / 2 else "no"
                    case "top":
                        answer = "yes" if centers[k, 0] < IMAGE_SIZE / 2 else "no"
                    case "closest":
                        answer = SHAPES[shapes[closest[n, k]]]
                    case "furthest":
                        answer = SHAPES[shapes[furthest[n, k]]]
                    case "count":
                        answer = str(same[n, k])  # the object itself counts, as in the paper
                questions.append(Question(n, SENTENCES[kind][wording].format(color=names[k]), answer, kind))
    return questions


class SortOfCLEVR(VisualQuestions):
    """Scenes of six objects, each of one color, with relational and non-relational questions.

    Each part depends only on ``data_seed``, not on the sizes of the others.

    Args:
        batch_size: images per rank and batch.
        num_train, num_val, num_test: number of images. (The paper has 9800 for training and 200 for the test, where one
            percent is four questions.)
        questions_per_image: number of questions, half of them relational.
        data_seed: seed of the scenes and questions, independent of the run's seed.

    Raises:
        ValueError: a size is not positive, or ``questions_per_image`` is not even.
    """

    parts: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(
        self,
        batch_size: int = 16,
        num_train: int = 9800,
        num_val: int = 500,
        num_test: int = 2000,
        questions_per_image: int = 20,
        data_seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        at_least(1, num_train=num_train, num_val=num_val, num_test=num_test)
        self.sizes = dict(zip(self.parts, (num_train, num_val, num_test), strict=True))
        if questions_per_image < 2 or questions_per_image % 2:
            raise ValueError(f"questions_per_image={questions_per_image}: expected an even number, at least 2")
        self.questions_per_image = questions_per_image
        self.data_seed = data_seed
        sentences = [text.format(color=color) for texts in SENTENCES.values() for text in texts for color in COLORS]
        self.vocab = build_vocab(sentences)
        self.answers = ["yes", "no", *SHAPES, *(str(n + 1) for n in range(len(COLORS)))]
        self.question_types = list(SENTENCES)
        self.image_shape = [3, IMAGE_SIZE, IMAGE_SIZE]

    def setup(self, stage: str | None = None) -> None:
        if self.tables:
            return
        made = {}
        for number, part in enumerate(self.parts):
            rng = np.random.default_rng([self.data_seed, number])
            scenes = draw_scenes(self.sizes[part], rng)
            made[part] = scenes, ask(scenes, self.questions_per_image // 2, rng)
        prior = language_prior(made["train"][1])
        for part, (scenes, questions) in made.items():
            self.tables[part] = QuestionTable(
                render(scenes),
                questions,
                prior=prior if self.knows_prior else None,
                vocab=self.vocab,
                answers=self.answers,
                question_types=self.question_types,
            )
