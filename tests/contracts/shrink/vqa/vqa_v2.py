"""A few images and questions in the official format."""

from pathlib import Path

from tests.datamodules.test_vqa_v2 import write_data_set


def prepare(folder: Path) -> None:
    write_data_set(folder / "vqa_v2")
