"""A logger that writes one wide CSV file and can continue it after a restart."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from common.files import write_whole


class MetricsCSV(Logger):
    """``metrics.csv``: one row per call and one column per metric, with ``step`` and ``epoch`` first.

    Lightning's CSVLogger starts a new file when a run is resumed; this one drops the rows written after the checkpoint
    (:meth:`truncate`) and appends to the rest.

    Args:
        path: the file. It is created with the first row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step", "epoch"]
        self.num_rows = 0
        if path.is_file():
            rows = self._read()
            self.num_rows = len(rows)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return self.path.parent.name

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder holds the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            rows = self._read() if self.path.is_file() else []
            self.columns += sorted(new)
            self._write([*rows, {name: _text(value) for name, value in row.items()}])
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.is_file()
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                if fresh:
                    writer.writeheader()
                writer.writerow({name: _text(value) for name, value in row.items()})
        self.num_rows += 1

    @rank_zero_only
    def truncate(self, num_rows: int) -> None:
        """Keep the first ``num_rows`` rows."""
        if self.path.is_file():  # rewritten also when no row goes: its end may be half a row
            self._write(self._read()[:num_rows])
            self.num_rows = num_rows

    def _read(self) -> list[dict[str, str]]:
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a killed process may leave the last row unfinished
        reader = csv.DictReader(io.StringIO(whole))
        rows = list(reader)
        self.columns = list(reader.fieldnames or self.columns)
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator=os.linesep)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, buffer.getvalue())


def _text(value: object) -> str:
    """Floats in the shortest form that is read back as the same number."""
    return repr(float(value)) if isinstance(value, float) else str(value)
