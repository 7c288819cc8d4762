"""VQAv2: open-ended questions about COCO photographs, from the official files of VQA v1 and v2.

Antol et al. 2015 (v1), Goyal et al. 2017 (v2). Ten people answered each question, and a candidate answer is scored
against all ten, so targets are soft: :func:`soft_scores`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from common.files import data_root, read_json, require
from common.pictures import EXTENSIONS, Fit
from common.vocabulary import tokenize
from datamodules.parts.image_features import CachedFeatures, PhotographFiles, write_features
from datamodules.parts.image_files import Broken
from datamodules.parts.loader import TensorLoader
from datamodules.parts.photograph_questions import ANSWER_TYPES, PhotographQuestions, RatedQuestion, scores_of
from datamodules.parts.visual_questions import split_images
from datamodules.parts.vqa_accuracy import normalize_answer

DOWNLOAD_PAGE = "https://visualqa.org/download.html"


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
        questions.append(
            RatedQuestion(
                image,
                text,
                normalize_answer(answer),
                ANSWER_TYPES.get(kind, re.sub(r"\W+", "_", kind.strip().lower())),
                str(annotation.get("question_type", "")),
                False,
                question_id,
                scores=scores_of(texts),
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


class CocoImages(PhotographFiles):
    """The images of a COCO folder such as ``train2014`` by their ids, the numbers at the end of their names."""

    record = "image_id"

    def __init__(self, folder: Path, size: int, fit: Fit = "squash") -> None:
        super().__init__(folder, _Numbered(folder), size, fit, DOWNLOAD_PAGE)

    def path(self, image_id: int) -> Path:
        """The image's file, or what it would be called in COCO."""
        name = f"COCO_{self.folder.name}_{image_id:012d}.jpg"
        return self.folder / self.files.get(image_id, name)

    def ids(self) -> list[int]:
        """The ids of all images in the folder, in ascending order."""
        return list(self.files)


class _Numbered(Mapping[int, str]):
    """The pictures of a folder by the numbers at the end of their names, in ascending order; looked up once needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _found(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for path in sorted(self.folder.iterdir()):
            number = re.search(r"\d+$", path.stem)
            if number is None or path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                continue
            if (image_id := int(number[0])) in found:
                raise ValueError(f"{path}: image_id {image_id} is also that of {found[image_id]}; expected one file")
            found[image_id] = path.name
        return dict(sorted(found.items()))

    def __getitem__(self, image_id: int) -> str:
        return self._found[image_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


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


class VQAv2(PhotographQuestions):
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
        folder = data_root(root) / "vqa_v2"
        cached = None if features is None else CachedFeatures(folder / features)
        super().__init__(batch_size, cached, image_size, fit, num_workers, num_answers, min_count, check, broken)
        self.test_files = folder / test_questions, None if test_annotations is None else folder / test_annotations
        self.image_folders = {"train": train_images, "val": train_images, "test": test_images}
        self.folder = folder
        for path in filter(None, self.test_files):  # not only when the training is over
            require(path, DOWNLOAD_PAGE)

        questions = read_questions(folder / train_questions, folder / train_annotations)
        images = sorted({question.image for question in questions})
        val_images = {images[i] for i in split_images(len(images), val_fraction, split_seed)[1]}
        train = [question for question in questions if question.image not in val_images]
        self.learn(train, [q for q in questions if q.image in val_images], ANSWER_TYPES.values())

    def pictures(self, part: str) -> PhotographFiles:
        return CocoImages(self.folder / self.image_folders[part], self.image_size, self.fit)

    def test_questions(self) -> list[RatedQuestion]:
        return read_questions(*self.test_files)

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return [] if self.test_files[1] is None else super().test_dataloader()
