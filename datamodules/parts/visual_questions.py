"""Questions about images: the batch that every VQA data set yields, and the table that forms it.

A batch is drawn by *image*. It holds each image and each distinct question once, so that a model encodes each of them
once, and index vectors say which question is asked about which image.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.facts import refuse_unknown
from common.vocabulary import encode
from datamodules.parts.image_loaders import ImageLoaders
from datamodules.parts.loader import TensorLoader, checksum, draws_per_sample


class VQABatch(NamedTuple):
    """I images, D distinct questions of at most T tokens, and Q pairs of one image and one question.

    ``images`` are uint8 in the loader, as stored, and float in 0..1 when they reach the model; if a data set holds
    image *features* instead, they are always float.
    """

    images: Tensor
    """(I, C, H, W)"""
    questions: Tensor
    """(D, T) token ids, 0 after the end of a question"""
    lengths: Tensor
    """(D,) number of tokens in each question"""
    image_index: Tensor
    """(Q,) the row of ``images`` that a pair asks about"""
    question_index: Tensor
    """(Q,) the row of ``questions`` that a pair asks"""
    answers: Tensor
    """(Q,) the answer's class, or (Q, A) the score in 0..1 that each answer would get"""
    question_types: Tensor
    """(Q,) the question's type"""
    question_ids: Tensor
    """(Q,) equal for pairs with the same wording, throughout the data set"""
    prior_answers: Tensor
    """(Q,) the answer suggested by language alone, or -1 if that is not known: see :func:`language_prior`"""
    unseen: Tensor
    """(Q,) bool: the image shows a combination of attributes that was held out of training"""


NOT_OF_PAIRS = ("images", "questions", "lengths")
"""the fields of a batch without a row per pair"""


@dataclass
class Question:
    """One question about one image, as read from a data set."""

    image: int
    text: str
    answer: str
    kind: str
    """the question's type, for the metrics"""
    asked: str | None = None
    """its type as far as the words of the question tell it; by default ``kind``"""
    unseen: bool = False
    number: int | str | None = None
    """by which the data set knows it"""


LanguagePrior = tuple[dict[str, str], dict[str, str]]
"""the most frequent answer to a question's words, and to a question's type"""


def asked(question: Question) -> str:
    """The type of a question as far as its words tell it."""
    return question.kind if question.asked is None else question.asked


def language_prior(train: Sequence[Question]) -> LanguagePrior:
    """The most frequent training answer to each question's words, and to each question type.

    This is the best that a *blind* model can do on the training set; on new words it falls back on the type, as far as
    the words tell it, and then on the most frequent answer of all. Ties go to the alphabetically first answer.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_text[question.text][question.answer] += 1
        by_kind[asked(question)][question.answer] += 1

    def first(counts: Counter[str]) -> str:
        return min(counts, key=lambda answer: (-counts[answer], answer))

    return (
        {text: first(counts) for text, counts in by_text.items()},
        {kind: first(counts) for kind, counts in by_kind.items()},
    )


class QuestionTable:
    """Images and their questions in memory; indexed by a vector of images, it returns one :class:`VQABatch`.

    Args:
        images: (N, C, H, W) uint8, or features.
        questions: all questions about the images; ``image`` is a row of ``images``.
        prior: the language prior of the training questions; None if these are not known.
        vocab, answers, question_types: the lists that the numbers in a batch refer to.
        image_numbers: by which the data set knows the images; by default their rows.

    Raises:
        ValueError: an image has no question; an answer or a type is not in its list.
    """

    def __init__(
        self,
        images: Tensor,
        questions: Sequence[Question],
        *,
        prior: LanguagePrior | None,
        vocab: Sequence[str],
        answers: Sequence[str],
        question_types: Sequence[str],
        image_numbers: Sequence[int] | None = None,
    ) -> None:
        questions = sorted(questions, key=lambda question: question.image)  # stable: an image's own order is kept
        answer_ids = {answer: i for i, answer in enumerate(answers)}
        type_ids = {kind: i for i, kind in enumerate(question_types)}
        for question in questions:
            if question.answer not in answer_ids:
                raise ValueError(f"question {question.text!r}: answer {question.answer!r} is not in {list(answers)}")
            if question.kind not in type_ids:
                raise ValueError(f"question {question.text!r}: type {question.kind!r} is not in {question_types}")
        counts = torch.bincount(torch.tensor([question.image for question in questions]), minlength=len(images))
        if len(counts) != len(images) or not counts.all():
            raise ValueError(f"image {int((counts == 0).nonzero()[0])}: expected at least one question about it")
        texts = sorted({question.text for question in questions})
        text_ids = {text: i for i, text in enumerate(texts)}

        self.images = images
        self.image_numbers, self.texts = image_numbers or range(len(images)), texts
        self.numbers = [row if q.number is None else q.number for row, q in enumerate(questions)]
        self.counts = counts
        self.starts = counts.cumsum(0) - counts
        self.tokens, self.lengths = encode(texts, vocab)
        self.text = torch.tensor([text_ids[question.text] for question in questions])
        self.answers = torch.tensor([answer_ids[question.answer] for question in questions])
        self.kinds = torch.tensor([type_ids[question.kind] for question in questions])
        self.prior = torch.full((len(questions),), -1)
        if prior is not None:
            by_text, by_kind = prior
            suggested = [by_text.get(each.text, by_kind.get(asked(each), answers[0])) for each in questions]
            self.prior = torch.tensor([answer_ids[answer] for answer in suggested])
        self.unseen = torch.tensor([question.unseen for question in questions])

    def __len__(self) -> int:
        return len(self.images)

    def names(self) -> dict[str, Sequence[Any]]:
        """For each question, in the order of images: its number, that of its image, and its text."""
        images = [self.image_numbers[i] for i, count in enumerate(self.counts.tolist()) for _ in range(count)]
        texts = [self.texts[i] for i in self.text.tolist()]
        return {"question_id": self.numbers, "image_id": images, "question": texts}

    def fingerprint(self) -> int:
        """A checksum of images, questions and answers."""
        return checksum([self.images, self.counts, self.tokens, self.text, self.answers])

    def __getitem__(self, indices: Tensor) -> VQABatch:
        counts = self.counts[indices]
        image_index = torch.arange(len(indices)).repeat_interleave(counts)
        within = torch.arange(len(image_index)) - (counts.cumsum(0) - counts)[image_index]
        rows = self.starts[indices][image_index] + within
        asked, question_index = self.text[rows].unique(return_inverse=True)
        lengths = self.lengths[asked]
        return VQABatch(
            images=self.images.index_select(0, indices),
            questions=self.tokens[asked, : int(lengths.max())],
            lengths=lengths,
            image_index=image_index,
            question_index=question_index,
            answers=self.answers[rows],
            question_types=self.kinds[rows],
            question_ids=self.text[rows],
            prior_answers=self.prior[rows],
            unseen=self.unseen[rows],
        )


def split_images(num_images: int, val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Training and validation images, a function of the seed alone; both in ascending order.

    Raises:
        ValueError: the fraction leaves either part empty.
    """
    num_val = round(num_images * val_fraction)
    if not 0 < num_val < num_images:
        raise ValueError(f"val_fraction={val_fraction}: expected a share that leaves images in both parts")
    order = list(range(num_images))
    random.Random(seed).shuffle(order)
    return sorted(order[num_val:]), sorted(order[:num_val])


class VisualQuestions(ImageLoaders):
    """Shared by all VQA data sets: facts, loaders, and the last step of the images on the device.

    A source sets ``vocab``, ``answers``, ``question_types`` and ``image_shape`` in its constructor, fills ``tables``
    with "train", "val" and "test" in ``setup``, and may override :meth:`augment`.

    Args:
        batch_size: images per rank and batch; each comes with all of its questions.
    """

    vocab: list[str]
    answers: list[str]
    question_types: list[str]
    image_shape: list[int]
    preprocessing: dict[str, Any] = {"fit": "squash", "stored": None}  # noqa: RUF012 - the object may be at the edge

    soft_answers: bool = False
    """whether ``answers`` of a batch are (Q, A) scores"""
    knows_prior = True
    """whether the training part is what the model has learned from, so that it tells what language suggests"""
    draws: int = 0
    """number of uniform draws that :meth:`augment` needs per image; 0 for a source without augmentation"""

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        self.tables: dict[str, QuestionTable] = {}

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Counts words, answers and types as a checkpoint's model does; its unknown words become ``<unk>``.

        Raises:
            ValueError: there is an answer or a type that the model does not know.
        """
        assert not self.tables
        for fact in ("answers", "question_types"):
            if fact in facts:
                refuse_unknown(fact, getattr(self, fact), facts[fact])
        if "answers" in facts or "vocab" in facts:  # of another training set than that of these data
            self.knows_prior = False
        for fact in ("vocab", "answers", "question_types"):
            setattr(self, fact, list(facts.get(fact, getattr(self, fact))))
        return {"vocab", "answers", "question_types", "preprocessing"}

    def augment(self, batch: VQABatch, draws: Tensor) -> VQABatch:
        """A training batch with its images changed so that every answer stays true; ``draws`` (I, K) in [0, 1)."""
        return batch

    def loader(self, part: str, **options: Any) -> TensorLoader:
        return TensorLoader(self.tables[part], self.batch_size, **options)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The number of each question and of its image, and the question."""
        return self.tables[part].names()

    def on_after_batch_transfer(self, batch: VQABatch, dataloader_idx: int) -> VQABatch:
        if self.draws and self.trainer is not None and self.trainer.training:
            draws = draws_per_sample(self.trainer, len(batch.images), self.draws, self.order_seed)
            batch = self.augment(batch, draws)
        found: VQABatch = self.to_float(batch)
        return found
