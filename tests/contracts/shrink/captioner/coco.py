"""A few images and captions in the official format."""

from pathlib import Path

from tests.datamodules.test_captions import write_karpathy


def prepare(folder: Path) -> None:
    write_karpathy(folder / "coco", "coco")
