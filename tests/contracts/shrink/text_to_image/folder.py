"""Captions of a few pictures."""

from pathlib import Path

from tests.datamodules.test_csv_captions import write_captions


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_captions(folder, 30)
