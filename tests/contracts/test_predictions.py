"""Every technique's `predict` leaves files that a person can use, with the name of each sample in its row."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli import CLI, build
from tests.conftest import QUIET
from tests.contracts.conftest import TECHNIQUES

SOME = [name for name in TECHNIQUES if not name.startswith("deep_image_prior")]
"""what predicts without having been trained; the restored images of the other one have tests of their own"""


def predict(config: list[str], *options: str) -> CLI:
    cli = build(["predict", *config, "--trainer.limit_predict_batches", "2", "--run.id", "one", *options, *QUIET])
    cli.execute()
    return cli


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("config", SOME, indirect=True)
def test_predictions_have_names_and_are_never_written_over(
    config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli = predict(config, "--part", "val")
    said = capsys.readouterr().out.splitlines()[-1]
    folder, names = cli.folder.path / "predictions", cli.datamodule.sample_names("val")
    before = contents(folder)
    assert before
    count = int(said.split()[0])
    assert count > 1
    assert f"{count} predictions of the val part: {folder / 'val-1'}" in said
    for line in said.partition(": ")[2].split(", "):
        assert Path(line).exists()

    rows: list[dict[str, str]] = []
    if (table := folder / "val-1.csv").is_file():
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        assert set(names) < set(rows[0]), "what it is and what is said of it"
        for column in ("image", "reconstruction"):
            for row in rows:
                if (file_name := row.get(column, "")).endswith((".png", ".svg")):
                    assert (folder / file_name).stat().st_size > 50
    arrays: dict[str, Any] = {}
    if (archive := folder / "val-1.npz").is_file():
        arrays = dict(np.load(archive))  # which reads no pickle
        assert set(names) < set(arrays)
        assert {len(values) for values in arrays.values()} == {count}
        assert all(np.isfinite(values).all() for values in arrays.values() if values.dtype.kind == "f")
    assert rows or arrays
    if "sentence" not in (rows[0] if rows else {}):  # of which an image has several
        for name, values in names.items():
            found = [row[name] for row in rows] or arrays[name].tolist()
            assert list(map(str, found)) == list(map(str, list(values)[:count])), name

    predict(config, "--part", "val")
    again = contents(folder)
    assert {name: again[name] for name in before} == before
    assert {name.replace("val-2", "val-1") for name in set(again) - set(before)} == set(before)
