"""Questions about photographs that people have answered: soft targets, candidate answers, and images on request.

A candidate answer is scored against all that people gave to the question: :func:`soft_scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of
from common.pictures import Fit
from common.vocabulary import PAD, UNK, build_vocab
from datamodules.parts.image_features import CachedFeatures, PhotographFiles
from datamodules.parts.image_files import Broken
from datamodules.parts.loader import TensorLoader, WorkerLoader, checksum
from datamodules.parts.visual_questions import Question, QuestionTable, VisualQuestions, VQABatch, language_prior
from datamodules.parts.vqa_accuracy import normalize_answer, soft_scores

ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}
"""the names of the answer types in the official files, and ours"""


@dataclass(kw_only=True)
class RatedQuestion(Question):
    """A question whose ``answer`` is the most frequent one, with the score of every given answer."""

    scores: dict[str, float]


def scores_of(answers: Sequence[str], normalize: Callable[[str], str] = normalize_answer) -> dict[str, float]:
    """The score of each answer that people gave, normalized also where all said the same.

    The official evaluation leaves those as they are; what is learned is normalized throughout.
    """
    return {normalize(answer): score for answer, score in soft_scores(answers, normalize).items()}


class RatedQuestionTable(QuestionTable):
    """A :class:`QuestionTable` that loads its images when a batch is formed, and whose ``answers`` are (Q, A) scores.

    ``questions`` refer to their images by id. Only the scores of given answers are kept: all those of VQA v2's training
    questions would take 1.8 GB.
    """

    def __init__(
        self,
        images: PhotographFiles | CachedFeatures,
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


class PhotographQuestions(VisualQuestions):
    """Shared by the data sets of questions about photographs, with soft targets.

    A source calls :meth:`learn` in its constructor, and says where photographs and the questions of the test are. The
    candidate answers are the most frequent ones of the training part, and the vocabulary is that of its questions.
    Training questions without a candidate answer are left out, which is said; validation and test keep theirs, for
    which any prediction is wrong.

    Args:
        batch_size: images per rank and batch; each comes with all of its questions.
        features: the image features to use instead of the images.
        image_size: height and width that images are brought to.
        fit: how, see :func:`common.pictures.fitted`; by default nothing is cropped, since the object of a question may
            be at the edge.
        num_workers: number of processes that decode images.
        num_answers: largest number of candidate answers.
        min_count: words that occur less often in the training questions become ``<unk>``.
        check, broken: before the first step, decode each photograph once; at one that cannot be decoded stop ("error"),
            or leave it out ("skip").

    Raises:
        ValueError: an argument is out of range.
    """

    soft_answers = True

    def __init__(
        self,
        batch_size: int,
        features: CachedFeatures | None,
        image_size: int,
        fit: Fit,
        num_workers: int,
        num_answers: int,
        min_count: int,
        check: bool,
        broken: Broken,
    ) -> None:
        super().__init__(batch_size)
        one_of(Broken, broken=broken)
        one_of(Fit, fit=fit)
        at_least(1, image_size=image_size, num_answers=num_answers, min_count=min_count)
        at_least(0, num_workers=num_workers)
        self.features, self.image_size, self.fit, self.num_workers = features, image_size, fit, num_workers
        self.num_answers, self.min_count = num_answers, min_count
        self.check, self.broken = check, broken
        self.preprocessing = {"fit": fit, "stored": None}
        self.image_shape = [3, image_size, image_size] if features is None else features.shape

    def pictures(self, part: str) -> PhotographFiles:
        """The photographs of a part by the numbers that its questions have."""
        raise NotImplementedError

    def test_questions(self) -> list[RatedQuestion]:
        """Those of the test part."""
        raise NotImplementedError

    def learn(self, train: list[RatedQuestion], val: list[RatedQuestion], types: Iterable[str]) -> None:
        """Answers, words and types from the training part; without any, a checkpoint has to bring them.

        Args:
            types: the first question types, in their order; others of both parts follow in that of the alphabet.
        """
        self._questions = {"train": train, "val": val}
        self.answers = top_answers((question.answer for question in train), self.num_answers)
        self._choose()
        kept = self._questions["train"]
        self.vocab = build_vocab((question.text for question in kept), self.min_count) if kept else [PAD, UNK]
        kinds = {question.kind for part in self._questions.values() for question in part}
        self.question_types = [*types, *sorted(kinds - set(types))]

    def _choose(self) -> None:
        """Leaves out the training questions without a candidate answer, and learns what language alone suggests."""
        candidates = set(self.answers)
        train = self._questions["train"]
        kept = [question for question in train if not candidates.isdisjoint(question.scores)]
        if 0 < len(kept) < len(train):
            rank_zero_info(f"left out {len(train) - len(kept)} of {len(train)} training questions: no candidate answer")
        self._questions["train"] = kept
        self._prior = language_prior([q for q in self._questions["train"] if q.answer in candidates])

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`VisualQuestions.adopt`; answers that the model does not know are no candidates, as ever."""
        settled = super().adopt({name: value for name, value in facts.items() if name != "answers"})
        if "answers" in facts:
            self.knows_prior = False
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
            if not self._questions.get("train", True):  # not once they are in a table
                raise ValueError(
                    f"num_answers={self.num_answers}: no training question has one of {len(self.answers)} candidate "
                    "answers, expected some to train on"
                )
            for part, questions in self._questions.items():
                self._usable(part, questions)
        self._usable("test", self.test_questions())

    def _usable(self, part: str, questions: list[RatedQuestion]) -> list[RatedQuestion]:
        """The questions about photographs that can be decoded."""
        if self.features is not None or not self.check or not questions:
            return questions
        lost = self.pictures(part).undecodable({question.image for question in questions}, self.broken)
        return [question for question in questions if question.image not in lost]

    def setup(self, stage: str | None = None) -> None:
        parts = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for part in parts.get(stage or "", ("train", "val", "test")):
            if part not in self.tables:
                # The lists are dropped as they are used up: the tables hold all that is needed.
                questions = self.test_questions() if part == "test" else self._questions.pop(part)
                if not questions:
                    continue
                self.tables[part] = RatedQuestionTable(
                    self.pictures(part) if self.features is None else self.features,
                    self._usable(part, questions),
                    self.answers,
                    prior=self._prior if self.knows_prior else None,
                    vocab=self.vocab,
                    question_types=self.question_types,
                )

    def official_results(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predictions in the results format of VQA, which its evaluation code reads."""
        return [{"question_id": row["question_id"], "answer": row["answer"]} for row in rows]

    def loader(self, part: str, **options: Any) -> TensorLoader:
        if self.features is None:
            return WorkerLoader(self.tables[part], self.batch_size, num_workers=self.num_workers, **options)
        return super().loader(part, **options)


def top_answers(answers: Iterable[str], num_answers: int) -> list[str]:
    """The most frequent answers in descending order of frequency, ties alphabetically. Empty answers do not count."""
    counts = Counter(answer for answer in answers if answer)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:num_answers]
