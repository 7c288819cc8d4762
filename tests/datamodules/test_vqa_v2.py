"""VQAv2 on a small data set in the official format: scores worked out by hand, protocol, order, and broken input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.parts.image_features import CachedFeatures
from datamodules.parts.photograph_questions import top_answers
from datamodules.parts.vqa_accuracy import normalize_answer, soft_scores
from datamodules.vqa_v2 import (
    CocoImages,
    VQAv2,
    cache_features,
)

TRAIN = [f"v2_{name}" for name in ("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json")]
TEST = [f"v2_{name}" for name in ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")]
TRAIN_IDS = list(range(9, 9 + 12))
TEST_IDS = [42, 73, 74]
RARE = "rare"  # the fixture's answer that no small top-k has

Edit = Callable[[str, Callable[[Any], Any]], None]


def records(image_ids: list[int]) -> tuple[list[dict], list[dict]]:
    """Four questions an image: yes/no, number, other, and one whose answers are rare."""
    questions, annotations = [], []
    for image in image_ids:
        asked = [
            ("Is this a cat?", "yes/no", ["yes"] * 6 + ["no"] * 4),
            ("How many cats?", "number", ["two"] * 3 + ["3"] * 2 + ["a lot"] + ["yes"] * 4),
            (f"What is thing{image}?", "other", ["no"] * 10),
            ("What is rare?", "other", [RARE] * 9 + ["rarer"]),
        ]
        for i, (text, kind, answers) in enumerate(asked):
            question_id = image * 1000 + i
            questions.append({"image_id": image, "question": text, "question_id": question_id})
            annotations.append(
                {
                    "question_id": question_id,
                    "image_id": image,
                    "question_type": "what is",
                    "answer_type": kind,
                    "multiple_choice_answer": answers[0],
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": j + 1}
                        for j, answer in enumerate(answers)
                    ],
                }
            )
    return questions, annotations


def write_data_set(folder: Path) -> None:
    """A small data set in the official format."""
    from PIL import Image

    for part, ids, names in (("train2014", TRAIN_IDS, TRAIN), ("val2014", TEST_IDS, TEST)):
        (folder / part).mkdir(parents=True)
        for image_id in ids:  # of one gray, so that a batch tells which images it has
            image = Image.new("L" if image_id % 2 else "RGB", (20, 12), image_id if image_id % 2 else (image_id,) * 3)
            image.save(folder / part / f"COCO_{part}_{image_id:012d}.jpg", quality=100)
        questions, annotations = records(ids)
        (folder / names[0]).write_text(json.dumps({"info": {}, "questions": questions}))
        (folder / names[1]).write_text(json.dumps({"info": {}, "annotations": annotations}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_data_set(tmp_path / "vqa_v2")
    return tmp_path


@pytest.fixture
def edit(root: Path) -> Edit:
    """Changes the records of one file in place."""

    def change(name: str, how: Callable[[Any], Any]) -> None:
        path = root / "vqa_v2" / name
        content = json.loads(path.read_text())
        how(content["questions" if "questions" in name else "annotations"])
        path.write_text(json.dumps(content))

    return change


def make(root: Path, **options: Any) -> VQAv2:
    defaults = {"num_workers": 0, "image_size": 8, "batch_size": 2, "val_fraction": 0.25, "num_answers": 3}
    return VQAv2(str(root), **{**defaults, **options})


def image_ids(batch: Any) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# The official accuracy.


def test_scores_are_the_mean_over_the_leave_one_out_subsets() -> None:
    # Three agree: 7 subsets have all three (1), 3 have two of them (2/3): (7 + 3·2/3) / 10. And so on.
    scores = soft_scores(["x"] * 4 + ["y"] * 3 + ["z"] * 2 + ["w"])
    assert scores == pytest.approx({"x": 1.0, "y": 0.9, "z": 0.6, "w": 0.3})
    assert soft_scores(["x"] * 5 + ["y"] * 5) == {"x": 1.0, "y": 1.0}


def test_scores_equal_a_naive_loop() -> None:
    answers = list("aabbbccccd".replace("a", "q"))
    for answer, score in soft_scores(answers).items():
        accuracies = [min((answers[:i] + answers[i + 1 :]).count(answer) / 3, 1) for i in range(10)]
        assert score == pytest.approx(sum(accuracies) / 10)


def test_unanimous_answers_are_not_normalized() -> None:
    assert soft_scores(["The  none."] * 10) == {"The  none.": 1.0}
    assert soft_scores([" a\tdog\n"] * 10) == {"a dog": 1.0}  # stripped all the same
    # Different only before they are normalized: they agree after it.
    assert soft_scores(["two"] * 5 + ["2"] * 5) == {"2": 1.0}


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("zero", "0"),
        ("ten dogs", "10 dogs"),
        ("The dog on a mat", "dog on mat"),
        ("a", ""),
        ("dont", "don't"),
        ("shouldnt've", "shouldn't've"),
        ("shouldn'tve", "shouldn't've"),
        ("shouldntve", "shouldntve"),  # two are lost: not in the table
        ("hell", "hell"),  # nor are contractions that are words without their apostrophe
        ("somebody'd", "somebodyd"),
        ("t-shirt", "t shirt"),  # a mark between letters becomes a space
        ("red, blue", "red blue"),  # beside a space it goes
        ("black -white and t-shirt", "black white and tshirt"),  # and then everywhere
        ("1,000", "1000"),
        ("1,000 miles/h", "1000 milesh"),  # digit, comma, digit: all marks go
        ("really?", "really"),
        ("what's 5:30", "what's 5:30"),  # neither is a mark
        ("2.", "2"),
        ("u.s.", "us"),
        ("3.5", "3.5"),
        ("a .5", ".5"),  # the look-behind never holds a period back
        ("v.2", "v.2"),
        ("x" + "." * 33, "x."),  # the flag in the place of the count
        ("line\nbreak\ttab ", "line break tab"),
    ],
)
def test_normalization(answer: str, normalized: str) -> None:
    assert normalize_answer(answer) == normalized


def test_top_answers_break_ties_alphabetically_and_leave_out_the_empty_one() -> None:
    assert top_answers(["b", "a", "c", "c", "", "", "", "d"], 3) == ["c", "a", "b"]


# Protocol.


def test_facts_come_from_the_training_part_and_are_plain(root: Path) -> None:
    data = make(root)
    # Answers "2" and "no" and "rare" and "yes" are equally frequent: the first three by alphabet.
    assert data.answers == ["2", "no", "rare"]
    assert data.question_types == ["yes_no", "number", "other"]
    assert data.image_shape == [3, 8, 8]
    data.setup("fit")
    train_ids = {i for batch in data.train_dataloader() for i in image_ids(batch)}
    val_ids = {i for batch in data.val_dataloader() for i in image_ids(batch)}
    assert len(val_ids) == 3
    assert not train_ids & val_ids
    assert {int(word[5:]) for word in data.vocab if word.startswith("thing")} == set(TRAIN_IDS) - val_ids
    for fact in (data.vocab, data.answers, data.question_types, data.image_shape):
        assert type(fact) is list
        assert all(type(item) in (str, int) for item in fact)


def test_validation_answers_do_not_count_as_candidates(root: Path, edit: Edit) -> None:
    data = make(root)
    data.setup("fit")
    val_ids = {i for batch in data.val_dataloader() for i in image_ids(batch)}

    def rename(annotations: list[dict]) -> None:
        for annotation in annotations:
            if annotation["image_id"] in val_ids:
                annotation["multiple_choice_answer"] = "leaked"

    edit(TRAIN[1], rename)
    assert "leaked" not in make(root, num_answers=100).answers


def test_split_depends_on_the_split_seed_alone(root: Path) -> None:
    def val_images(**options: Any) -> list[list[int]]:
        data = make(root, **options)
        data.setup("validate")
        return [image_ids(batch) for batch in data.val_dataloader()]

    first = val_images()
    torch.manual_seed(5)
    assert val_images() == first
    assert val_images(split_seed=1) != first


def test_questions_without_a_candidate_are_dropped_from_training_only(root: Path) -> None:
    data = make(root, num_answers=2)  # "2" and "no": nothing for the rare ones
    data.setup()
    for part, per_image in (("train", 3), ("val", 4), ("test", 4)):
        table = data.tables[part]
        batch = table[torch.arange(len(table))]
        assert len(batch.answers) == per_image * len(table)
        assert int((batch.answers.sum(1) == 0).sum()) == (per_image - 3) * len(table)


def test_batch_holds_soft_targets_types_and_prior(root: Path, edit: Edit) -> None:
    edit(TEST[1], lambda rows: [entry.update(answer="no") for entry in rows[0]["answers"][:5]])  # of image 42
    data = make(root, num_answers=4)
    assert data.answers == ["2", "no", "rare", "yes"]
    data.setup("test")
    batch = data.tables["test"][torch.tensor([2, 0])]
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert image_ids(batch) == [74, 42]
    assert batch.image_index.tolist() == [0] * 4 + [1] * 4
    one_image = [[0, 1, 0, 1], [0.9, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    # Five times "no" more, in the place of "yes": one "yes" and nine "no" are left.
    torch.testing.assert_close(batch.answers, torch.tensor([*one_image, [0, 1, 0, 0.3], *one_image[1:]]))
    assert batch.question_types.tolist() == [0, 1, 2, 2] * 2
    # "what is thing42" is new to it: the most frequent training answer to questions that begin with "what is", here to
    # all, and "2" before the others. That the true answer is no number does not help.
    assert batch.prior_answers.tolist() == [3, 0, 0, 2] * 2
    asked = batch.questions[batch.question_index]
    assert data.vocab[asked[0, 0]] == "is"
    assert data.vocab[asked[2, 2]] == "<unk>"
    assert not batch.unseen.any()


def test_min_count_makes_seldom_words_unknown(root: Path) -> None:
    assert "thing9" in make(root, val_fraction=0.1, split_seed=0).vocab
    vocab = make(root, min_count=2).vocab
    assert "cat" in vocab
    assert not any(word.startswith("thing") for word in vocab)


def test_root_defaults_to_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DATA", str(root))
    assert VQAv2(num_answers=3, val_fraction=0.25).answers == ["2", "no", "rare"]


def test_v1_files_by_name(root: Path) -> None:
    names = ("train_questions", "train_annotations", "test_questions", "test_annotations")
    options = {}
    for option, name in zip(names, TRAIN + TEST, strict=True):
        options[option] = name.removeprefix("v2_")
        (root / "vqa_v2" / name).rename(root / "vqa_v2" / options[option])
    assert make(root, **options).answers == ["2", "no", "rare"]


# Images and features.


def test_workers_give_the_same_batches(root: Path) -> None:
    torch.manual_seed(3)
    here, there = make(root), make(root, num_workers=2)
    here.setup("fit")
    there.setup("fit")
    one, two = here.train_dataloader(), there.train_dataloader()
    one.set_epoch(4)
    two.set_epoch(4)
    expected, state = list(one), torch.get_rng_state()
    batches = list(two)
    assert torch.equal(torch.get_rng_state(), state)  # the run's own draws are not touched
    assert len(batches) == len(two) == 4
    assert all(equal(a, b) for a, b in zip(expected, batches, strict=True))
    two.set_epoch(5)
    assert [image_ids(batch) for batch in two] != [image_ids(batch) for batch in expected]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumes_in_the_middle_of_an_epoch(root: Path, num_workers: int) -> None:
    data = make(root, num_workers=num_workers)
    data.setup("fit")
    whole = data.train_dataloader()
    whole.set_epoch(1)
    expected = list(whole)
    assert whole.state_dict() == {"position": 0}

    begun = data.train_dataloader()
    begun.set_epoch(1)
    batches = iter(begun)
    first = next(batches)
    state = begun.state_dict()
    batches.close()  # type: ignore[attr-defined]
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    rest = iter(resumed)
    again = [first, next(rest)]
    assert resumed.state_dict() == {"position": 2}
    again.extend(rest)
    assert len(again) == len(expected)
    assert all(equal(a, b) for a, b in zip(again, expected, strict=True))


def test_ranks_share_each_global_batch(root: Path, be_rank: Callable[[int, int], None]) -> None:
    torch.manual_seed(0)
    data = make(root, batch_size=4)
    data.setup("fit")
    whole = [image_ids(batch) for batch in data.train_dataloader()]
    data.batch_size = 2
    parts = []
    for rank in (0, 1):
        be_rank(rank, 2)
        parts.append([image_ids(batch) for batch in data.train_dataloader()])
    assert parts[0] == [ids[0::2] for ids in whole]
    assert parts[1] == [ids[1::2] for ids in whole]


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_are_what_was_stored(root: Path, shape: tuple[int, ...], dtype: type) -> None:
    ids = [*TEST_IDS, *reversed(TRAIN_IDS)]
    stored = np.random.default_rng(0).normal(size=(len(ids), *shape)).astype(dtype)
    np.save(root / "vqa_v2" / "cache.npy", stored)
    (root / "vqa_v2" / "cache.json").write_text(json.dumps(ids))
    data = make(root, features="cache")
    assert data.image_shape == [5, 1, 1] if len(shape) == 1 else [5, 2, 3]
    data.setup()
    batch = data.tables["test"][torch.tensor([2, 0])]
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (2, *data.image_shape)
    np.testing.assert_array_equal(batch.images.numpy().reshape(2, *shape), stored[[2, 0]].astype(np.float32))
    assert isinstance(CachedFeatures(root / "vqa_v2" / "cache").array, np.memmap)
    assert len(list(data.train_dataloader())) == 4


def test_cached_features_are_the_encoders(root: Path) -> None:
    folder = root / "vqa_v2"
    cache_features(nn.Flatten(), [folder / "train2014", folder / "val2014"], folder / "new" / "flat", 8, batch_size=4)
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["flat.json", "flat.npy"]
    features = CachedFeatures(folder / "new" / "flat")
    assert features.shape == [3 * 8 * 8, 1, 1]
    for part, image_id in (("train2014", 13), ("val2014", 73)):
        pixels = CocoImages(folder / part, 8)([image_id])
        torch.testing.assert_close(features([image_id]), (pixels.float() / 255).half().float().view(1, -1, 1, 1))


def test_half_written_features_are_never_picked_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "vqa_v2"
    cache_features(nn.Flatten(), [folder / "train2014"], folder / "flat", 8)

    def killed(source: str, target: str) -> None:
        if target.endswith(".npy"):
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_features(nn.Flatten(), [folder / "val2014"], folder / "flat", 8)
    assert not (folder / "flat.npy").exists()  # neither the new one nor, beside the new ids, the old one


# Broken input: one line that names the file and the record.


def run(root: Path, **options: Any) -> None:
    data = make(root, **options)
    data.setup()
    for loader in (data.train_dataloader(), data.test_dataloader()):
        list(loader)


def fails(root: Path, error: type[Exception], *words: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        run(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", TRAIN + TEST)
def test_missing_file(root: Path, name: str) -> None:
    (root / "vqa_v2" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"vqa_v2/{name}.*https://visualqa.org/download.html") as caught:
        make(root)  # at once, also for the test files
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        (TRAIN[0], lambda rows: rows[1].pop("question"), ["question_id 9001", "'question'"]),
        (TRAIN[0], lambda rows: rows[1].update(question="??"), ["question_id 9001", "'question'"]),
        (TRAIN[0], lambda rows: rows[1].pop("image_id"), ["question_id 9001", "'image_id'"]),
        (TRAIN[0], lambda rows: rows[1].pop("question_id"), ["record 1", "'question_id'"]),
        (TRAIN[0], lambda rows: rows.append(rows[1]), ["question_id 9001", "once"]),
        (TRAIN[0], lambda rows: rows.append({**rows[1], "question_id": 5}), ["question_id 5", TRAIN[1]]),
        (TRAIN[1], lambda rows: rows.append(rows[1]), ["question_id 9001", "once"]),
        (TRAIN[1], lambda rows: rows.append({**rows[1], "question_id": 5}), ["question_id 5", TRAIN[0]]),
        (TRAIN[1], lambda rows: rows[1].update(image_id=10), ["question_id 9001", "image_id 9"]),
        (TRAIN[1], lambda rows: rows[1].update(answer_type=""), ["question_id 9001", "'answer_type'"]),
        (TRAIN[1], lambda rows: rows[1].pop("multiple_choice_answer"), ["9001", "'multiple_choice_answer'"]),
        (TRAIN[1], lambda rows: rows[1].pop("answers"), ["question_id 9001", "one or more 'answers'"]),
        (TRAIN[1], lambda rows: rows[1]["answers"].clear(), ["question_id 9001", "one or more 'answers'"]),
        (TRAIN[1], lambda rows: rows[1]["answers"][3].pop("answer"), ["question_id 9001", "'answer'"]),
        (TEST[1], lambda rows: rows[1]["answers"].clear(), ["question_id 42001", "one or more 'answers'"]),
    ],
)
def test_malformed_record(root: Path, edit: Edit, name: str, how: Callable[[Any], Any], words: list[str]) -> None:
    edit(name, how)
    fails(root, ValueError, f"vqa_v2/{name}: ", *words)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"questions": 3}'])
def test_malformed_file(root: Path, text: str) -> None:
    (root / "vqa_v2" / TRAIN[0]).write_text(text)
    fails(root, ValueError, f"vqa_v2/{TRAIN[0]}: ")


def test_missing_image(root: Path) -> None:
    name = "COCO_val2014_000000000073.jpg"
    (root / "vqa_v2" / "val2014" / name).unlink()
    fails(root, FileNotFoundError, name, "image_id 73")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image(root: Path, num_workers: int) -> None:
    path = root / "vqa_v2" / "val2014" / "COCO_val2014_000000000073.jpg"
    path.write_bytes(path.read_bytes()[:200])
    fails(root, ValueError, path.name, "image_id 73", num_workers=num_workers)


@pytest.mark.parametrize(
    ("array", "ids", "words"),
    [
        (np.zeros((15, 4), np.float64), TRAIN_IDS + TEST_IDS, ["cache.npy", "float16 or float32"]),
        (np.zeros((15, 4, 4), np.float32), TRAIN_IDS + TEST_IDS, ["cache.npy", "(N, C, h, w)"]),
        (np.array([{}] * 15), TRAIN_IDS + TEST_IDS, ["cache.npy"]),  # pickled
        (np.zeros((15, 4), np.float32), TRAIN_IDS, ["cache.json", "15"]),
        (np.zeros((15, 4), np.float32), [*TRAIN_IDS, 9, 42, 73], ["cache.json", "different"]),
        (np.zeros((14, 4), np.float32), TRAIN_IDS + TEST_IDS[1:], ["cache.npy", "image_id 42"]),
    ],
)
def test_malformed_features(root: Path, array: np.ndarray, ids: list[int], words: list[str]) -> None:
    np.save(root / "vqa_v2" / "cache.npy", array, allow_pickle=True)
    (root / "vqa_v2" / "cache.json").write_text(json.dumps(ids))
    fails(root, ValueError, *words, features="cache")


def test_missing_and_truncated_features(root: Path) -> None:
    fails(root, FileNotFoundError, "cache.npy", "cache_features", features="cache")
    path = root / "vqa_v2" / "cache.npy"
    np.save(path, np.zeros((15, 400), np.float32))
    (root / "vqa_v2" / "cache.json").write_text(json.dumps(TRAIN_IDS + TEST_IDS))
    path.write_bytes(path.read_bytes()[:1000])
    fails(root, ValueError, "cache.npy", features="cache")


@pytest.mark.parametrize("name", ["num_answers", "min_count", "image_size", "num_workers", "batch_size"])
def test_argument_out_of_range(root: Path, name: str) -> None:
    fails(root, ValueError, f"{name}=-1", **{name: -1})


# Files that others have made.


def test_what_all_said_is_normalized_like_the_rest(root: Path, edit: Edit) -> None:
    """Else "Yes" by everyone would be no candidate's, and its question left out of training and always wrong."""
    for name in (TRAIN[1], TEST[1]):
        edit(name, lambda rows: [entry.update(answer="Yes") for row in rows[::4] for entry in row["answers"]])
    data = make(root, num_answers=4)
    data.setup()
    for table in data.tables.values():
        batch = table[torch.arange(len(table))]
        yes = data.answers.index("yes")
        assert batch.answers[batch.question_types == 0][:, yes].tolist() == [1.0] * len(table)


def test_one_person_may_have_answered(root: Path, edit: Edit) -> None:
    for name in (TRAIN[1], TEST[1]):
        edit(name, lambda rows: [row.update(answers=row["answers"][:1]) for row in rows])
    data = make(root, num_answers=4)
    data.setup("test")
    batch = data.tables["test"][torch.arange(2)]
    assert batch.answers.sum(1).tolist() == [1.0] * 8
    assert soft_scores(["a cat", "dog", "cat"]) == {"cat": 1.0, "dog": 1.0}
    assert soft_scores(["cat"] * 5 + ["dog"])["dog"] == pytest.approx(10 / 18)


def test_kinds_of_answers_may_be_the_files_own(root: Path, edit: Edit) -> None:
    for name in (TRAIN[1], TEST[1]):
        edit(name, lambda rows: [row.update(answer_type="unanswerable") for row in rows[3::4]])
    data = make(root)
    assert data.question_types == ["yes_no", "number", "other", "unanswerable"]
    data.setup("test")
    assert data.tables["test"][torch.tensor([0])].question_types.tolist() == [0, 1, 2, 3]


def test_images_are_known_by_the_number_at_the_end_of_their_names(root: Path) -> None:
    for place, file in enumerate(sorted((root / "vqa_v2").glob("*2014/*.jpg"))):
        number = int(file.stem[-12:])
        file.rename(file.with_name((f"{number}.png", f"VizWiz_{number:06}.JPG", f"{number:012}.jpg")[place % 3]))
    data = make(root)
    data.setup("test")
    assert image_ids(data.tables["test"][torch.tensor([2, 0])]) == [74, 42]
    (root / "vqa_v2" / "val2014" / "again_42.png").touch()
    with pytest.raises(ValueError, match=r"image_id 42 is also that of .*; expected one"):
        make(root).setup("test")


def test_questions_that_are_left_out_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = make(root, num_answers=1)
    left = len(data._questions["train"])
    total = 4 * len({question.image for question in data._questions["train"]})
    assert f"left out {total - left} of {total} training questions: no candidate answer" in caplog.text
