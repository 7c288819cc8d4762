"""Questions about pictures that are known by their files: a CSV file of one's own, and VizWiz."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.vqa_files import CSVQuestions, VizWiz
from experiments.cli import CLI, build
from lit_models.scores.vqa import VQAScores
from tests.conftest import QUIET

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def paint(file: Path, color: tuple[int, int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), color, np.uint8)).save(file)


def write_questions(folder: Path, pictures: int = 20, more: str = "") -> Path:
    """``questions.csv``: two questions about each of some pictures, one of them answered by two people."""
    lines = ["image,question,answer"]
    for number in range(pictures):
        color = list(COLORS)[number % 3]
        paint(folder / "pictures" / f"{number:02}.png", COLORS[color])
        lines.append(f"pictures/{number:02}.png,What color is it?,{color.upper() if number % 2 else color}")
        lines += [f"pictures/{number:02}.png,Is it red?,{'Yes' if color == 'red' else 'no'}"] * 2
    file = folder / "questions.csv"
    file.write_text("\n".join(lines) + "\n" + more)
    return file


def parts_of(data: CSVQuestions | VizWiz) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Picture, question, and the candidate answers that are right, of each part."""
    data.setup()
    found = {}
    for part in data.part_names:
        names, table = data.sample_names(part), data.tables[part]
        batch = table[torch.arange(len(table))]
        right = [[data.answers[i] for i in row.nonzero().flatten().tolist()] for row in batch.answers]
        found[part] = list(zip(names["image"], names["question"], right, strict=True))
    return found


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    data = CSVQuestions(str(write_questions(tmp_path)), image_size=8)
    parts = parts_of(data)
    assert {part: len(asked) for part, asked in parts.items()} == {"train": 32, "val": 4, "test": 4}
    assert len({image for asked in parts.values() for image, _, _ in asked}) == 20
    for asked in parts.values():
        for image, question, answers in asked:
            color = list(COLORS)[int(Path(image).stem) % 3]
            assert answers == [color if question.startswith("What") else "yes" if color == "red" else "no"]
    assert data.question_types[:3] == ["yes_no", "number", "other"]
    images = data.tables["train"][torch.arange(1)].images
    first = parts["train"][0][0]
    expected = torch.tensor(COLORS[list(COLORS)[int(Path(first).stem) % 3]], dtype=torch.uint8)
    assert torch.equal(images, expected[None, :, None, None].expand(1, 3, 8, 8))


def test_parts_and_people_of_a_table(tmp_path: Path) -> None:
    for number in range(4):
        paint(tmp_path / f"{number}.png", COLORS["red"])
    file = tmp_path / "asked.csv"
    file.write_text(
        "Image;Question;Answer;Split;question_id;type\n"
        "0.png;how many?;2;train;a;count\n0.png;how many?;two;train;a;count\n"
        "0.png;how many?;3;train;a;count\n1.png;what?;dog;train;b;\n2.png;what?;;valid;c;\n2.png;what?;dog;dev;d;\n"
        "3.png;what?;cat;Test;e;\n"
    )
    data = CSVQuestions(str(file), image_size=4)
    parts = parts_of(data)
    assert {part: len(asked) for part, asked in parts.items()} == {"train": 2, "val": 1, "test": 1}
    assert parts["train"][0] == ("0.png", "how many?", ["2"])
    scores = data.tables["train"][torch.tensor([0])].answers[0]
    assert scores[data.answers.index("2")] == 1, "two of three people, for whom 'two' is '2'"
    assert parts["test"][0][2] == [], "training has no cat"
    assert data.sample_names("train")["question_id"] == ["a", "b"]
    assert "count" in data.question_types


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", "q.csv: starts with 'a,b', expected the columns image, question, and perhaps split, answer, quest"),
        ("image,question,answer\n", "q.csv: has no line below its heading"),
        ("image,question,answer\nb.png,what?,x\n", "q.csv:2: no picture {folder}/b.png; did you mean 'a.png'?"),
        ("image,question,answer\na.png,?,x\n", "q.csv:2: question '?', expected words"),
        ("image,question,answer\na.png,what?\n", "q.csv:2: 2 values, expected 3"),
        ("image,question,answer,split\na.png,what?,x,some\n", "q.csv:2: split 'some', expected train, val or test"),
        ("image,question,question\na.png,what?,x\n", "q.csv: the column 'question' is there 2 times"),
        (
            "image,question,answer,question_id\na.png,a?,x,1\na.png,b?,x,1\n",
            "q.csv:3: question_id '1' is that of line 2",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_named(content: str, message: str, tmp_path: Path) -> None:
    paint(tmp_path / "a.png", COLORS["red"])
    (tmp_path / "q.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        CSVQuestions(str(tmp_path / "q.csv"))
    assert message.format(folder=tmp_path) in str(error.value)


SMALL = [
    *("--model.channels", "[4,8]", "--model.hidden_dim", "8", "--model.fact_dim", "8", "--model.classifier_dim", "8"),
    *("--data.image_size", "16", "--data.batch_size", "4", "--trainer.max_epochs", "1"),
]


def test_new_questions_are_answered_in_the_official_format(
    fit: Callable[..., CLI], tmp_path: Path, mistake: Callable[..., str]
) -> None:
    trained = fit(
        "--model",
        "lit_models.vqa.VQA",
        "--data",
        "datamodules.vqa_files.CSVQuestions",
        "--data.path",
        write_questions(tmp_path),
        *SMALL,
    )
    best = str(trained.folder.best_checkpoint())
    new = tmp_path / "new.csv"
    new.write_text("image,question,question_id\npictures/01.png,Is it blue?,17\npictures/00.png,What color is it?,x\n")
    asked = ["--data.path", str(new)]
    cli = build(["predict", "--ckpt_path", best, *asked, *QUIET])
    cli.execute()
    folder = cli.folder.path / "predictions"
    with next(folder.glob("*.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["question_id"], row["image"]) for row in rows] == [("17", "pictures/01.png"), ("x", "pictures/00.png")]
    results = json.loads(next(folder.glob("*_results.json")).read_text())
    assert results == [{"question_id": row["question_id"], "answer": row["answer"]} for row in rows]
    assert all(row["answer"] in trained.datamodule.answers for row in rows)
    assert "no training question has one of 0 candidate answers" in mistake(
        "fit", "--model", "lit_models.vqa.VQA", "--data", "datamodules.vqa_files.CSVQuestions", *asked
    )


def test_answers_of_ones_own_are_taken_as_they_are(tmp_path: Path) -> None:
    for number in range(8):
        paint(tmp_path / f"{number}.png", COLORS["red"])
    given = ["A", "+", "$5", "-5", "C++", "none", "0", " a "]
    lines = [f"{number}.png,which?,{answer},train" for number, answer in enumerate(given)]
    (tmp_path / "q.csv").write_text("\n".join(["image,question,answer,split", *lines, "0.png,which?,z,test"]))
    data = CSVQuestions(str(tmp_path / "q.csv"), image_size=4)
    assert sorted(data.answers) == sorted({"a", "+", "$5", "-5", "c++", "none", "0"} - held_back(data, given))
    assert len(data.asked) == 1, "the same question in another part is one of its own"


def held_back(data: CSVQuestions, given: list[str]) -> set[str]:
    """Answers that only validation has, which is cut from the training pictures."""
    data.setup("validate")
    files = data.sample_names("val")["image"]
    return {given[int(Path(file).stem)].strip().lower() for file in files} - set(data.answers)


def test_a_table_of_test_questions_alone_and_of_few_pictures(tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / f"{number}.png", COLORS["red"])
    (tmp_path / "q.csv").write_text("image,question,answer,split\n0.png,what?,x,test\n./0.png,where?,y,test\n")
    assert CSVQuestions(str(tmp_path / "q.csv")).part_names == ["test"]
    (tmp_path / "q.csv").write_text("image,question,answer\n0.png,what?,x\n1.png,what?,y\n")
    few = CSVQuestions(str(tmp_path / "q.csv"))
    assert few.part_names == ["test"]
    with pytest.raises(ValueError, match="no training question has one of 0 candidate answers"):
        few.prepare_data()


def test_a_column_of_another_name_is_pointed_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(tmp_path / "0.png", COLORS["red"])
    (tmp_path / "q.csv").write_text("image,question,answers\n0.png,what?,x\n")
    CSVQuestions(str(tmp_path / "q.csv"))
    assert "none has an answer; there is no column 'answer'; did you mean 'answers'?" in caplog.text


def test_what_language_suggests_is_not_read_off_other_data(tmp_path: Path) -> None:
    data = CSVQuestions(str(write_questions(tmp_path)), image_size=8)
    assert (prior_of(data) >= 0).all()
    other = CSVQuestions(str(tmp_path / "questions.csv"), image_size=8)
    other.adopt({"answers": [*data.answers, "maybe"]})
    assert (prior_of(other) == -1).all()
    scores = VQAScores(["a"], 2)
    scores.update(*(torch.tensor([each]) for each in (1, 1, 0, 0)), torch.tensor([-1]), torch.tensor([False]))
    assert scores.compute()["accuracy"] == 1
    assert "blind_accuracy" not in scores.compute()


def prior_of(data: CSVQuestions) -> torch.Tensor:
    data.setup("test")
    return data.tables["test"].prior


def write_vizwiz(folder: Path) -> None:
    for part, count in (("train", 10), ("val", 3), ("test", 2)):
        records: list[dict[str, Any]] = []
        for number in range(count):
            name = f"VizWiz_{part}_{number:08}.jpg"
            paint(folder / part / name, COLORS["blue"])
            said = ["unanswerable"] * 6 + ["soup"] * 4 if number % 2 else ["soup"] * 9 + ["can"]
            answers = [{"answer": answer, "answer_confidence": "yes"} for answer in said]
            kind = "unanswerable" if number % 2 else "other"
            known = {} if part == "test" else {"answers": answers, "answer_type": kind, "answerable": 1 - number % 2}
            records.append({"image": name, "question": "What is this?", **known})
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{part}.json").write_text(json.dumps(records))


def test_vizwiz(tmp_path: Path) -> None:
    write_vizwiz(tmp_path / "vizwiz")
    data = VizWiz(str(tmp_path), image_size=8)
    parts = parts_of(data)
    assert {part: len(asked) for part, asked in parts.items()} == {"train": 9, "val": 1, "test": 3}
    assert data.answers[:2] == ["soup", "unanswerable"]
    assert set(data.question_types) == {"yes_no", "number", "other", "unanswerable"}
    assert parts["test"][1][::2] == ("val/VizWiz_val_00000001.jpg", ["soup", "unanswerable"])
    assert data.official_results([{"image": "val/VizWiz_val_00000001.jpg", "answer": "soup"}]) == [
        {"image": "VizWiz_val_00000001.jpg", "answer": "soup"}
    ]

    unanswered = VizWiz(str(tmp_path), test_annotations="Annotations/test.json", test_images="test", image_size=8)
    unanswered.setup("predict")
    assert unanswered.test_dataloader() == []
    assert unanswered.sample_names("test")["image"] == [
        "test/VizWiz_test_00000000.jpg",
        "test/VizWiz_test_00000001.jpg",
    ]
    (tmp_path / "vizwiz/Annotations/val.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(
        ValueError, match=r"val.json: record 0: expected a file name as 'image' and words as 'question'"
    ):
        VizWiz(str(tmp_path))
