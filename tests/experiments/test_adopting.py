"""A checkpoint used on other data: its own facts win by name, or the data are refused in one line."""

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

from common.facts import difference
from datamodules.contrastive_views import ContrastiveViews
from datamodules.easy_vqa import EasyVQA
from datamodules.image_tree import ImageTree
from datamodules.images import Digits
from datamodules.sequences import SketchSequences, TextLines
from datamodules.sketches import Glyphs
from datamodules.text import CharText
from experiments.cli import CLI, build
from tests.conftest import QUIET, REPOSITORY
from tests.experiments.test_technique import SHORT, Voices

TEXT = [
    *("-c", str(REPOSITORY / "configs/char_lm/python_stdlib.yaml")),
    *("--model.hidden", "8", "--model.layers", "1", "--data.batch_size", "2", "--data.seq_len", "8"),
    *("--data.val_fraction", "0.2", "--data.test_fraction", "0.2"),
]


def text(name: str, characters: str, count: int = 400) -> str:
    rng = np.random.default_rng(0)
    Path(name).write_text(characters + "".join(rng.choice(list(characters), count)))
    return name


def evaluated(*args: object) -> CLI:
    cli = build([str(arg) for arg in args] + QUIET)
    cli.execute()
    return cli


# ---- through the command line ----------------------------------------------------------------------------------------


def test_other_text_is_read_with_the_vocabulary_of_the_checkpoint(
    fit: Callable[..., CLI], capsys: pytest.CaptureFixture[str], mistake: Callable[..., str]
) -> None:
    run = fit(*TEXT, *SHORT, "--data.source", text("old.txt", "abcd\n"), "--data.unknown", "error")
    before = json.loads(run.folder.summary.read_text())
    checkpoint = run.folder.best_checkpoint()
    capsys.readouterr()

    # As many characters, of which the model knows all but sees them in another order; one of its own never comes.
    other = evaluated("test", "--ckpt_path", checkpoint, "--data.source", text("new.txt", "dcb\n"))
    assert other.model.vocab == other.datamodule.vocab == ["\n", "a", "b", "c", "d"]
    assert "".join(other.model.vocab[code] for code in other.datamodule.codes) == Path("new.txt").read_text()
    assert torch.equal(other.model.decoder.weight, run.model.decoder.weight)
    said = capsys.readouterr().out
    assert "other data than those that the model was trained on (data.source=new.txt)" in said
    assert "read with the checkpoint's vocab" in said

    # And what it scores there is kept apart.
    assert other.folder.path == run.folder.path / "other_data" / "new-1"
    assert json.loads(other.folder.summary.read_text())["test"] != before["test"]
    assert json.loads(run.folder.summary.read_text()) == before

    line = mistake("test", "--ckpt_path", checkpoint, "--data.source", text("strange.txt", "QRSTU"), *QUIET)
    assert (
        line
        == "strange.txt: character 0: 'Q' (U+0051) is not one of the given vocabulary's 5; expected a text without it"
    )


def test_the_data_of_the_run_are_tested_without_a_word(
    fit: Callable[..., CLI], capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*TEXT, *SHORT, "--data.source", text("old.txt", "abcd\n"))
    capsys.readouterr()
    again = evaluated("test", "--ckpt_path", run.folder.best_checkpoint(), "--data.batch_size", 3)
    assert again.folder.path == run.folder.path
    assert "other data" not in capsys.readouterr().out

    Path("old.txt").write_text(Path("old.txt").read_text()[::-1])
    changed = evaluated("test", "--ckpt_path", run.folder.best_checkpoint())
    assert "(their content has changed)" in capsys.readouterr().out
    assert changed.folder.path != run.folder.path


class Growing(Voices):
    """Of a user: without ``adopt``."""

    extra = 0

    def __init__(self, speakers: int = 5) -> None:
        super().__init__(speakers + self.extra)


@pytest.mark.parametrize("subcommand", ["test", "fit"])
def test_data_that_cannot_take_a_fact_over_are_refused(
    subcommand: str, fit: Callable[..., CLI], mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["--model", "tests.experiments.test_technique.Recognizer", "--data", f"{__name__}.Growing"]
    checkpoint = fit(*chosen, *SHORT).folder.best_checkpoint()
    monkeypatch.setattr(Growing, "extra", 1)
    line = mistake(subcommand, *chosen, *SHORT, *QUIET, "--ckpt_path", checkpoint)
    assert line == (
        f"data.num_speakers: 6 in the data, 5 in the checkpoint; expected data as {checkpoint} was made with, since "
        "Growing cannot take this over"
    )


class Tolerant(Growing):
    """To which it does not matter how many a model knows."""

    def adopt(self, facts: Any) -> set[str]:
        return set(facts)


def test_a_model_is_built_as_it_was_trained_whatever_the_data_are(
    fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["--model", "tests.experiments.test_technique.Recognizer", "--data", f"{__name__}.Tolerant"]
    checkpoint = fit(*chosen, *SHORT).folder.best_checkpoint()
    monkeypatch.setattr(Growing, "extra", -1)
    cli = evaluated("test", *chosen, "--ckpt_path", checkpoint)
    assert (cli.datamodule.num_speakers, cli.model.layers[1].out_features) == (4, 5)


def pictures(folder: str, classes: dict[str, int], size: tuple[int, int] = (12, 9), count: int = 10) -> str:
    for name, gray in classes.items():
        (Path(folder) / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (gray, i, 0)).save(Path(folder) / name / f"{i:02}.png")
    return folder


PROBE = [
    *("-c", str(REPOSITORY / "configs/linear_probe/digits.yaml")),
    *("--data.source", "datamodules.image_tree.ImageTree", "--data.batch_size", "4", "--run.name", "linear_probe/own"),
]


@pytest.mark.slow
def test_classes_are_told_apart_by_name_and_pictures_get_the_size_of_the_model(
    fit: Callable[..., CLI], mistake: Callable[..., str], tmp_path: Path
) -> None:
    from lit_models.simclr import SimCLR

    arguments = {"image_shape": [3, 8, 8], "encoder": "conv", "width": 4}
    state = SimCLR(**arguments).state_dict()  # type: ignore[arg-type]
    made_of = {**arguments, "_class_path": "lit_models.simclr.SimCLR"}
    torch.save({"state_dict": state, "hyper_parameters": made_of}, "encoder.ckpt")
    old = ["--data.source.path", pictures("old", {"dark": 0, "light": 200, "mid": 100}), "--data.source.size", 8]
    run = fit(*PROBE, *SHORT, *old, "--data.source.fit", "pad", "--model.checkpoint", tmp_path / "encoder.ckpt")
    checkpoint = run.folder.best_checkpoint()

    new = pictures("new", {"mid": 100, "light": 200}, size=(30, 20))
    other = evaluated("test", "--ckpt_path", checkpoint, "--data.source.path", new, "--data.source.size", 11)
    data = other.datamodule
    assert data.class_names == ["dark", "light", "mid"]
    assert data.image_shape == [3, 8, 8]
    assert data.source.form == run.datamodule.source.form
    assert {*data.part("train").labels.tolist()} == {1, 2}, "2 is mid, which is the second of its own classes"
    assert other.model.classifier.out_features == 3

    strange = pictures("strange", {"light": 200, "purple": 90})
    line = mistake("test", "--ckpt_path", checkpoint, "--data.source.path", strange, *QUIET)
    assert line.startswith("class_names: the checkpoint does not know 'purple' of the data; expected some of its 3")


# ---- each kind of data -----------------------------------------------------------------------------------------------


def test_differences_are_told_by_name() -> None:
    assert difference(["a", "x", "y", "z", "w"], ["a"]) == (
        "the checkpoint does not know 'x', 'y', 'z' and 1 more of the data"
    )
    assert difference(["a"], ["a", "b"]) == "the data do not have 'b' of the checkpoint"
    assert difference(["b", "a"], ["a", "b"]) == (
        "in another order, place 0 is 'b' in the data and 'a' in the checkpoint"
    )
    assert difference((3, 8, 8), [3, 9, 9]) == "[3, 8, 8] in the data, [3, 9, 9] in the checkpoint"
    assert difference({"shape": ["a"]}, {"shape": ["b"]}) == "shape: the checkpoint does not know 'a' of the data"


def test_questions_by_word_answer_and_type() -> None:
    plain, data = EasyVQA(), EasyVQA()
    vocab = [*plain.vocab[:2], "zebra", *plain.vocab[:1:-1][:-3]]  # in reverse, and without three words
    answers, kinds = ["zebra", *plain.answers[::-1]], plain.question_types[::-1]
    facts = {"vocab": vocab, "answers": answers, "question_types": kinds}
    assert data.adopt(facts) >= facts.keys()
    for each in (plain, data):
        each.setup()
    for part in ("train", "test"):
        ours, theirs = (next(iter(each.loader(part))) for each in (data, plain))
        told = [[vocab[i] for i in row] for row in ours.questions.tolist()]
        true = [[word if word in vocab else "<unk>" for word in row] for row in named(theirs.questions, plain.vocab)]
        assert told == true
        assert [answers[i] for i in ours.answers] == [plain.answers[i] for i in theirs.answers]
        assert (ours.prior_answers == -1).all(), "what the model has learned from is not known"
        assert [kinds[i] for i in ours.question_types] == [plain.question_types[i] for i in theirs.question_types]
    with pytest.raises(ValueError, match="answers: the checkpoint does not know 'black', 'blue' of the data"):
        EasyVQA().adopt({"answers": plain.answers[2:]})


def named(ids: torch.Tensor, names: list[str]) -> list[list[str]]:
    return [[names[i] for i in row] for row in ids.tolist()]


def test_lines_by_character() -> None:
    Path("lines.txt").write_text("".join(f"{a}{b}{'c' * (a != b)}\n" for a in "abcd" for b in "abcd"))
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    plain, data = TextLines("lines.txt", **options), TextLines("lines.txt", **options)  # type: ignore[arg-type]
    assert data.adopt({"vocab": ["<unk>", "d", "a", "c"], "longest": 2}) == {"vocab", "longest"}
    for each in (plain, data):
        each.setup()
    lines, known = (
        ["".join(each.vocab[i] for i in each.parts["train"].line(row)) for row in range(len(each.parts["train"]))]
        for each in (plain, data)
    )
    assert known == [line.replace("b", "<unk>") for line in lines if len(line) <= 2]
    with pytest.raises(ValueError, match=r"character 4: 'b' \(U\+0062\) is not one of"):
        TextLines("lines.txt", **options).adopt({"vocab": ["d", "a", "c"]})  # type: ignore[arg-type]


def test_a_text_may_begin_without_what_comes_later_if_the_model_knows_it() -> None:
    Path("new.txt").write_text("ab" * 30 + "cd" * 10)
    with pytest.raises(ValueError, match=r"'c' .*does not occur in the training part"):
        CharText("new.txt", batch_size=1, seq_len=4, val_fraction=0.2, unknown="error").setup()
    data = CharText("new.txt", batch_size=1, seq_len=4, val_fraction=0.2)
    data.adopt({"vocab": ["d", "c", "b", "a"]})
    assert data.codes[-4:].tolist() == [1, 0, 1, 0]


def test_sketches_in_the_unit_and_with_the_classes_of_the_model() -> None:
    plain, data = Glyphs("ABC", variants=0), Glyphs("ABC", variants=0)
    data.adopt({"scale_factor": 2 * plain.scale_factor, "longest": 7, "class_names": ["C", "x", "A"]})
    assert data.longest == 7
    ours, theirs = next(iter(data.test_dataloader())), next(iter(plain.test_dataloader()))
    assert torch.allclose(2 * ours.strokes[..., :2], theirs.strokes[..., :2])
    assert [data.class_names[i] if i >= 0 else None for i in ours.labels] == [
        {0: "A", 1: None, 2: "C"}[i] for i in theirs.labels.tolist()
    ]
    wrapped = SketchSequences(Glyphs("ABC", variants=0))
    wrapped.adopt({"scale_factor": 3.0})
    assert wrapped.scale_factor == wrapped.source.parts["test"].scale_factor == 3.0


def test_views_of_files_get_the_size_of_the_model_and_those_of_a_fixed_size_do_not() -> None:
    tree = ImageTree(pictures("tree", {"a": 0, "b": 9}, size=(20, 16)), size=10)
    views = ContrastiveViews(tree, batch_size=4)
    facts = {"image_shape": [1, 6, 6], "preprocessing": {"fit": "squash", "stored": [8, 8]}}
    assert views.adopt(facts) >= facts.keys()
    assert (views.image_shape, views.preprocessing) == ([1, 6, 6], facts["preprocessing"])
    assert views.part("train").take(torch.tensor([0])).images.shape == (1, 1, 8, 8)
    assert views.on_after_batch_transfer(views.part("train").take(torch.arange(2)), 0).views.shape == (2, 2, 1, 6, 6)
    assert "image_shape" not in ContrastiveViews(Digits(), batch_size=4).adopt({"image_shape": [1, 28, 28]})


class Unlabeled(Digits):
    """As a folder of pictures that nobody has sorted."""

    names = ()

    def read(self) -> dict[str, Any]:
        parts: Any = super().read()
        parts = {name: part._replace(labels=torch.full_like(part.labels, -1)) for name, part in parts.items()}
        return parts | {"val": parts["test"]}


def test_pictures_without_classes_stay_without() -> None:
    data = Unlabeled()
    assert data.adopt({"class_names": ["a", "b"], "num_classes": 2}) >= {"class_names", "num_classes"}
    assert (data.class_names, data.num_classes) == (["a", "b"], 2)
    assert set(data.part("test").labels.tolist()) == {-1}
    assert data.sample_names("test").keys() == {"row"}


@pytest.mark.slow
def test_a_captioner_describes_a_folder_of_a_few_pictures(
    fit: Callable[..., CLI], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are the checkpoint's; three pictures, or one, are too few to hold some back for validation."""
    generator = np.random.default_rng(0)
    for name in ("one.png", "two.jpg", "three.png"):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (50, 90, 3), np.uint8)).save(tmp_path / "new" / name)
    config = ["-c", str(REPOSITORY / "configs/captioner/scenes.yaml")]
    config += ["-c", str(REPOSITORY / "tests/contracts/shrink/captioner/scenes.yaml")]
    cli = fit(*config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--test_after_fit", "false")
    checkpoint = str(cli.folder.recovery_checkpoints()[0])
    for path, count in ((tmp_path / "new", 3), (tmp_path / "new" / "two.jpg", 1)):
        data = ["--data", "datamodules.image_tree.ImageTree", "--data.path", str(path)]
        predicted = build(["predict", "--ckpt_path", checkpoint, *data, *QUIET])
        predicted.execute()
        table = max(cli.folder.path.glob("other_data/*/predictions/*.csv"), key=lambda file: file.stat().st_mtime)
        rows = list(csv.DictReader(table.open()))
        assert len(rows) == count
        files = [tmp_path / "new" / row["file"] for row in rows]
        assert [row["caption"] for row in rows] == [each[0] for each in cli.model.caption(files)]
