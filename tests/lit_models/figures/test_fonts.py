"""Words in scripts that the usual font lacks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from lit_models.figures import fonts
from lit_models.figures.canvas import shaded_text_page, write
from lit_models.figures.fonts import characters_of, font, pieces, width_of

ALEPH = "א"
"""which DejaVu Sans has, and DejaVu Sans Mono has not"""


@pytest.fixture(autouse=True)
def only_dejavu(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts.file_for.cache_clear()
    monkeypatch.setattr(fonts, "installed", lambda: [str(font(8).path)])
    monkeypatch.setattr(fonts, "_missing", set())


def ink(text: str) -> np.ndarray:
    page = Image.new("L", (80, 30), 255)
    write(page, (2, 2), text, font(8, "SansMono"), color=0)
    return np.asarray(page) < 128


def test_another_font_has_what_the_usual_one_lacks() -> None:
    mono = font(8, "SansMono")
    assert ord(ALEPH) not in characters_of(str(mono.path))
    parts = pieces(f"a{ALEPH}{ALEPH}b", mono)
    assert [text for text, _ in parts] == ["a", ALEPH * 2, "b"]
    assert [its_font.path == mono.path for _, its_font in parts] == [True, False, True]
    assert width_of(f"a{ALEPH}", mono) == round(mono.getlength("a") + parts[1][1].getlength(ALEPH))
    assert not np.array_equal(ink(ALEPH), ink("\U000f0000")), "a letter and not a box"
    assert np.array_equal(ink("a")[:, :9], ink(f"a{ALEPH}")[:, :9])


def test_of_what_no_font_has_a_warning_tells_once() -> None:
    with pytest.warns(UserWarning, match="no installed font has क 日: they are boxes in pictures"):
        ink("日 क")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ink("日 क")


def test_a_page_of_shaded_characters_has_them_too() -> None:
    def page(line: str) -> np.ndarray:
        return np.asarray(shaded_text_page([line], np.zeros((1, 3)), "viridis", 0, 1, "t", "u"))

    assert not np.array_equal(page(f"a{ALEPH}b"), page("a b"))
