"""Tables of numbers, a row for each step: CSV files with or without a heading. What is no number is named by its line.

Pandas and R write more than the numbers: a heading ``0,1,…`` where columns have no names, and a first column without a
name that numbers the rows. Neither is measured, so neither is read, and the table's ``notes`` say so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.checks import nearest
from datamodules.parts.tables import DELIMITERS

BOOLEANS = {"true": 1.0, "false": 0.0}


class SeriesTable:
    """The rows of a table, and the names of its columns.

    Args:
        path: of a file in UTF-8, cut at tabs, semicolons or commas.

    Attributes:
        header: the names of the columns; empty if they have none.
        names: the same, or else "0", "1", ….
        lines: of the rows in the file, from 1 on.
        notes: what was there and is not read, in words.

    Raises:
        ValueError: it is no table, has no row, or a row that is empty or has more or fewer columns than the first one;
            names the file and the line.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, list[str]()
        rows = _rows_of(path)
        header = self._header(rows)
        if header and len(header) > 1:  # of a single column, an empty line may be a value that is missing
            rows = _without_blank_start(rows)
        if not rows:
            raise ValueError(f"{path}: no row of numbers, expected a row for each step")
        width = len(header or rows[0][1])
        for line, cells in rows:
            if not cells:
                raise ValueError(f"{path}: line {line}: empty, expected a number in each row, one row for each step")
            if len(cells) != width:
                raise ValueError(f"{path}: line {line}: {len(cells)} columns, expected {width} as in the first row")
        if header and _has_row_numbers(header, rows):
            header, rows = header[1:], [(line, cells[1:]) for line, cells in rows]
            self.notes.append("a first column without a name, which numbers the rows, left out")
        self.header = [] if _are_numbered(header) else header
        self.lines, self._cells = [line for line, _ in rows], [cells for _, cells in rows]
        self.names = self.header or [str(place) for place in range(len(self._cells[0]))]

    def _header(self, rows: list[tuple[int, list[str]]]) -> list[str]:
        """The first row if it is a heading, which is then taken away."""
        first = [cell.strip() for cell in rows[0][1]] if rows else []
        if any(first) and not any(map(_is_number, first)) and not all(cell.lower() in BOOLEANS for cell in first):
            rows.pop(0)
            return first
        is_numbered = len(first) > 1 and (_are_numbered(first) or _has_row_numbers(first, rows[1:]))
        if is_numbered and len(rows) > 1 and _are_numbered(first if first[0] else first[1:]):
            rows.pop(0)
            self.notes.append("a first row 0, 1, … taken for a heading (as a step, write 0.0)")
            return first
        return []

    def place(self, argument: str, column: str) -> int:
        """Where a column is; upper and lower case are told apart only if the table itself does so.

        Raises:
            ValueError: there is none of this name, or more than one; names the argument and the nearest name.
        """
        folded = [name.casefold() for name in self.names]
        if column not in self.names and folded.count(column.casefold()) == 1:
            return folded.index(column.casefold())
        if column not in self.names:
            raise ValueError(
                f"{argument}={column}: {self.path} has no such column{nearest(column, self.names)}; expected one of "
                f"{', '.join(self.names)}"
            )
        if (count := self.names.count(column)) > 1:
            raise ValueError(f"{self.path}: {count} columns are called {column!r}, expected each name once")
        return self.names.index(column)

    def texts(self, place: int) -> list[str]:
        """What is in a column, without blanks around it."""
        return [cells[place].strip() for cells in self._cells]

    def numbers(self, places: Sequence[int]) -> np.ndarray:
        """(rows, len(places)) float64 of these columns; true is 1 and false is 0.

        Raises:
            ValueError: something else is in one; names the line and the column.
        """
        try:
            return np.array([[float(cells[place]) for place in places] for cells in self._cells])
        except ValueError:
            return np.array(
                [
                    [self._number(line, place, cells[place]) for place in places]
                    for line, cells in zip(self.lines, self._cells, strict=True)
                ]
            )

    def _number(self, line: int, place: int, cell: str) -> float:
        found = BOOLEANS.get(cell.strip().lower())
        if found is None and not _is_number(cell):
            raise ValueError(
                f"{self.path}: line {line}, column {self.names[place]}: {cell!r}, expected a number; 'columns' says "
                "which ones to take"
            )
        return float(cell) if found is None else found


def _rows_of(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of each row and its line, without empty lines at the beginning and at the end."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start}: not UTF-8 ({error.reason}), expected a table in UTF-8") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((each for each in reversed(DELIMITERS) if each in first), ",")  # a comma may be within a text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        # A line of blanks is empty; a pair of quotes is a value that is missing.
        rows = [(reader.line_num, [] if len(cells) == 1 and cells[0].isspace() else cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: expected a table: {error}") from None
    return _without_blank_start(_without_blank_start(rows)[::-1])[::-1]


def _without_blank_start(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    start = next((place for place, (_, cells) in enumerate(rows) if cells), len(rows))
    return rows[start:]


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether these are 0, 1, …, as columns without names are numbered."""
    return list(names) == [str(place) for place in range(len(names))]


def _has_row_numbers(header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> bool:
    """Whether the first column has no name, though there are others, and counts from 0 or from 1."""
    if header[0] or len(header) < 2 or not rows:
        return False
    column = [cells[0].strip() for _, cells in rows if cells]
    return any(column == [str(place + first) for place in range(len(column))] for first in (0, 1))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
