"""Every command and every line of Python of docs/your_data.md, on data of one's own, in short trainings."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.cli import main
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "your_data.md").read_text()
BLOCKS = re.findall(r"^```(bash|python|csv|)\n(.*?)^```$", PAGE, re.M | re.S)
IN_SHORT = [
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"),
    *("--trainer.limit_test_batches", "2", "--figures.every_n_epochs", "null", "--trainer.accelerator", "cpu"),
]
SMALLER = {
    "text_to_image": [
        *("--model.classifier_epochs", "1", "--model.embedding_epochs", "1", "--model.width", "4"),
        *("--trainer.check_val_every_n_epoch", "1"),
    ],
    "char_lm": ["--data.seq_len", "20", "--data.batch_size", "4", "--model.hidden", "8"],
    "text_vae": ["--data.batch_size", "8", "--model.hidden", "8"],
    "seq_autoencoder": ["--data.batch_size", "4", "--model.hidden", "8", "--trainer.check_val_every_n_epoch", "1"],
    "vae": ["--model.test_samples", "4"],
    "sketch_rnn": ["--trainer.check_val_every_n_epoch", "1"],
}


def paint(file: Path, seed: int, red: float) -> None:
    """A picture of some size, more or less red."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 120, 2)
    pixels = generator.random((height, width, 3)) * [red, 0.5, 1 - red] * 255
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


@pytest.fixture
def folders(tmp_path: Path) -> None:
    for number in range(100):
        paint(tmp_path / "photos" / f"{number:03}.jpg", number, number % 7 / 6)
    for place, (animal, vehicle) in enumerate((("cat", "bus"), ("dog", "car"))):
        for number in range(40):
            paint(tmp_path / "animals" / animal / f"{number:02}.jpg", number, place)
            paint(tmp_path / "vehicles" / vehicle / f"{number:02}.jpg", number, place)
            for part in ("train", "val")[: 1 + (number < 9)]:
                paint(tmp_path / "judged" / part / animal / f"{number:02}.jpg", number, place)
    asked = [(f"photos/{number:03}.jpg", "red" if number % 7 > 3 else "blue") for number in range(100)]
    table = [f"{image},What color is it?,{color}\n{image},Is it red?,no" for image, color in asked]
    (tmp_path / "questions.csv").write_text("\n".join(["image,question,answer", *table, ""]))
    (tmp_path / "new_questions.csv").write_text("image,question\nnew.jpg,Is it red?\n")
    table = [f"{image},a {color} wall\n{image},all of it is {color}" for image, color in asked]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *table, ""]))
    (tmp_path / "new_pictures.csv").write_text("image\nnew.jpg\nother.png\n")
    generator = np.random.default_rng(0)
    (tmp_path / "book.txt").write_text("The cat, the dog and what is in this line.\n" * 100 + "É\n")
    (tmp_path / "letters.txt").write_text("Dear cat! Yours, the dog.\n" * 100)
    names = sorted({"".join(generator.choice(list("anrobet"), 6)).capitalize() for _ in range(200)})
    (tmp_path / "names.txt").write_text("\r\n".join(["Anna", "Robert", *names]))
    rows = [f"{patient},{60 + step},{120 - step},calm" for patient in range(12) for step in range(9 + patient)]
    (tmp_path / "patients.csv").write_text("\n".join(["patient,pulse,pressure,note", *rows]))
    (tmp_path / "recording.csv").write_text("\n".join(f"{np.sin(step / 5):.3f}" for step in range(505)))
    for name, shape in (("house", '<rect width="{}" height="70"/>'), ("boat", '<path d="M0 0h{} l-9 30 h-40 z"/>')):
        for number in range(40):
            file = tmp_path / "icons" / name / f"{number:02}.svg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{shape.format(80 + number)}</svg>')
    (tmp_path / "new.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>')
    drawing = {"word": "cat", "drawing": [[[0, 255, 100], [0, 40, 90]], [[7, 9], [30, 20]]]}
    (tmp_path / "cat.ndjson").write_text(f"{json.dumps(drawing)}\n" * 80)
    paint(tmp_path / "new.jpg", 0, 0.9)
    paint(tmp_path / "other.png", 1, 0.1)
    mask = Image.new("L", Image.open(tmp_path / "new.jpg").size, 255)
    mask.paste(0, (5, 5, 15, 15))
    mask.save(tmp_path / "mask.png")
    paint(tmp_path / "album" / "one.jpg", 2, 0.5)
    paint(tmp_path / "album" / "two.png", 3, 0.5)


@pytest.mark.slow
def test_the_page_can_be_followed(folders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_RUNS")
    names: dict[str, object] = {}
    commands = 0
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
        elif language == "bash":
            for line in block.splitlines():
                call = shlex.split(line)
                assert call[:2] == ["python", "train.py"]
                call = [str(REPOSITORY / part) if part.startswith("configs/") else part for part in call[2:]]
                if call[0] == "fit":
                    call += IN_SHORT + next((more for name, more in SMALLER.items() if name in line), [])
                if call[0] == "restore":
                    call += ["--iterations", "3", "--trainer.accelerator", "cpu"]
                monkeypatch.setattr(sys, "argv", ["train.py", *call])
                main()
                commands += 1
        elif language == "csv":
            table = tmp_path / ("questions.csv" if "answer" in block else "captions.csv")
            assert table.read_text().startswith("\n".join(block.splitlines()[:3]))
        else:
            (tmp_path / "pairs.csv").write_text(block)
    assert commands == 32
    found = [
        Path(name) for name in ("new_restored.jpg", "whole.png", "album_restored/one.jpg", "album_restored/two.png")
    ]
    assert all(file.is_file() for file in found)
