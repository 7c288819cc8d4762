"""How a picture is restored: its network, its parts, how it ended, and the name of its file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from common.progress import Meter
from datamodules.degradations import Denoise, Inpaint, SuperResolve, Task
from datamodules.restoration import open_images
from lit_models.parts import restoring
from lit_models.parts.restoring import (
    Fitted,
    Plan,
    carry_out,
    ending,
    memory_needed,
    network_for,
    plan_for,
    put_together,
    save,
    target_of,
    tiles,
)
from lit_models.scores.moving_variance import MovingVariance


def plan(height: int, width: int, task: Task | None = None, **options: Any) -> Plan:
    [opened] = open_images(torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)), None)
    return plan_for(opened, task or Denoise(None), {}, **options)


def test_the_network_is_that_of_the_size() -> None:
    assert network_for((3, 256, 256))["down"] == [32] * 4
    assert network_for((3, 256, 257))["down"] == [128] * 5
    assert network_for((3, 256, 257), "narrow")["input_channels"] == 16
    assert [len(network_for((1, side, 99))["down"]) for side in (17, 16, 9, 3)] == [4, 3, 3, 1]
    assert plan(20, 20).settings["patience"] == 500
    assert len(plan(20, 20, SuperResolve(2)).settings["down"]) == 4


def test_what_is_too_large_for_the_memory_has_parts_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(100, 100).regions == [None]
    monkeypatch.setattr(restoring, "memory_limit", lambda: 2**30)
    assert (
        memory_needed((3, 256, 256), network_for((3, 256, 256)))
        < 2**30
        < memory_needed((3, 600, 600), network_for((3, 600, 600)))
    )
    with pytest.raises(
        ValueError, match=r"600×600 pixels need about \d\.\d GB of memory, and there are 1\.0 GB; expected"
    ):
        plan(600, 600, tile=0)
    with pytest.raises(ValueError, match=r"tile=512: 1\.0 GB of memory are too little"):
        plan(600, 600)
    found = plan(600, 600, network="narrow", tile=256)
    assert len(found.regions) == 9
    assert found.why == "9 parts of 256×256, which overlap"
    with pytest.raises(ValueError, match="tile=8: expected at least 64, or 0 for none"):
        plan(600, 600, tile=8)


@pytest.mark.parametrize(("height", "width", "side"), [(100, 300, 64), (64, 65, 64), (1000, 40, 128)])
def test_parts_cover_a_picture_and_are_put_together_again(height: int, width: int, side: int) -> None:
    image = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    regions = tiles(height, width, side)
    assert {(w, h) for _, _, w, h in regions} == {(min(side, width), min(side, height))}
    parts = [(r, image[:, r[1] : r[1] + r[3], r[0] : r[0] + r[2]]) for r in regions]
    torch.testing.assert_close(put_together(image.shape, parts), image)
    lefts = sorted({left for left, *_ in regions})
    assert all(b - a <= side - side // 8 for a, b in pairwise(lefts))


def test_parts_fade_into_each_other() -> None:
    together = put_together(
        (1, 64, 120), [([0, 0, 64, 64], torch.zeros(1, 64, 64)), ([56, 0, 64, 64], torch.ones(1, 64, 64))]
    )
    row = together[0, 32]
    assert row[:56].max() == 0
    assert row[64:].min() == 1
    assert (row[56:64].diff() > 0).all()


def test_parts_are_scaled_with_the_picture_and_known_ones_are_left(tmp_path: Path) -> None:
    asked: list[list[int] | None] = []

    def enlarged(plan: Plan, region: list[int] | None) -> Fitted:
        asked.append(region)
        return Fitted(torch.full((3, 128, 128), 0.5), "all 9 iterations")

    with Meter(0, "") as meter:
        found, told = carry_out(plan(80, 64, SuperResolve(2), tile=128), enlarged, 9, meter)
    assert found.shape == (3, 160, 128)
    assert asked == [[0, 0, 64, 64], [0, 16, 64, 64]]
    assert told == "2 parts; all 9 iterations"

    mask = Image.new("L", (64, 80), 255)
    mask.putpixel((5, 5), 0)
    mask.save(tmp_path / "mask.png")

    def filled(plan: Plan, region: list[int] | None) -> Fitted:
        asked.append(region)
        return Fitted(torch.full((3, 64, 64), 0.5), "stopped")

    asked.clear()
    made = plan(80, 64, Inpaint(mask=str(tmp_path / "mask.png")), tile=64)
    with Meter(18, "") as meter:
        found, _ = carry_out(made, filled, 9, meter)
        assert meter.total == 0, "nothing is left to do"
    assert asked == [[0, 0, 64, 64]]
    assert torch.equal(found[:, 64:], made.opened.image[:, 64:])


def test_how_it_ended_is_said_in_words() -> None:
    stop = MovingVariance(1, [1, 2, 2], memory=0.5, patience=3)
    values = [0.0, 0.1, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9]
    for step, value in enumerate(values[:3]):
        stop.update(step, torch.full((1, 1, 2, 2), value))
    assert ending(stop, 3) == "all 3 iterations"
    assert ending(stop, 2000) == "ended at iteration 3 of 2,000: its time was up"
    for step, value in enumerate(values[3:], 3):
        stop.update(step, torch.full((1, 1, 2, 2), value))
    assert ending(stop, 2000).startswith("stopped at iteration 8 of 2,000: no lower variance for 3")


def test_a_result_is_never_written_over(tmp_path: Path) -> None:
    [opened] = open_images(torch.zeros(3, 4, 4), None)
    scan, image = tmp_path / "scan.jpg", Tensor([0.2]).expand(3, 4, 4)
    names = [save(image, opened.original, "scan", scan, None, False).name for _ in range(3)]
    assert names == ["scan_restored.png", "scan_restored-2.png", "scan_restored-3.png"]
    files = [target_of(tmp_path / out, scan, "scan", ".png") for out in ("a.png", "scan_restored.png", "new")]
    assert files == [tmp_path / "a.png", tmp_path / "scan_restored-4.png", tmp_path / "new" / "scan_restored.png"]
