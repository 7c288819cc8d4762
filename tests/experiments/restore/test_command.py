"""``train.py restore``: one short command for a picture, or a folder of them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.restore import command
from experiments.restore.command import main, seconds, split
from lit_models.parts.restoring import Watch

TINY = [
    *("--model.down=[8,8]", "--model.up=[8,8]", "--model.skip=[2,2]", "--model.input_channels=4"),
    *("--model.averaging=0.5", "--trainer.accelerator=cpu"),
]


def paint(file: Path, height: int = 40, width: int = 48, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(height + channels).integers(0, 256, (height, width, channels), np.uint8)
    pixels = pixels[..., 0] if channels == 1 else pixels
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(file)
    return pixels


def restored(*args: object, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that the command prints."""
    assert main([*map(str, args), *TINY]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_hole_is_filled_in_and_the_rest_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = tmp_path / "scan.jpg"
    paint(scan)
    mask = np.full((40, 48), 255, np.uint8)
    mask[4:8, 5:9] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    lines = restored(scan, "--mask", tmp_path / "mask.png", "--iterations", 6, capsys=capsys)
    assert lines[0].startswith(f"{scan}: 48×40 RGB, 8 bits; mask={tmp_path}/mask.png: 0.8 % of the pixels are unknown")
    assert lines[-1] == f"{tmp_path}/scan_restored.png: all 6 iterations"
    found, given = (np.asarray(Image.open(file)) for file in (tmp_path / "scan_restored.png", scan))
    changed = (found != given).any(2)
    assert changed[4:8, 5:9].all()
    assert changed.sum() == 16

    [run] = (tmp_path / "runs" / "deep_image_prior" / "restore").iterdir()
    assert lines[1] == f"preview, as it comes: {run}/preview.png"
    assert np.array_equal(np.asarray(Image.open(run / "preview.png")), found)
    assert {"config.yaml", "manifest.json", "metrics.csv", "summary.json"} < {file.name for file in run.iterdir()}
    assert not list(run.glob("checkpoints/*.ckpt")), "states that nobody needs any more"


@pytest.mark.slow
def test_a_folder_becomes_a_folder_and_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    album = tmp_path / "album"
    paint(album / "a.jpg")
    paint(album / "a.png", 30, 20, channels=1)
    rgba = paint(album / "b.png", 32, 32, channels=4)
    paint(album / "b_restored.png", 32, 32)
    (tmp_path / "album_restored").mkdir()
    restored(album, "--iterations", 3, capsys=capsys)
    found = {file.name: Image.open(file) for file in (tmp_path / "album_restored").iterdir()}
    sizes = {name: (image.mode, image.size) for name, image in found.items()}
    assert sizes == {"a.jpg.jpg": ("RGB", (48, 40)), "a.png.png": ("L", (20, 30)), "b.png": ("RGBA", (32, 32))}
    assert np.array_equal(np.asarray(found["b.png"])[..., 3], rgba[..., 3])

    paint(album / "c.png")
    lines = restored(album, "--iterations", 3, capsys=capsys)
    assert lines[0] == "3 of 4 are restored already"
    assert [line for line in lines if "all 3 iterations" in line] == [
        f"{tmp_path}/album_restored/c.png: all 3 iterations"
    ]


@pytest.mark.slow
def test_parts_are_remembered_and_a_stopped_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "scan.png", 40, 60)
    order: list[Any] = [tmp_path / "scan.png", "--tile", 64, "--factor", 2, "--iterations", 12]
    lines = restored(*order, capsys=capsys)
    assert "becomes 120×80; 4 parts of 64×64, which overlap" in lines[0]
    expected = np.asarray(Image.open(tmp_path / "scan_restored.png"))
    assert expected.shape == (80, 120, 3)

    iterations: list[int] = []
    advance = Watch.on_train_batch_end

    def interrupted(self: Watch, *args: Any) -> None:
        iterations.append(1)
        if len(iterations) == 2 * 12 + 5:  # in the middle of the third part
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, *args)

    monkeypatch.setattr(Watch, "on_train_batch_end", interrupted)
    assert main([*map(str, order), *TINY]) == 128 + signal.SIGTERM
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert not (tmp_path / "scan_restored-2.png").exists()
    restored(*order, capsys=capsys)
    assert len(iterations) == 4 * 12, "no iteration is done twice"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "scan_restored-2.png")), expected)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["scn.png"], "image=scn.png: no such file or folder; did you mean 'scan.png'?"),
        (["scan.png", "--task", "denoize"], "--task=denoize: expected denoise, .*did you mean 'denoise'"),
        (["scan.png", "--task", "inpaint"], "Inpaint without mask: expected mask=FILE"),
        (["scan.png", "--mask", "m.png"], "mask=m.png: no such file"),
        (["scan.png", "--factor", "9"], "factor=9: expected 2, 3, 4, 5, 6, 7 or 8"),
        (["scan.png", "--factor", "2", "--mask", "scan.png"], "factor=2: Inpaint has no such option"),
        (["scan.png", "--tim", "3"], "--tim: no such option; did you mean '--time'"),
        (["scan.png", "--time", "soon"], "soon: expected a time such as 90s, 10m or 2h"),
        (["scan.png", "--iterations", "0"], "--iterations=0: expected at least 1"),
        (["album", "-o", "album/new"], "--out=album/new: expected a folder outside of album"),
        (["album", "scan.png", "-o", "a.png"], "--out=a.png: expected a folder for 2 pictures"),
        (["scan.png", "--tile", "3"], "tile=3: expected at least 64, or 0 for none"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], expected: str, mistake: Callable[..., str], tmp_path: Path) -> None:
    for file in ("scan.png", "album/a.png"):
        paint(tmp_path / file)
    assert re.search(expected, mistake("restore", *args))


def test_times_and_options_of_fit() -> None:
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    handed_on = ["--trainer.precision", "bf16-mixed", "--model.averaging=0.5"]
    assert split(["a.png", *handed_on, "--seed", "3"]) == (
        ["--trainer.precision=bf16-mixed", "--model.averaging=0.5"],
        ["a.png", "--seed", "3"],
    )
    options = command.parser().parse_intermixed_args(["a.png", "--sigma", "5", "--time", "10m"])
    made = command.Restoring(options, ["--model.averaging=0.5", "--model.optimizer.lr=0.1"])
    assert made.arguments == {"sigma": 5}
    assert made.chosen == {"averaging": 0.5}
