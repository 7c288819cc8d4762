"""Tables of one's own: CSV files in UTF-8 with a heading. Whatever is wrong with one is said with the line's number."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

DELIMITERS = (",", ";", "\t")
"""as spreadsheets write them"""


class Line(NamedTuple):
    """A line of a table below its heading."""

    number: int
    """in the file, from 1"""
    values: dict[str, str]
    """by the names of the columns, in lower case and without blanks around them"""


def read_table(
    content: bytes, where: str, required: Sequence[str], optional: Sequence[str] = (), note: str = ""
) -> list[Line]:
    """The lines of a table that are not empty; columns that nobody asks for are in them too.

    Args:
        content: of the file.
        where: it is, for the messages.
        required, optional: columns, of which the messages name both.
        note: ends the message of a missing column.

    Raises:
        ValueError: it is no table, a required column is not there, or a line has more or fewer values than the heading.
    """
    try:
        text = content.decode("utf-8-sig")
        heading, lines = _parsed(text, required)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where}: expected a CSV file in UTF-8: {error}") from error
    if not set(required) <= set(heading):
        perhaps = f", and perhaps {', '.join(optional)}" if optional else ""
        found = f"{where}: starts with {','.join(heading)!r}"
        raise ValueError(f"{found}, expected the columns {', '.join(required)}{perhaps}{note}")
    if twice := [name for name in required if heading.count(name) > 1]:
        raise ValueError(f"{where}: the column {twice[0]!r} is there {heading.count(twice[0])} times, expected once")
    for number, line in lines:
        if len(line) != len(heading):
            raise ValueError(f"{where}:{number}: {len(line)} values, expected {len(heading)}: {','.join(heading)}")
    return [Line(number, dict(zip(heading, line, strict=True))) for number, line in lines]


def _parsed(text: str, required: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Heading and numbered lines, cut at the delimiter by which the required columns are found."""
    found: tuple[list[str], list[tuple[int, list[str]]]] = [], []
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [value.strip() for value in line]) for line in reader if any(line)]
        heading = [name.lower() for name in lines[0][1]] if lines else []
        if set(required) <= set(heading):
            return heading, lines[1:]
        found = found if found[0] else (heading, lines[1:])
    return found
