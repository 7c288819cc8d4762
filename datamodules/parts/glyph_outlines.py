"""Outlines of letters and digits from the fonts that come with matplotlib, as sketches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from common.drawings import simplified, to_stroke_3
from common.randomness import keyed_generator

FONTS = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        *("cmr10", "cmb10", "cmti10"),
    ),
    "val": ("cmss10", "cmtt10"),
    "test": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
"""The fonts of each part, in whole families: DejaVu Sans, Sans Mono and Serif and Computer Modern (roman, bold, italic)
for training, its sans serif and typewriter for validation, STIX, a Times, for the test. Computer Modern's families are
related: one program makes all of them (Knuth 1986)."""

CAP_HEIGHT = 100.0
"""height of the letter H of every font, in units"""

SLANT, WIDTH = (-0.25, 0.25), (0.8, 1.25)
"""the slant of a font's variant, as the tangent of its angle, and its width"""

PIXELS = 1000
"""size at which a font is read: large, so that hinting, which moves points by a pixel, does not matter"""

CURVE = np.arange(1, 9)[:, None] / 8
"""where points are taken on a Bézier curve"""


def glyph_sketches(
    part: str, characters: str, epsilon: float = 1.0, variants: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """The characters in each font of a part: stroke-3 arrays (n, 3) float32 and the characters' numbers (N,).

    A stroke is a closed contour: it ends where it begins, at its upper left. The contour around the largest area comes
    first and runs clockwise, as TrueType has it; holes run the other way. The unit is a hundredth of the height of the
    font's H, y grows downward, and the first offset is 0: the pen starts where the drawing does.

    Args:
        part: "train", "val" or "test".
        epsilon: how far a simplified outline may be from the font's, in these units: see
            :func:`~common.drawings.simplified`.
        variants: further versions of each font, that lean and are narrower or wider. They are the same on every
            machine: their draws are of (font, number of the variant).

    Raises:
        FileNotFoundError: this installation of matplotlib lacks a font.
        ValueError: a font does not have a character, or has no outline for it.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    sketches: list[np.ndarray] = []
    labels: list[int] = []
    for name in FONTS[part]:
        outlines = [
            [simplified(contour, epsilon) for contour in contours]
            for contours in _outlines(folder / f"{name}.ttf", characters)
        ]
        for shear in _shears(name, variants):
            sketches += [to_stroke_3([contour @ shear for contour in contours]) for contours in outlines]
            labels += range(len(characters))
    return sketches, np.array(labels)


def _shears(font: str, variants: int) -> Iterator[np.ndarray]:
    """The matrices by which points (n, 2) are multiplied, for a font itself and its variants."""
    yield np.eye(2)
    for variant in range(1, variants + 1):
        draws = torch.rand(2, generator=keyed_generator("glyphs", font, variant), dtype=torch.float64).tolist()
        slant, width = (low + draw * (high - low) for draw, (low, high) in zip(draws, (SLANT, WIDTH), strict=True))
        yield np.array([[width, 0], [-slant, 1]])  # what is higher, where y is less, goes to the right


def _outlines(file: Path, characters: str) -> Iterator[list[np.ndarray]]:
    """The contours of each character, each (n, 2), as :func:`glyph_sketches` says, not simplified."""
    from matplotlib.ft2font import FT2Font

    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; expected the fonts that matplotlib comes with")
    font = FT2Font(str(file))
    font.set_size(PIXELS, 72)
    font.load_char(ord("H"))
    unit = font.get_path()[0][:, 1].max() / CAP_HEIGHT
    for character in characters:
        if not font.get_char_index(ord(character)):
            raise ValueError(
                f"characters={characters!r}: {character!r} is not in {file.name}, expected letters or digits"
            )
        font.load_char(ord(character))
        contours = [contour * (1, -1) / unit for contour in _flattened(*font.get_path())]
        if not contours:
            raise ValueError(f"characters={characters!r}: {character!r} has no outline, expected letters or digits")
        contours.sort(key=lambda contour: -abs(_area(contour)))
        yield [_from_upper_left(contour) for contour in contours]


def _flattened(vertices: np.ndarray, codes: np.ndarray) -> Iterator[np.ndarray]:
    """Closed polylines (n, 2) of a TrueType path as matplotlib has it, its curves as points on them."""
    from matplotlib.path import Path as Outline

    contour: list[np.ndarray] = []
    i = 0
    while i < len(codes):
        if codes[i] == Outline.CLOSEPOLY:  # its vertex means nothing: FreeType has led the contour back already
            closed = np.concatenate(contour)
            assert (closed[0] == closed[-1]).all()
            yield closed
            contour = []
            i += 1
        elif codes[i] == Outline.CURVE3:  # a quadratic Bézier curve: its control point and its end
            start, control, end = contour[-1][-1], *vertices[i : i + 2]
            contour.append((1 - CURVE) ** 2 * start + 2 * CURVE * (1 - CURVE) * control + CURVE**2 * end)
            i += 2
        else:
            contour.append(vertices[i : i + 1])
            i += 1


def _area(contour: np.ndarray) -> float:
    """The area that a closed polyline encloses; the sign gives its direction."""
    x, y = contour.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _from_upper_left(contour: np.ndarray) -> np.ndarray:
    """The same closed polyline from the point that is nearest to the upper left of all, and back to it."""
    start = int(contour[:-1].sum(1).argmin())
    return np.concatenate([contour[start:-1], contour[: start + 1]])
