"""Captions of one's own about pictures of one's own, from a CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.csv_captions import CSVCaptions
from experiments.cli import CLI, build
from tests.conftest import NO_PICTURES, QUIET
from tests.datamodules.test_vqa_files import COLORS, paint


def write_captions(folder: Path, pictures: int = 20) -> Path:
    """``captions.csv``: two captions of each of some pictures."""
    lines = ["image,caption"]
    for number in range(pictures):
        color = list(COLORS)[number % 3]
        paint(folder / "pictures" / f"{number:02}.png", COLORS[color])
        lines += [f"pictures/{number:02}.png,A {color} wall.", f'pictures/{number:02}.png,"{color}, all over"']
    file = folder / "captions.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    data = CSVCaptions(str(write_captions(tmp_path)), image_size=8)
    assert data.vocab == ["<pad>", "<unk>", "a", "all", "blue", "green", "over", "red", "wall"]
    data.setup()
    assert {part: len(data.tables[part]) for part in data.part_names} == {"train": 16, "val": 2, "test": 2}
    for part in data.part_names:
        table, files = data.tables[part], data.sample_names(part)["file"]
        batch = table[torch.arange(len(table))]
        for row, words in zip(batch.image_index.tolist(), batch.captions, strict=True):
            color = list(COLORS)[int(Path(files[row]).stem) % 3]
            said = " ".join(data.vocab[word] for word in words.tolist() if word)
            assert said in (f"a {color} wall", f"{color} all over")
            assert batch.images[row, :, 0, 0].tolist() == list(COLORS[color])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text\na.png,x\n", "no photograph has a caption"),
        ("image,caption,split\na.png,x,train\na.png,y,test\n", "c.csv:3: split 'test', but 'train' in a line before"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(content: str, message: str, tmp_path: Path) -> None:
    paint(tmp_path / "a.png", COLORS["red"])
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        CSVCaptions(str(tmp_path / "c.csv"), image_size=8).prepare_data()


def test_new_pictures_are_described_in_the_format_of_coco(fit: Callable[..., CLI], tmp_path: Path) -> None:
    small = [
        *("--model.channels", "[4,8]", "--model.hidden_dim", "8", "--model.embedding_dim", "8"),
        *("--data.image_size", "16", "--data.batch_size", "4", "--trainer.max_epochs", "1"),
        *("--best.monitor", "val/cider_d", "--best.mode", "max"),
    ]
    trained = fit(
        *("--model", "lit_models.captioner.Captioner", "--data", "datamodules.csv_captions.CSVCaptions"),
        *("--data.path", write_captions(tmp_path), *small),
    )
    other = tmp_path / "other.csv"
    rare = [f"pictures/{number:02}.png,rare{number} words,test" for number in range(6) for _ in range(2)]
    other.write_text("\n".join(["image,caption,split", *rare]))
    best = str(trained.folder.best_checkpoint())
    build(["test", "--ckpt_path", best, "--data.path", str(other), *NO_PICTURES, *QUIET]).execute()
    new = tmp_path / "new.csv"
    new.write_text("image\npictures/03.png\npictures/01.png\n")
    cli = build(["predict", "--ckpt_path", best, "--data.path", str(new), *QUIET])
    cli.execute()
    folder = cli.folder.path / "predictions"
    with next(folder.glob("*.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["pictures/03.png", "pictures/01.png"]
    results = json.loads(next(folder.glob("*_results.json")).read_text())
    assert results == [{"image_id": int(row["image_id"]), "caption": row["caption"]} for row in rows]
