"""Checks of arguments: one line that names the argument, its value and what was expected, and the nearest valid name.

Each takes arguments by their names, ``at_least(1, layers=layers, hidden=hidden)``. Those of numbers pass over None,
which stands for "not given" wherever an argument may have it; NaN fails every one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from typing import Any, get_args


def at_least(low: float, note: str = "", /, **numbers: float | None) -> None:
    """Raises ValueError for the first number below ``low``.

    Args:
        note: is added to the message, such as "or null for all".
    """
    for name, number in numbers.items():
        if number is not None and not number >= low:
            raise ValueError(f"{name}={number}: expected at least {low:g}{_after_comma(note)}")


def whole(low: int, note: str = "", /, **numbers: int | None) -> None:
    """Raises ValueError for the first number that is not an integer or is below ``low``; ``note`` as for at_least."""
    for name, number in numbers.items():
        if number is not None and not isinstance(number, Integral):
            raise ValueError(f"{name}={number!r}: expected a whole number{_after_comma(note)}")
    at_least(low, note, **numbers)


def more_than(low: float, note: str = "", /, **numbers: float | None) -> None:
    """Raises ValueError for the first number that is not above ``low``, or is infinite; ``note`` as for at_least."""
    for name, number in numbers.items():
        if number is not None and not low < number < float("inf"):
            raise ValueError(f"{name}={number}: expected more than {low:g}{_after_comma(note)}")


def within(interval: str, /, **numbers: float | None) -> None:
    """Raises ValueError for the first number outside an interval such as ``"[0, 1)"``; brackets include the end."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, number in numbers.items():
        if number is None:
            continue
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        if not (above and below):
            raise ValueError(f"{name}={number}: expected a number in {interval}")


def one_of(choices: Any, /, **values: object) -> None:
    """Raises ValueError for the first value that is not among ``choices``: a ``Literal[…]``, or any iterable."""
    known = list(get_args(choices) or choices)
    for name, value in values.items():
        if value not in known:
            listed = ", ".join(map(repr, known[:-1]))
            expected = f"{listed} or {known[-1]!r}" if listed else repr(known[-1])
            hint = nearest(value, map(str, known)) if isinstance(value, str) else ""
            raise ValueError(f"{name}={value!r}: expected {expected}{hint}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """``; did you mean 'x'?`` for the closest known name, or nothing."""
    found = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]!r}?" if found else ""


def _after_comma(note: str) -> str:
    return f", {note}" if note else ""
