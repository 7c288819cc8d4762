"""Questions about pictures that are known by their files: a CSV file of one's own, and VizWiz."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from common.checks import nearest, within
from common.files import data_root, existing, nearest_path, read_json, require
from common.pictures import Fit
from common.vocabulary import tokenize
from datamodules.parts.image_features import PhotographFiles
from datamodules.parts.image_files import Broken, part_called
from datamodules.parts.loader import TensorLoader
from datamodules.parts.photograph_questions import ANSWER_TYPES, PhotographQuestions, RatedQuestion, scores_of
from datamodules.parts.tables import read_table
from datamodules.parts.visual_questions import split_images
from datamodules.parts.vqa_accuracy import normalize_answer

VIZWIZ_PAGE = "https://vizwiz.org/tasks-and-datasets/vqa"
MOST_SHOWN = 5000
"""names among which the nearest to a wrong one is looked for"""


class PictureNumbers:
    """Numbers for pictures that are known by the names of their files, in the order in which they are first asked for.

    Args:
        folder: of the pictures.
        page: where to get them, for the message of a missing one.
    """

    def __init__(self, folder: Path, page: str) -> None:
        self.folder, self.page = folder, page
        self.names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        name = name.replace("\\", "/").removeprefix("./")
        if name not in self._numbers:
            number = self._numbers[name] = len(self.names)
            self.names[number] = name
        return self._numbers[name]

    def files(self, size: int, fit: Fit) -> PhotographFiles:
        return PhotographFiles(self.folder, self.names, size, fit, self.page)


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that most people gave, normalized; of several, the first in the alphabet."""
    normal = [normalize_answer(answer) for answer in answers]
    return min(set(normal), key=lambda answer: (-normal.count(answer), answer))


def answer_type(answer: str) -> str:
    """The official type of an answer: "yes/no", "number" or "other"."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"[\d.]+", answer) else "other"


def answered(
    image: int, text: str, answers: Sequence[str], number: int | str, kind: str = "", asked: str = ""
) -> RatedQuestion:
    """A question with what people answered, if they did; its type is by default that of the answer."""
    best = most_frequent(answers) if answers else ""
    kind = (kind or answer_type(best)).strip().lower()
    return RatedQuestion(
        image,
        text,
        best,
        ANSWER_TYPES.get(kind, re.sub(r"\W+", "_", kind)),
        asked,
        False,
        number,
        scores=scores_of(answers) if answers else {},
    )


class NamedPictureQuestions(PhotographQuestions):
    """Shared by the sources of this file: pictures by the names of their files, and a test that may have no answers.

    A source sets ``numbers`` and ``asked`` in its constructor.
    """

    numbers: PictureNumbers
    asked: list[RatedQuestion]
    """the questions of the test part"""

    def pictures(self, part: str) -> PhotographFiles:
        """Of all parts."""
        return self.numbers.files(self.image_size, self.fit)

    def test_questions(self) -> list[RatedQuestion]:
        return self.asked

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The id of each question, the file of its picture, and the question."""
        names = super().sample_names(part)
        files = [self.numbers.names[number] for number in names["image_id"]]
        return {"question_id": names["question_id"], "image": files, "question": names["question"]}

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return super().test_dataloader() if any(question.scores for question in self.asked) else []


class CSVQuestions(NamedPictureQuestions):
    """Questions of one's own about pictures of one's own: a CSV file with the columns ``image,question,answer``.

    ``image`` is the path of a picture below ``images``. Several lines with the same picture and question are the
    answers of several people. Further columns are read if they are there: ``split`` (train, val or test),
    ``question_id``, and ``type``, by which the metrics are broken down, by default yes/no, number or other as the
    answer is. Without ``split``, all questions about a picture are in one part: a tenth of the pictures is for the
    test, and a tenth of the rest for validation.

    Questions without an answer are left out, which is said, unless none has one: then all of them are the test part,
    whose answers can be predicted. The candidate answers and the words are those of the training part, see
    :class:`~datamodules.parts.photograph_questions.PhotographQuestions`.

    Args:
        path: the CSV file, or its name in the data folder (``LIT_DATA``, by default ``data/``).
        images: the folder of the pictures, by default that of the file.
        batch_size: pictures per rank and batch; each comes with all of its questions.
        val_fraction, test_fraction: shares of the pictures for validation and test, where the file has no ``split``; if
            it has one without any line for validation, that is cut from the training pictures.
        split_seed: seed of the split, independent of the run's seed.
        image_size, fit, num_workers, num_answers, min_count, check, broken: see
            :class:`~datamodules.parts.photograph_questions.PhotographQuestions`.

    Raises:
        FileNotFoundError: the file, the folder or a picture is not there; names the nearest.
        ValueError: an argument is out of range, or the file is malformed; names the line.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        batch_size: int = 32,
        image_size: int = 128,
        fit: Fit = "squash",
        num_workers: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        num_answers: int = 1000,
        min_count: int = 1,
        split_seed: int = 0,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        super().__init__(batch_size, None, image_size, fit, num_workers, num_answers, min_count, check, broken)
        within("(0, 1)", val_fraction=val_fraction)
        within("[0, 1)", test_fraction=test_fraction)
        file = existing(path)
        if not file.is_file():
            raise FileNotFoundError(f"path={path}: no such file; expected a CSV file{nearest_path(file)}")
        folder = existing(images) if images else file.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"images={images}: no such folder{nearest_path(folder)}")
        self.path, self.numbers = file, PictureNumbers(folder, f"{folder}, which images=… may change")
        parts = self._read(file)
        self.parts_are_cut = "" in parts
        questions = [question for part in parts.values() for question in part]
        if not any(question.scores for question in questions):  # nobody has answered yet
            self.asked, self._part_names = questions, ["test"]
            self.learn([], [], ANSWER_TYPES.values())
            return
        without = sum(not question.scores for question in questions)
        parts = {part: [question for question in them if question.scores] for part, them in parts.items()}
        if self.parts_are_cut:
            parts = _cut({"train": parts[""], "test": []}, "test", test_fraction, split_seed)
        if not parts.get("val"):
            parts = _cut(parts, "val", val_fraction, split_seed)
        self.asked = parts.get("test", [])
        self._part_names = [part for part in ("train", "val", "test") if parts.get(part)]
        self._say(parts, without)
        self.learn(parts["train"], parts["val"], ANSWER_TYPES.values())

    @property
    def part_names(self) -> list[str]:
        """Those that have questions."""
        return self._part_names

    def _read(self, file: Path) -> dict[str, list[RatedQuestion]]:
        """The questions of each part; of the part "" where the file has no column ``split``."""
        lines = read_table(
            file.read_bytes(), str(file), ("image", "question"), ("answer", "split", "question_id", "type")
        )
        grouped: dict[tuple[str, str, str], list[tuple[int, dict[str, str]]]] = {}
        for number, values in lines:
            if not values["image"] or not tokenize(values["question"]):
                raise ValueError(f"{file}:{number}: expected a picture as 'image' and words as 'question'")
            key = values["image"], values["question"], values.get("question_id", "")
            grouped.setdefault(key, []).append((number, values))
        if not grouped:
            raise ValueError(f"{file}: has no line below its heading, expected questions")
        there: dict[Path, set[str]] = {}
        parts: dict[str, list[RatedQuestion]] = {}
        ids: dict[str, int] = {}
        for (image, text, name), given in grouped.items():
            number, values = given[0]
            picture = self.numbers.folder / image.replace("\\", "/")
            if picture.parent not in there:
                there[picture.parent] = {p.name for p in picture.parent.iterdir()} if picture.parent.is_dir() else set()
            if picture.name not in there[picture.parent]:
                hint = nearest(picture.name, sorted(there[picture.parent])[:MOST_SHOWN])
                raise FileNotFoundError(f"{file}:{number}: no picture {picture}{hint}")
            if name and ids.setdefault(name, number) != number:
                raise ValueError(f"{file}:{number}: question_id {name!r} is that of line {ids[name]} too")
            part = part_called(values["split"]) if "split" in values else ""
            if part is None:
                raise ValueError(f"{file}:{number}: split {values['split']!r}, expected train, val or test")
            answers = [line["answer"] for _, line in given if normalize_answer(line.get("answer", ""))]
            made = answered(self.numbers[image], text, answers, name or number, values.get("type", ""))
            parts.setdefault(part, []).append(made)
        if "" not in parts and not parts.get("train"):
            raise ValueError(f"{file}: no line with split train, expected some")
        return parts

    def _say(self, parts: Mapping[str, Sequence[RatedQuestion]], without: int) -> None:
        counts = ", ".join(f"{len(them)} {part}" for part, them in parts.items())
        left = f"; left out {without} without an answer" if without else ""
        rank_zero_info(f"{self.path}: {counts} questions about {len(self.numbers.names)} pictures{left}")


def _cut(
    parts: Mapping[str, list[RatedQuestion]], name: str, fraction: float, seed: int
) -> dict[str, list[RatedQuestion]]:
    """The parts with another one, ``name``, of a share of the training pictures with all of their questions."""
    images = sorted({question.image for question in parts["train"]})
    count = max(1, round(fraction * len(images))) if fraction else 0
    if count >= len(images):
        raise ValueError(f"{name}_fraction={fraction}: leaves none of {len(images)} pictures for training")
    chosen = split_images(len(images), count / len(images), seed)[1] if count else []
    taken = {images[i] for i in chosen}
    found: dict[str, list[RatedQuestion]] = {"train": [], name: []}
    for question in parts["train"]:
        found[name if question.image in taken else "train"].append(question)
    return {**parts, **found}


class VizWiz(NamedPictureQuestions):
    """Questions that blind people asked about their own photographs, many of which can't be answered.

    Gurari et al. 2018, "VizWiz Grand Challenge". Ten people answered each question; one of the answers is
    *unanswerable*, which is also a question type. Trains on the official training part without a validation split of
    its pictures, and tests on the official validation part, since the test's answers are not public.

    Args:
        root: the data folder, by default ``LIT_DATA`` or ``data/``; the files are in its folder ``vizwiz/``. The paths
            below are relative to it, or absolute.
        train_annotations, test_annotations: official files. One without answers, such as ``test.json``, can be
            predicted.
        train_images, test_images: folders of the pictures.
        val_fraction: share of the training pictures used for validation.
        batch_size, split_seed, image_size, fit, num_workers, num_answers, min_count, check, broken: see
            :class:`CSVQuestions`.

    Raises:
        FileNotFoundError: a file or a picture is not there; says where to get it.
        ValueError: an argument is out of range, or a file is malformed; names the file and the record.
    """

    def __init__(
        self,
        root: str | None = None,
        train_annotations: str = "Annotations/train.json",
        test_annotations: str = "Annotations/val.json",
        train_images: str = "train",
        test_images: str = "val",
        batch_size: int = 92,
        image_size: int = 224,
        fit: Fit = "squash",
        num_workers: int = 4,
        val_fraction: float = 0.1,
        num_answers: int = 3000,
        min_count: int = 1,
        split_seed: int = 0,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        folder = data_root(root) / "vizwiz"
        super().__init__(batch_size, None, image_size, fit, num_workers, num_answers, min_count, check, broken)
        self.numbers = PictureNumbers(folder, VIZWIZ_PAGE)
        for path in (folder / train_annotations, folder / test_annotations):
            require(path, VIZWIZ_PAGE)
        train = read_vizwiz(folder / train_annotations, train_images, self.numbers)
        self.asked = read_vizwiz(folder / test_annotations, test_images, self.numbers)
        parts = _cut({"train": train}, "val", val_fraction, split_seed)
        self.learn(parts["train"], parts["val"], [*ANSWER_TYPES.values(), "unanswerable"])

    def official_results(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the challenge expects them: the name of each picture, and the answer."""
        return [{"image": Path(row["image"]).name, "answer": row["answer"]} for row in rows]


def read_vizwiz(path: Path, folder: str, numbers: PictureNumbers) -> list[RatedQuestion]:
    """The questions of an official file of VizWiz, in its order; those of the test have no answers.

    Args:
        folder: of the pictures, as ``numbers`` knows them.

    Raises:
        ValueError: a record is malformed; names it.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a file as from {VIZWIZ_PAGE}, a list of records")
    questions = []
    for place, record in enumerate(records):
        image, text = (record.get(key) if isinstance(record, dict) else None for key in ("image", "question"))
        if not isinstance(image, str) or not isinstance(text, str) or not tokenize(text):
            raise ValueError(f"{path}: record {place}: expected a file name as 'image' and words as 'question'")
        answers = _texts(record.get("answers", ()))
        if answers is None:
            raise ValueError(f"{path}: record {place}: expected 'answers', each with a text as 'answer'")
        kind = record.get("answer_type", "other")
        questions.append(answered(numbers[f"{folder}/{image}"], text, answers, place, str(kind)))
    return questions


def _texts(answers: Any) -> list[str] | None:
    if not isinstance(answers, Iterable) or isinstance(answers, str):
        return None
    texts: list[Any] = [entry.get("answer") if isinstance(entry, dict) else None for entry in answers]
    return texts if all(isinstance(text, str) for text in texts) else None
