"""Questions about pictures that are known by their files: a CSV file of one's own, and VizWiz."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from common.checks import within
from common.files import data_root, read_json, require
from common.pictures import Fit
from common.vocabulary import tokenize
from datamodules.parts.image_features import PhotographFiles
from datamodules.parts.image_files import Broken
from datamodules.parts.loader import TensorLoader
from datamodules.parts.photograph_questions import ANSWER_TYPES, PhotographQuestions, RatedQuestion, scores_of
from datamodules.parts.picture_tables import PictureLine, PictureNumbers, PictureTable, cut
from datamodules.parts.vqa_accuracy import normalize_answer

VIZWIZ_PAGE = "https://vizwiz.org/tasks-and-datasets/vqa"


def plain_answer(answer: str) -> str:
    """An answer of one's own as it is compared: without regard to upper case and white space, and else as it is.

    The official rules would make nothing of ``A`` and ``+``, and the same of ``5`` and ``-5``.
    """
    return " ".join(unicodedata.normalize("NFC", answer.lower()).split())


def most_frequent(answers: Sequence[str], normalize: Callable[[str], str]) -> str:
    """The answer that most people gave, normalized; of several, the first in the alphabet."""
    normal = [normalize(answer) for answer in answers]
    return min(set(normal), key=lambda answer: (-normal.count(answer), answer))


def answer_type(answer: str) -> str:
    """The official type of an answer: "yes/no", "number" or "other"."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"[\d.]+", answer) else "other"


def answered(
    image: int,
    text: str,
    answers: Sequence[str],
    number: int | str,
    kind: str = "",
    normalize: Callable[[str], str] = normalize_answer,
) -> RatedQuestion:
    """A question with what people answered, if they did; its type is by default that of the answer."""
    best = most_frequent(answers, normalize) if answers else ""
    kind = (kind or answer_type(best)).strip().lower()
    return RatedQuestion(
        image,
        text,
        best,
        ANSWER_TYPES.get(kind, re.sub(r"\W+", "_", kind)),
        "",
        False,
        number,
        scores=scores_of(answers, normalize) if answers else {},
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
    answers of several people; they are the same whatever their case and white space. Further columns are read if they
    are there: ``split`` (train, val or test), ``question_id``, and ``type``, by which the metrics are broken down, by
    default yes/no, number or other as the answer is. Without ``split``, all questions about a picture are in one part:
    a tenth of the pictures is for the test, and a tenth of the rest for validation.

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
        table = PictureTable(path, images, ("question",), ("answer", "question_id", "type"))
        self.numbers, self.parts_are_cut = table.numbers, not table.is_split
        questions = _questions(table)
        if any(question.scores for _, question in questions):
            known = [(part, question.image, question) for part, question in questions if question.scores]
            parts = table.in_parts(known, val_fraction, test_fraction, split_seed)
            left = f"; left out {len(questions) - len(known)} without an answer" if len(known) < len(questions) else ""
        else:
            parts = {"test": [question for _, question in questions]}
            left = f"; none has an answer{table.hint('answer')}"
        counts = ", ".join(f"{len(them)} {part}" for part, them in parts.items() if them)
        rank_zero_info(f"{table.file}: {counts} questions about {len(self.numbers.names)} pictures{left}")
        self.asked = parts["test"]
        self._part_names = [part for part, them in parts.items() if them]
        self.learn(parts.get("train", []), parts.get("val", []), ANSWER_TYPES.values())

    @property
    def part_names(self) -> list[str]:
        """Those that have questions."""
        return self._part_names


def _questions(table: PictureTable) -> list[tuple[str, RatedQuestion]]:
    """The questions of a table of one's own with the part of each; lines of the same question are of several people."""
    grouped: dict[tuple[str, int, str, str], list[PictureLine]] = {}
    for line in table.lines:
        text = line.values["question"]
        if not tokenize(text):
            raise table.malformed(line.number, f"question {text!r}, expected words")
        grouped.setdefault((line.part, line.image, text, line.values.get("question_id", "")), []).append(line)
    found, ids = [], dict[str, int]()
    for (part, image, text, name), lines in grouped.items():
        number, _, _, values = lines[0]
        if name and ids.setdefault(name, number) != number:
            raise table.malformed(number, f"question_id {name!r} is that of line {ids[name]} too")
        answers = [line.values.get("answer", "") for line in lines]
        given = [answer for answer in answers if plain_answer(answer)]
        kind = values.get("type", "")
        found.append((part, answered(image, text, given, name or number, kind, normalize=plain_answer)))
    return found


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
        within("(0, 1)", val_fraction=val_fraction)
        parts = {"train": [(question.image, question) for question in train], "val": []}
        cut(parts, "val", val_fraction, split_seed)
        known, held_back = ([question for _, question in parts[name]] for name in ("train", "val"))
        self.learn(known, held_back, [*ANSWER_TYPES.values(), "unanswerable"])

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


def _texts(answers: object) -> list[str] | None:
    if not isinstance(answers, Iterable) or isinstance(answers, str):
        return None
    texts: list[Any] = [entry.get("answer") if isinstance(entry, dict) else None for entry in answers]
    return texts if all(isinstance(text, str) for text in texts) else None
