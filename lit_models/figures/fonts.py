"""Fonts for words of any script: the DejaVu family, and for what it lacks whatever the machine has installed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import matplotlib
from lightning.pytorch.utilities import rank_zero_warn
from PIL import ImageFont

DPI = 110
"""pixels an inch, as many as figures have by default"""
SHOWN = 8
"""characters that a warning lists"""

_missing: set[str] = set()
"""characters that no font has, of which was warned"""


@cache
def font(points: float, kind: Literal["Sans", "Sans-Bold", "SansMono"] = "Sans") -> ImageFont.FreeTypeFont:
    """A font of the DejaVu family, which matplotlib comes with."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVu{kind}.ttf")
    # Characters of whole pixels: those of SansMono then stand in columns.
    return ImageFont.truetype(file, round(points * DPI / 72), layout_engine=ImageFont.Layout.BASIC)


@cache
def characters_of(file: str) -> frozenset[int]:
    """The code points that a font has a shape for; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def installed() -> list[str]:
    """The files of the machine's own fonts."""
    from matplotlib.font_manager import findSystemFonts

    return sorted(findSystemFonts())


@cache
def file_for(char: str) -> str | None:
    """An installed font that has a character."""
    return next((file for file in installed() if ord(char) in characters_of(file)), None)


@cache
def _other(file: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def is_in(char: str, letters: ImageFont.FreeTypeFont) -> bool:
    """Whether a font has a shape for a character."""
    return char.isascii() or char.isspace() or ord(char) in characters_of(str(letters.path))


def pieces(line: str, letters: ImageFont.FreeTypeFont) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """A line in pieces, each with the font that has its characters; of those that none has, a warning tells once."""
    if line.isascii():
        return [(line, letters)]
    lacking = {char: file_for(char) for char in set(line) if not is_in(char, letters)}
    _warn_of(char for char, file in lacking.items() if file is None)
    found = []
    for file, characters in groupby(line, lambda char: lacking.get(char)):
        found.append(("".join(characters), letters if file is None else _other(file, letters.size)))
    return found


def _warn_of(characters: Iterable[str]) -> None:
    """Tells once of each character that no font has."""
    if new := sorted(set(characters) - _missing):
        _missing.update(new)
        more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
        rank_zero_warn(
            f"no installed font has {' '.join(new[:SHOWN])}{more}: they are boxes in pictures, but not in the texts "
            "beside them; install one for this script, such as the package fonts-noto"
        )


def width_of(text: str, letters: ImageFont.FreeTypeFont) -> int:
    """Pixels of the longest line."""
    return round(
        max(sum(its_font.getlength(piece) for piece, its_font in pieces(line, letters)) for line in text.split("\n"))
    )


def line_height(letters: ImageFont.FreeTypeFont) -> int:
    return sum(letters.getmetrics())


def height_of(text: str, letters: ImageFont.FreeTypeFont) -> int:
    return line_height(letters) * len(text.split("\n")) if text else 0
