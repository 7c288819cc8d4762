"""Lists of names, such as a vocabulary or the classes: told apart and mapped onto each other by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 3
"""names of each kind that a message lists"""


def are_names(value: object) -> bool:
    """Whether a fact is a list of names."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(name, str) for name in value)


def plain(value: object) -> Any:
    """A fact as a checkpoint or a YAML file gives it back: tuples are lists."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def listed(names: Sequence[str]) -> str:
    """``'a', 'b', 'c' and 4 more``."""
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that are not among the known ones, in their order."""
    there = set(known)
    return [name for name in names if name not in there]


def difference(ours: Any, theirs: Any) -> str:
    """What tells a fact of the data from the checkpoint's, in a few words: by names where they are lists of names."""
    if not (are_names(ours) and are_names(theirs)):
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            for key in [*ours, *theirs]:
                if plain(ours.get(key)) != plain(theirs.get(key)):
                    return f"{key}: {difference(ours.get(key), theirs.get(key))}"
        return f"{_short(ours)} in the data, {_short(theirs)} in the checkpoint"
    if strange := unknown(ours, theirs):
        return f"the checkpoint does not know {listed(strange)} of the data"
    if lacking := unknown(theirs, ours):
        return f"the data do not have {listed(lacking)} of the checkpoint"
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"in another order, place {place} is {ours[place]!r} in the data and {theirs[place]!r} in the checkpoint"


def refuse_unknown(fact: str, ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Raises ValueError if the data have a name that the checkpoint does not know; lists the first ones."""
    if strange := unknown(ours, theirs):
        raise ValueError(
            f"{fact}: the checkpoint does not know {listed(strange)} of the data; expected some of its {len(theirs)}, "
            f"which are {listed(theirs)}"
        )


def _short(value: object) -> str:
    text = repr(plain(value))
    return text if len(text) < 60 else f"{text[:56]} ..."
