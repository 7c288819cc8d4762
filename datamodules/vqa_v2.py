"""VQAv2: open-ended questions about COCO photographs, from the official files of VQA v1 and v2.

Antol et al. 2015 (v1), Goyal et al. 2017 (v2). Ten people answered each question, and a candidate answer is scored
against all ten, so targets are soft: :func:`soft_scores`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from common.checks import at_least, one_of
from common.files import data_root, read_json, require
from common.pictures import EXTENSIONS, Fit
from common.vocabulary import build_vocab, tokenize
from datamodules.parts.image_features import CachedFeatures, decode_photograph, undecodable, write_features
from datamodules.parts.image_files import Broken
from datamodules.parts.loader import TensorLoader, WorkerLoader, checksum
from datamodules.parts.visual_questions import (
    Question,
    QuestionTable,
    VisualQuestions,
    VQABatch,
    language_prior,
    split_images,
)
from datamodules.parts.vqa_accuracy import normalize_answer, soft_scores

DOWNLOAD_PAGE = "https://visualqa.org/download.html"
ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}
"""the names of the answer types in the files, and ours"""


@dataclass(kw_only=True)
class RatedQuestion(Question):
    """A question whose ``answer`` is the most frequent one, with the score of every given answer."""

    scores: dict[str, float]


def read_questions(questions_path: Path, annotations_path: Path | None) -> list[RatedQuestion]:
    """The questions of an official pair of files, in the order of their ids; ``image`` is the COCO image id.

    Without annotations nobody has answered them: they have no scores, and are of the type "other".

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or a record of it is malformed; names the file and the question id.
    """
    asked = _read_records(questions_path, "questions")
    annotated = {} if annotations_path is None else _read_records(annotations_path, "annotations")
    for question_id in sorted(annotated.keys() - asked.keys()):
        assert annotations_path is not None
        raise _malformed(annotations_path, question_id, f"a question of that id in {questions_path.name}")
    questions = []
    for question_id in sorted(asked):
        question, annotation = asked[question_id], annotated.pop(question_id, None)  # popped: half of the memory
        if annotation is None and annotations_path is not None:
            raise _malformed(questions_path, question_id, f"an annotation in {annotations_path.name}")
        image, text = question.get("image_id"), question.get("question")
        if not isinstance(image, int):
            raise _malformed(questions_path, question_id, "a whole number as 'image_id'")
        if not isinstance(text, str) or not tokenize(text):
            raise _malformed(questions_path, question_id, "words as 'question'")
        if annotation is None or annotations_path is None:
            questions.append(RatedQuestion(image, text, "", "other", "", False, question_id, scores={}))
            continue
        if annotation.get("image_id") != image:
            raise _malformed(annotations_path, question_id, f"image_id {image}, as in {questions_path.name}")
        kind, answer = annotation.get("answer_type", "other"), annotation.get("multiple_choice_answer")
        if not isinstance(kind, str) or not kind.strip():
            raise _malformed(annotations_path, question_id, "a text as 'answer_type', such as 'yes/no'")
        if not isinstance(answer, str):
            raise _malformed(annotations_path, question_id, "a text as 'multiple_choice_answer'")
        given = annotation.get("answers")
        entries = given if isinstance(given, list) else []
        texts: list[Any] = [entry.get("answer") if isinstance(entry, dict) else None for entry in entries]
        if not texts or not all(isinstance(answer, str) for answer in texts):
            raise _malformed(annotations_path, question_id, "one or more 'answers', each with a text as 'answer'")
        # Also where all said the same, which the evaluation then leaves as it is: what is learned is normalized.
        scores = {normalize_answer(answer): score for answer, score in soft_scores(texts).items()}
        questions.append(
            RatedQuestion(
                image,
                text,
                normalize_answer(answer),
                ANSWER_TYPES.get(kind, re.sub(r"\W+", "_", kind.strip().lower())),
                str(annotation.get("question_type", "")),
                False,
                question_id,
                scores=scores,
            )
        )
    return questions


def _malformed(path: Path, question_id: int, expected: str) -> ValueError:
    return ValueError(f"{path}: question_id {question_id}: expected {expected}")


def _read_records(path: Path, key: str) -> dict[int, dict[str, Any]]:
    """The records that an official file holds under ``key``, by their question ids."""
    require(path, DOWNLOAD_PAGE)
    content = read_json(path)
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected an official VQA file, with a list of records under {key!r}")
    by_id: dict[int, dict[str, Any]] = {}
    for place, record in enumerate(records):
        question_id = record.get("question_id") if isinstance(record, dict) else None
        if not isinstance(question_id, int):
            raise ValueError(f"{path}: record {place} of {key!r}: expected a whole number as 'question_id'")
        if question_id in by_id:
            raise _malformed(path, question_id, "it only once")
        by_id[question_id] = record
    return by_id


class CocoImages:
    """The images of a COCO folder such as ``train2014``, decoded on request: (I, 3, size, size) uint8.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: on request, an image cannot be decoded; names the file and the image id.
    """

    def __init__(self, folder: Path, size: int, fit: Fit = "squash") -> None:
        require(folder, DOWNLOAD_PAGE)
        self.folder, self.size, self.fit = folder, size, fit

    @cached_property
    def files(self) -> dict[int, Path]:
        """The image of each id, the number at the end of its name, in ascending order."""
        found: dict[int, Path] = {}
        for path in sorted(self.folder.iterdir()):
            number = re.search(r"\d+$", path.stem)
            if number is None or path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                continue
            if (image_id := int(number[0])) in found:
                raise ValueError(
                    f"{path}: image_id {image_id} is also that of {found[image_id].name}; expected one file"
                )
            found[image_id] = path
        return dict(sorted(found.items()))

    def path(self, image_id: int) -> Path:
        """The image's file, or what it would be called in COCO."""
        return self.files.get(image_id, self.folder / f"COCO_{self.folder.name}_{image_id:012d}.jpg")

    def ids(self) -> list[int]:
        """The ids of all images in the folder, in ascending order."""
        return list(self.files)

    def check(self, image_ids: Iterable[int]) -> None:
        """Raises FileNotFoundError at the first missing image."""
        there = set(self.ids())  # one look at the folder instead of one per image
        for image_id in image_ids:
            if image_id not in there:
                raise FileNotFoundError(
                    f"{self.path(image_id)}: image_id {image_id} not found; {self.folder.name} is at {DOWNLOAD_PAGE}"
                )

    def __call__(self, image_ids: Sequence[int]) -> Tensor:
        return torch.stack([decode_photograph(self.path(i), self.size, self.fit, f"image_id {i}") for i in image_ids])


def cache_features(
    encoder: nn.Module, folders: Sequence[Path], prefix: Path, size: int = 224, batch_size: int = 64
) -> None:
    """Writes the features of all images in COCO ``folders``; ``encoder`` gets them at ``size`` × ``size`` pixels.

    See :func:`datamodules.parts.image_features.write_features`.
    """
    images = [(source, image_id) for source in (CocoImages(f, size) for f in folders) for image_id in source.ids()]
    if not images:
        raise FileNotFoundError(f"{[str(f) for f in folders]}: no COCO images; download them from {DOWNLOAD_PAGE}")
    write_features(encoder, images, prefix, batch_size)


class RatedQuestionTable(QuestionTable):
    """A :class:`QuestionTable` that loads its images when a batch is formed, and whose ``answers`` are (Q, A) scores.

    ``questions`` refer to their images by id. Only the scores of given answers are kept: all those of VQA v2's training
    questions would take 1.8 GB.
    """

    def __init__(
        self,
        images: CocoImages | CachedFeatures,
        questions: Sequence[RatedQuestion],
        answers: Sequence[str],
        **facts: Any,
    ) -> None:
        questions = sorted(questions, key=lambda question: question.image)  # as the base class sorts them
        ids = sorted({question.image for question in questions})
        images.check(ids)
        row = {image_id: i for i, image_id in enumerate(ids)}
        column = {answer: i for i, answer in enumerate(answers)}
        most = max((len(question.scores) for question in questions), default=0)
        columns = np.zeros((len(questions), most), np.int64)
        scores = np.zeros((len(questions), most), np.float32)
        for i, question in enumerate(questions):
            for j, answer in enumerate(answer for answer in question.scores if answer in column):
                columns[i, j], scores[i, j] = column[answer], question.scores[answer]
        # The base class wants one answer that is a class; it is not looked at again.
        super().__init__(
            torch.tensor(ids),
            [replace(question, image=row[question.image], answer=answers[0]) for question in questions],
            answers=answers,
            image_numbers=ids,
            **facts,
        )
        self.source, self.num_answers = images, len(answers)
        self.columns, self.scores = torch.from_numpy(columns), torch.from_numpy(scores)
        self.answers = torch.arange(len(questions))  # a question's row, for its scores

    def fingerprint(self) -> int:
        """A checksum of the questions, their scores and the image ids; the images may be too many to read."""
        return super().fingerprint() ^ checksum([self.columns, self.scores])

    def __getitem__(self, indices: Tensor) -> VQABatch:
        batch = super().__getitem__(indices)
        # Unused places add a score of 0 to answer 0.
        answers = torch.zeros(len(batch.answers), self.num_answers)
        answers.scatter_add_(1, self.columns[batch.answers], self.scores[batch.answers])
        return batch._replace(images=self.source(batch.images.tolist()), answers=answers)


class VQAv2(VisualQuestions):
    """The official VQA v2 (or v1) questions about COCO photographs, with soft targets.

    Trains on train2014 without a validation split of its *images*, and tests on val2014, since the test set's answers
    are not public. The candidate answers are the most frequent ``multiple_choice_answer`` of the training part, and the
    vocabulary is that of its questions. Training questions without a candidate answer are left out, which is said;
    validation and test keep theirs, for which any prediction is wrong. ``question_types`` are the files' answer types,
    the official ones first. A question may have been answered by any number of people.

    Args:
        root: the data folder, by default ``LIT_DATA`` or ``data/``; the files are in its folder ``vqa_v2/``. The paths
            below are relative to it, or absolute.
        train_questions, train_annotations, test_questions, test_annotations: official files of VQA v2. Those of v1 are
            ``OpenEnded_mscoco_train2014_questions.json``, ``mscoco_train2014_annotations.json`` and so on. Without
            ``test_annotations`` (null) there is no test, but the questions can be predicted.
        train_images, test_images: folders of the images, whose names end in their ids, as COCO's do, or ``7.png``.
        features: ``<prefix>`` of the image features to use instead, for both folders together: see
            :class:`CachedFeatures`. ``null`` decodes the images.
        image_size: height and width that images are brought to.
        fit: how, see :func:`common.pictures.fitted`; by default nothing is cropped, since the object of a question may
            be at the edge.
        num_workers: number of processes that decode images.
        check, broken: before the first step, decode each photograph once; at one that cannot be decoded stop ("error"),
            or leave it out ("skip").
        batch_size: images per rank and batch; about 5.4 questions come with each (in v1, 3).
        val_fraction: share of the training images used for validation.
        num_answers: largest number of candidate answers.
        min_count: words that occur less often in the training questions become ``<unk>``.
        split_seed: seed of the validation split, independent of the run's seed.

    Raises:
        FileNotFoundError: a file or an image does not exist; says where to get it.
        ValueError: an argument is out of range, or a file is malformed; names the file and the record.
    """

    soft_answers = True

    def __init__(
        self,
        root: str | None = None,
        train_questions: str = "v2_OpenEnded_mscoco_train2014_questions.json",
        train_annotations: str = "v2_mscoco_train2014_annotations.json",
        test_questions: str = "v2_OpenEnded_mscoco_val2014_questions.json",
        test_annotations: str | None = "v2_mscoco_val2014_annotations.json",
        train_images: str = "train2014",
        test_images: str = "val2014",
        features: str | None = None,
        image_size: int = 224,
        fit: Fit = "squash",
        num_workers: int = 4,
        batch_size: int = 92,
        val_fraction: float = 0.1,
        num_answers: int = 1000,
        min_count: int = 1,
        split_seed: int = 0,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        super().__init__(batch_size)
        one_of(Broken, broken=broken)
        self.check, self.broken = check, broken
        at_least(1, image_size=image_size, num_answers=num_answers, min_count=min_count)
        at_least(0, num_workers=num_workers)
        folder = data_root(root) / "vqa_v2"
        self.test_files = folder / test_questions, None if test_annotations is None else folder / test_annotations
        self.image_folders = {
            "train": folder / train_images,
            "val": folder / train_images,
            "test": folder / test_images,
        }
        self.features = None if features is None else folder / features
        one_of(Fit, fit=fit)
        self.image_size, self.fit = image_size, fit
        self.num_workers = num_workers
        for path in filter(None, self.test_files):  # not only when the training is over
            require(path, DOWNLOAD_PAGE)

        questions = read_questions(folder / train_questions, folder / train_annotations)
        images = sorted({question.image for question in questions})
        val_images = {images[i] for i in split_images(len(images), val_fraction, split_seed)[1]}
        train = [question for question in questions if question.image not in val_images]
        self.answers = top_answers((question.answer for question in train), num_answers)
        self._questions = {"train": train, "val": [q for q in questions if q.image in val_images]}
        self._choose()
        self.vocab = build_vocab((question.text for question in self._questions["train"]), min_count)
        kinds = {question.kind for part in self._questions.values() for question in part}
        self.question_types = [*ANSWER_TYPES.values(), *sorted(kinds - set(ANSWER_TYPES.values()))]
        self.preprocessing = {"fit": fit, "stored": None}
        self.image_shape = [3, image_size, image_size] if self.features is None else CachedFeatures(self.features).shape

    def _choose(self) -> None:
        """Leaves out the training questions without a candidate answer, and learns what language alone suggests."""
        candidates = set(self.answers)
        train = self._questions["train"]
        kept = [question for question in train if not candidates.isdisjoint(question.scores)]
        if not kept:
            raise ValueError(f"num_answers={len(candidates)}: no training question has one of these answers")
        if len(kept) < len(train):
            rank_zero_info(f"left out {len(train) - len(kept)} of {len(train)} training questions: no candidate answer")
        self._questions["train"] = kept
        self._prior = language_prior([q for q in self._questions["train"] if q.answer in candidates])

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`VisualQuestions.adopt`; answers that the model does not know are no candidates, as ever."""
        settled = super().adopt({name: value for name, value in facts.items() if name != "answers"})
        if "answers" in facts:
            self.answers = list(facts["answers"])
            self._choose()
        if self.features is None:
            self.image_shape = list(facts.get("image_shape", self.image_shape))
            self.preprocessing = facts.get("preprocessing") or self.preprocessing
            self.image_size, self.fit = self.image_shape[1], self.preprocessing["fit"]
            settled.add("image_shape")
        return settled

    def prepare_data(self) -> None:
        """Looks at all photographs that the run will need, also at those of the test, before its first step."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            for part, questions in self._questions.items():
                self._usable(part, questions)
        self._usable("test", read_questions(*self.test_files))

    def _usable(self, part: str, questions: list[RatedQuestion]) -> list[RatedQuestion]:
        """The questions about photographs that can be decoded."""
        if self.features is not None or not self.check:
            return questions
        folder, ids = CocoImages(self.image_folders[part], self.image_size), {q.image for q in questions}
        folder.check(sorted(ids))
        lost = undecodable([(folder.path(i), f"image_id {i}") for i in sorted(ids)], self.broken)
        return [question for question in questions if folder.path(question.image) not in lost]

    def setup(self, stage: str | None = None) -> None:
        parts = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for part in parts.get(stage or "", ("train", "val", "test")):
            if part not in self.tables:
                # The lists are dropped as they are used up: the tables hold all that is needed.
                questions = read_questions(*self.test_files) if part == "test" else self._questions.pop(part)
                self.tables[part] = RatedQuestionTable(
                    CocoImages(self.image_folders[part], self.image_size, self.fit)
                    if self.features is None
                    else CachedFeatures(self.features),
                    self._usable(part, questions),
                    self.answers,
                    prior=self._prior,
                    vocab=self.vocab,
                    question_types=self.question_types,
                )

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return [] if self.test_files[1] is None else super().test_dataloader()

    def loader(self, part: str, **options: Any) -> TensorLoader:
        if self.features is None:
            return WorkerLoader(self.tables[part], self.batch_size, num_workers=self.num_workers, **options)
        return super().loader(part, **options)


def top_answers(answers: Iterable[str], num_answers: int) -> list[str]:
    """The most frequent answers in descending order of frequency, ties alphabetically. Empty answers do not count."""
    counts = Counter(answer for answer in answers if answer)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:num_answers]
