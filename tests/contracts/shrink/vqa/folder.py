"""Questions about a few pictures."""

from pathlib import Path

from tests.datamodules.test_vqa_files import write_questions


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_questions(folder)
