"""What `predict` writes: that each row has the name of its own sample, of whatever part, and where it goes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from datamodules.caption_files import KarpathyCaptions
from datamodules.contrastive_views import ContrastiveViews
from datamodules.easy_vqa import EasyVQA, read_images
from datamodules.image_tree import ImageTree
from datamodules.images import Digits
from datamodules.labelled_pairs import LabelledPairs
from datamodules.sequences import SketchSequences, TextLines
from datamodules.sketches import Glyphs
from datamodules.text import CharText
from datamodules.vqa_v2 import VQAv2
from experiments.arguments import Mistake
from experiments.cli import CLI, build
from experiments.predictions import Predictions, columns_of, parts_asked_for
from lit_models.char_lm import CharLM
from tests.conftest import QUIET
from tests.datamodules.test_captions import write_karpathy
from tests.datamodules.test_vqa_v2 import write_data_set
from tests.experiments.test_adopting import TEXT, text
from tests.experiments.test_technique import SHORT, Recognizer, Voices

PARTS = ("train", "val", "test")


def plain(data: Any, part: str) -> list[Any]:
    return list(data.plain_loader(part))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_files_of_a_tree(num_workers: int) -> None:
    """Each file is of a gray of its own, which says which one it is."""
    grays = {}
    for i in range(40):
        name = f"{'ab'[i % 2]}/{i:02}.png"
        (path := Path("tree") / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (5, 5), 6 * i).save(path)
        grays[6 * i] = name
    if not num_workers:
        (Path("tree") / "a" / "00.png").write_bytes(b"")
    options: Any = {"broken": "error"} if num_workers else {"broken": "skip"}
    tree = ImageTree("tree", 5, grayscale=True, num_workers=num_workers, test_fraction=0.25, **options)
    seen = []
    for data in (tree, ContrastiveViews(tree, batch_size=7), LabelledPairs(tree, batch_size=7)):
        assert data.parts_are_cut
        for part in PARTS:
            images = torch.cat([batch.images for batch in plain(data, part)])
            files = data.sample_names(part)["file"]
            assert files == [grays[int(image.float().mean())] for image in images]
            assert data.sample_names(part)["class"] == [name[0] for name in files]
            seen += files if data is tree else []
    assert sorted(seen) == sorted(grays.values())[not num_workers :]


def test_the_rows_of_a_data_set() -> None:
    data = Digits()
    whole = data.read()
    for part, own in (("train", "train"), ("val", "train"), ("test", "test")):
        names = data.sample_names(part)
        images = torch.cat([batch.images for batch in plain(data, part)])
        assert torch.equal(images, whole[own].take(torch.tensor(names["row"])).images)  # type: ignore[attr-defined]
        assert names["class"] == list(map(str, data.part(part).labels.tolist()))
    pairs = LabelledPairs(Digits(), unseen_classes=[3, 5])
    assert set(pairs.sample_names("test")["class"]) == {"3", "5"}
    assert len(pairs.sample_names("test")["row"]) == sum(len(batch.images) for batch in plain(pairs, "test"))


def test_the_questions_of_the_official_files(tmp_path: Path) -> None:
    write_data_set(tmp_path / "vqa_v2")
    options: Any = {"num_workers": 0, "image_size": 8, "batch_size": 2, "val_fraction": 0.25, "num_answers": 3}
    data = VQAv2(str(tmp_path), **options)
    for part in PARTS:
        batches, names = plain(data, part), data.sample_names(part)
        seen = [int(batch.images[i, 0, 0, 0]) for batch in batches for i in batch.image_index]
        assert names["image_id"] == seen, "images are of the gray that is their id"
        assert [number // 1000 for number in names["question_id"]] == seen
        asked = [[data.vocab[w] for w in batch.questions[i] if w] for batch in batches for i in batch.question_index]
        for question, words in zip(names["question"], asked, strict=True):
            assert all(word == "<unk>" or word in question.lower() for word in words)
        assert all(
            question.startswith("Is this") == (n % 1000 == 0)
            for question, n in zip(names["question"], names["question_id"], strict=True)
        )


def test_questions_that_nobody_has_answered(tmp_path: Path) -> None:
    write_data_set(tmp_path / "vqa_v2")
    options: Any = {"num_workers": 0, "image_size": 8, "batch_size": 2, "val_fraction": 0.25, "num_answers": 3}
    answered, open_ones = VQAv2(str(tmp_path), **options), VQAv2(str(tmp_path), test_annotations=None, **options)
    assert open_ones.test_dataloader() == []
    for ours, theirs in zip(plain(open_ones, "test"), plain(answered, "test"), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.questions, theirs.questions)
        assert not ours.answers.any()
    assert open_ones.sample_names("test") == answered.sample_names("test")


def test_the_questions_and_images_of_easy_vqa_have_its_own_numbers() -> None:
    import easy_vqa

    data = EasyVQA(holdout=["rectangle-red"])
    texts, _, images = easy_vqa.get_train_questions()
    batch, names = plain(data, "val")[0], data.sample_names("val")
    for pair in range(40):
        number = names["question_id"][pair]
        assert (names["question"][pair], names["image_id"][pair]) == (texts[number], images[number])
        image = read_images("train")[names["image_id"][pair]]
        assert torch.equal(batch.images[batch.image_index[pair]], image)


def test_the_files_of_photographs(tmp_path: Path) -> None:
    write_karpathy(tmp_path / "flickr8k")
    data = KarpathyCaptions(str(tmp_path), image_size=8, num_workers=0, batch_size=2, min_count=1)
    for part in PARTS:
        numbers = [int(image.float().mean()) // 10 for batch in plain(data, part) for image in batch.images]
        assert data.sample_names(part) == {"image_id": numbers, "file": [f"{number:03d}_ab.jpg" for number in numbers]}


def test_the_lines_of_a_text() -> None:
    lines = [f"{i}{'x' * (i % 7)}" for i in range(60)]
    lines[20] = lines[10]
    Path("lines.txt").write_text("\n".join(lines))
    data = TextLines("lines.txt", max_length=6, val_fraction=0.2, test_fraction=0.2, batch_size=5)
    for part in data.part_names:
        names = data.sample_names(part) if plain(data, part) else {}
        assert names["text"] == [lines[number - 1] for number in names["line"]]
        coded = [row[:n] for batch in plain(data, part) for row, n in zip(batch.values, batch.lengths, strict=True)]
        assert names["text"] == ["".join(data.vocab[code] for code in row) for row in coded]


@pytest.mark.parametrize("split", ["contiguous", "rows"])
def test_the_places_in_a_text(split: Any) -> None:
    whole = Path(text("whole.txt", "abcdef\n", 700)).read_text()
    data = CharText("whole.txt", batch_size=3, seq_len=8, split=split, val_fraction=0.2, test_fraction=0.1)
    model = CharLM(data.vocab, hidden=8).eval()
    model.on_predict_start()
    for part in data.part_names:
        model._evaluated = None
        found = [model.predict_step(batch, i) for i, batch in enumerate(plain(data, part))]
        texts = [each for batch in found for each in batch["text"]]
        places = data.sample_names(part)["place"]
        assert texts == [whole[place : place + len(each)] for place, each in zip(places, texts, strict=True)]
        if split == "contiguous":
            assert "".join(texts) == data_text(data, part)[1:]
            nats = torch.cat([batch["nats"] for batch in found]).sum()
            expected = model.score(data_text(data, part)[1:], prime=data_text(data, part)[0]).sum()
            assert torch.allclose(nats, expected, rtol=1e-4), "the state goes on from window to window"


def data_text(data: CharText, part: Any) -> str:
    return "".join(data.vocab[code] for code in data.part(part))


def test_the_classes_of_sketches() -> None:
    data = Glyphs("ABC", variants=0)
    for each in (data, SketchSequences(Glyphs("ABC", variants=0))):
        labels = torch.cat([batch.labels for batch in plain(each, "val")])
        assert each.sample_names("val")["class"] == ["ABC"[i] for i in labels]
        assert list(each.sample_names("val")["row"]) == list(range(len(labels)))


# ---- the command -----------------------------------------------------------------------------------------------------


def predict(*args: object) -> CLI:
    cli = build(["predict", *map(str, args), *QUIET])
    cli.execute()
    return cli


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_parts_and_other_data(
    fit: Callable[..., CLI], capsys: pytest.CaptureFixture[str], mistake: Callable[..., str]
) -> None:
    run = fit(*TEXT, *SHORT, "--data.source", text("old.txt", "abcd\n"))
    checkpoint = ["--ckpt_path", run.folder.best_checkpoint()]
    folder = run.folder.path / "predictions"
    predict(*checkpoint)
    predict(*checkpoint, "--part", "all")
    assert sorted(path.name for path in folder.iterdir()) == ["all-1.csv", "test-1.csv"]
    everything, tested = table(folder / "all-1.csv"), table(folder / "test-1.csv")
    assert everything[-len(tested) :] == tested
    whole = "".join(row["text"] for row in everything)
    assert len(whole) == run.datamodule.corpus.length - 3, "but for the first character of each part"
    for row in everything:
        assert Path("old.txt").read_text()[int(row["place"]) :].startswith(row["text"])

    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = predict(*checkpoint, "--data.source", text("new.txt", "ab"))
    there = run.folder.path / "other_data" / "new-1" / "predictions"
    assert other.folder.path == there.parent
    assert [path.name for path in there.iterdir()] == ["all-1.csv"], "a new text is predicted as a whole"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert f"predictions of the train, val, test parts: {there / 'all-1.csv'}" in capsys.readouterr().out

    line = mistake("predict", *checkpoint, "--data.test_fraction", 0, "--part", "test", *QUIET)
    assert line == "part=test: these data have no test part; expected train, val or all"


def test_new_pictures_of_any_size_are_read_as_the_old_ones_were(fit: Callable[..., CLI]) -> None:
    options = [
        "--model",
        "lit_models.vae.VAE",
        "--data",
        "datamodules.image_tree.ImageTree",
        "--model.channels",
        "[4, 8]",
    ]
    for name, size, count in (("old", (8, 8), 10), ("new", (20, 12), 9)):
        for i in range(count):
            path = Path(name) / "xy"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (20 * i, 0, 255)).save(path)
    run = fit(
        *options,
        *SHORT,
        "--data.path",
        "old",
        "--data.size",
        8,
        "--data.batch_size",
        4,
        "--probe.every_n_epochs",
        "null",
    )
    other = predict("--ckpt_path", run.folder.best_checkpoint(), "--data.path", "new")
    folder = other.folder.path / "predictions"
    rows = table(folder / "all-1.csv")
    assert sorted(row["file"] for row in rows) == sorted(f"{'xy'[i % 2]}/{i}.png" for i in range(9)), "all of them"
    arrays = np.load(folder / "all-1.npz")
    assert arrays["file"].tolist() == [row["file"] for row in rows]
    for row, code in zip(rows, torch.from_numpy(arrays["code"]), strict=True):
        asked = run.model.encode(str(Path("new") / row["file"]))
        assert torch.allclose(code, asked[0], atol=1e-4)
        rebuilt = np.asarray(Image.open(folder / row["reconstruction"])).copy()
        expected = run.model.decode(asked)[0].detach()
        assert torch.allclose(torch.from_numpy(rebuilt).movedim(-1, 0) / 255, expected, atol=0.6 / 255)


class Guesses(Recognizer):
    """Of a user: predicts as Lightning lets one."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layers(batch.sounds).argmax(1)


class Heard(Voices):
    predict_dataloader = Voices.train_dataloader


def test_what_a_user_brings_is_written_by_row(mistake: Callable[..., str]) -> None:
    chosen = ["--model", f"{__name__}.Guesses", "--data", f"{__name__}.Heard"]
    cli = predict(*chosen)
    rows = table(cli.folder.path / "predictions" / "predict-1.csv")
    assert [row["row"] for row in rows] == list(map(str, range(24)))
    assert {row["prediction"] for row in rows} <= set("01234")
    line = mistake("predict", *chosen, "--part", "val", *QUIET)
    assert line == "part=val: expected none, since Heard has no plain_loader(part)"


def test_what_predict_step_may_return() -> None:
    assert columns_of([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) == {"a": [1, 3], "b": [2, 4]}
    assert columns_of(["x", "y"]) == {"prediction": ["x", "y"]}
    with pytest.raises(Mistake, match="predict_step returned NoneType: expected a list or a tensor"):
        columns_of(None)


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    written: Any = Predictions(tmp_path, "test")
    module: LightningModule = Recognizer(2)
    with pytest.raises(Mistake, match=r"Recognizer.predict_step returned \{'a': 2, 'b': 3\}: expected as many of each"):
        written.on_predict_batch_end(None, module, {"a": [1, 2], "b": [1, 2, 3]}, None, 0)


def test_several_pictures_for_each_sample(tmp_path: Path) -> None:
    written: Any = Predictions(tmp_path, "test")
    pictures: list[Tensor] = [torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)]
    outputs = {"row": [1, 0], "a": pictures[0], "b": pictures[1], "c": [[1, 2], []]}
    written.on_predict_batch_end(None, None, outputs, None, 0)
    written.end_part({"name": ["x", "y"]})
    written.on_predict_batch_end(None, None, {**outputs, "row": [1, 1]}, None, 0)
    written.end_part({"name": ["v", "w"]})
    written.write()
    rows = table(tmp_path / "test-1.csv")
    assert rows[0] == {"name": "y", "a": "test-1/00000_a.png", "b": "test-1/00000_b.png", "c": "[1, 2]"}
    assert [row["name"] for row in rows] == ["y", "x", "w", "w"]
    assert Image.open(tmp_path / rows[1]["a"]).mode == "L"


def test_the_part_that_is_predicted() -> None:
    data = Digits()
    assert parts_asked_for(None, data, False) == parts_asked_for(None, data, True) == ("test", ["test"])
    assert parts_asked_for("all", data, False) == ("all", ["train", "val", "test"])
    assert parts_asked_for(None, Voices(), True) == ("predict", [])
