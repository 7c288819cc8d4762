"""Small pictures and words put on one page with Pillow.

Matplotlib takes seconds for a page with an axes for each picture or a text object for each character, and for a figure
of nothing but pixels several times as long as Pillow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_models.figures.fonts import font, height_of, is_in, line_height, pieces, width_of

Picture = Figure | Image.Image | str
"""what the pictures of a technique may be: a plot, a page of pixels, or text"""
MARGIN = 8
MARKS = "↵→"
"""what stands for white space, fainter than letters"""


def write(
    page: Image.Image,
    place: tuple[float, float],
    text: str,
    letters: ImageFont.FreeTypeFont,
    color: str | int = "black",
    align: Literal["left", "center", "right"] = "left",
) -> None:
    """Lines of text, with ``place`` at the upper end of their left side, their center or their right side."""
    draw, (x, y) = ImageDraw.Draw(page), place
    for number, line in enumerate(text.split("\n")):
        left = x - {"left": 0, "center": 0.5, "right": 1}[align] * width_of(line, letters)
        for piece, its_font in pieces(line, letters):
            top = y + number * line_height(letters) + letters.getmetrics()[0] - its_font.getmetrics()[0]
            draw.text((left, top), piece, fill=color, font=its_font, anchor="la")
            left += its_font.getlength(piece)


def write_upwards(page: Image.Image, place: tuple[int, int], text: str, letters: ImageFont.FreeTypeFont) -> None:
    """A line of text that is read from the bottom up, with ``place`` at the upper end of its middle."""
    strip = Image.new("L", (width_of(text, letters), line_height(letters)))
    write(strip, (0, 0), text, letters, color=255)
    strip = strip.transpose(Image.Transpose.ROTATE_90)
    page.paste("black", (place[0] - strip.width // 2, place[1]), strip)


def pixels_of(images: Tensor, width: float) -> np.ndarray:
    """Images (N, C, H, W) in 0..1, gray or in color → (N, h, w, 3) bytes, about ``width`` pixels wide.

    Small ones are enlarged a whole number of times, so that each of their pixels is as large as the next.
    """
    images = images.detach().float().cpu().expand(-1, 3, -1, -1)
    times = width / images.shape[3]
    if times < 2 / 3:
        size = max(1, round(images.shape[2] * times)), round(width)
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    whole = max(1, round(times))
    images = images.repeat_interleave(whole, 2).repeat_interleave(whole, 3)
    return (255 * images.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()


ATTENTION = "Attention, on one scale: red where it is even, black at 1/8 of that, pale yellow at 8 times that."
"""what :func:`attended` shows, for the foot of a page"""


def attended(pixels: np.ndarray, shares: Tensor, opacity: float = 0.6) -> np.ndarray:
    """Pixels (H, W, 3) under the shares (h, w) of attention that each cell has, which sum to 1: see ATTENTION."""
    ratios = shares.detach().float().cpu() * shares.numel()  # 1 everywhere if attention is even
    cells = (ratios.clamp_min(1e-6).log2() / 6 + 0.5).clamp(0, 1).numpy()
    colors = Image.fromarray(_enlarged(colormaps["inferno"](cells)[..., :3], 1, 1))
    picture = Image.fromarray(pixels)
    return np.asarray(Image.blend(picture, colors.resize(picture.size, Image.Resampling.NEAREST), opacity))


MOST_NAMED = 100
"""classes whose names stand at the sides of a matrix"""


def shortened(name: str, most: int = 24) -> str:
    """A name that is not longer than so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


class Captioned(NamedTuple):
    """A picture with words above and below it."""

    pixels: np.ndarray
    """(h, w, 3) bytes"""
    above: str = ""
    below: str = ""
    color: str = "black"
    """of what stands below, in bold letters"""


def captioned_page(cells: Sequence[Captioned | None], columns: int, framed: bool = True, note: str = "") -> Image.Image:
    """Pictures of one size, row by row; None leaves a place empty; a note explains them at the foot of the page."""
    plain, bold = font(8), font(8, "Sans-Bold")
    given = [cell for cell in cells if cell is not None]
    height, width = given[0].pixels.shape[:2]
    widest = max(width, *(max(width_of(cell.above, plain), width_of(cell.below, bold)) for cell in given))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    above = [max((height_of(cell.above, plain) for cell in row if cell), default=0) for row in rows]
    below = [max((height_of(cell.below, bold) for cell in row if cell), default=0) for row in rows]
    step = widest + MARGIN
    total = sum(above) + sum(below) + len(rows) * (height + MARGIN + 6)
    wide = MARGIN + columns * step
    note = "\n".join(textwrap.wrap(note, max(20, wide // round(plain.getlength("n")))))
    page = Image.new("RGB", (wide, MARGIN + total + height_of(note, plain)), "white")
    write(page, (MARGIN, MARGIN + total - MARGIN // 2), note, plain)
    top = MARGIN
    for row, over, under in zip(rows, above, below, strict=True):
        picture_top = top + over + 2
        for column, cell in enumerate(row):
            if cell is None:
                continue
            left = MARGIN + column * step + (widest - width) // 2
            center = left + width // 2
            write(page, (center, top + over - height_of(cell.above, plain)), cell.above, plain, align="center")
            page.paste(Image.fromarray(cell.pixels), (left, picture_top))
            if framed:  # the ground of an image may be as white as the page
                box = (left - 1, picture_top - 1, left + width, picture_top + height)
                ImageDraw.Draw(page).rectangle(box, outline="gray")
            write(page, (center, picture_top + height + 2), cell.below, bold, cell.color, "center")
        top = picture_top + height + under + MARGIN + 4
    return page


def text_page(columns: Mapping[str, str], points: float = 8) -> Image.Image:
    """Texts in a typewriter's letters beside each other, each below its title."""
    letters, heading = font(points, "SansMono"), font(10)
    widths = [max(width_of(text, letters), width_of(title, heading)) for title, text in columns.items()]
    highest = max(height_of(text, letters) for text in columns.values())
    top = MARGIN + line_height(heading) + MARGIN
    page = Image.new("RGB", (sum(widths) + (len(widths) + 1) * 2 * MARGIN, top + highest + MARGIN), "white")
    left = 2 * MARGIN
    for (title, text), width in zip(columns.items(), widths, strict=True):
        write(page, (left, MARGIN), title, heading)
        write(page, (left, top), text, letters)
        left += width + 2 * MARGIN
    return page


def shaded_text_page(
    lines: Sequence[str], values: np.ndarray, colors: str, low: float, high: float, title: str, unit: str
) -> Image.Image:
    """Lines of text in a typewriter's letters, each character on the color of its value (rows, columns).

    Args:
        colors: the name of a color map, from ``low`` to ``high``; NaN has none.
        unit: of the values, beside the scale.
    """
    letters, small, heading = font(9.5, "SansMono"), font(8), font(10)
    width, height = round(letters.getlength("M")), line_height(letters) + 2
    ink = Image.new("L", (values.shape[1] * width, values.shape[0] * height))
    for number, line in enumerate(lines):
        for faint, fill in ((False, 255), (True, 110)):
            shown = "".join(char if (char in MARKS) == faint and is_in(char, letters) else " " for char in line)
            ImageDraw.Draw(ink).text((0, number * height + 1), shown, fill=fill, font=letters)
        for column, char in enumerate(line):
            if not is_in(char, letters):  # in a cell of its own, since other fonts are not as wide
                write(ink, (column * width, number * height + 1), char, letters, color=255)
    shades = colormaps[colors]((values - low) / (high - low))[..., :3]
    shades[np.isnan(values)] = 1.0
    paper = Image.fromarray(_enlarged(shades, height, width))
    dark = shades @ (0.299, 0.587, 0.114) < 0.5  # there, black letters would be hard to read
    text = Image.fromarray(_enlarged(np.where(dark, 1.0, 0.0), height, width)).convert("RGB")
    paper.paste(text, mask=ink)

    tall = max(paper.height, 6 * line_height(small))  # enough for the numbers beside it
    bar = Image.fromarray(_enlarged(colormaps[colors](np.linspace(1, 0, tall))[:, None, :3], 1, 14))
    marks = [f"{mark:g}" for mark in np.linspace(high, low, 5)]
    left, top = MARGIN, 2 * MARGIN + line_height(heading)
    right = left + paper.width + 2 * MARGIN
    beside = right + bar.width + 4 + max(width_of(mark, small) for mark in marks)
    bottom = line_height(small) // 2 + MARGIN
    page = Image.new("RGB", (beside + line_height(small) + MARGIN, top + bar.height + bottom), "white")
    page.paste(paper, (left, top))
    page.paste(bar, (right, top))
    write(page, (left, MARGIN), title, heading)
    for number, mark in enumerate(marks):
        middle = top + number * (bar.height - 1) / (len(marks) - 1)
        write(page, (right + bar.width + 4, middle - line_height(small) / 2), mark, small)
    middle = top + (bar.height - width_of(unit, small)) // 2
    write_upwards(page, (beside + line_height(small) // 2, middle), unit, small)
    return page


def _enlarged(colors: np.ndarray, height: int, width: int) -> np.ndarray:
    """Colors (h, w, …) in 0..1 as bytes, each repeated over ``height`` × ``width`` pixels."""
    return (255 * colors).round().astype(np.uint8).repeat(height, 0).repeat(width, 1)


def matrix_page(shares: np.ndarray, names: Sequence[str], title: str, across: str, down: str) -> Image.Image:
    """Shares (K, K) in 0..1 as shades of blue; where there is room, with numbers in percent.

    Up to :data:`MOST_NAMED` classes have their names at the sides; that those of more have none, the title says.

    Args:
        across, down: what columns and rows are.
    """
    letters, small = font(8), font(6)
    named = len(shares) <= MOST_NAMED
    side = max(line_height(letters) if named else 1, min(26, 560 // len(shares)))
    names = [shortened(name) for name in names]
    title = title if named else f"{title}; {len(shares)} classes, too many for their names"
    beside = max((width_of(name, letters) for name in names), default=0) if named else 0
    left, top = MARGIN + line_height(letters) + MARGIN + beside + 4, 2 * MARGIN + line_height(letters)
    whole = side * len(shares)
    size = (
        max(left + whole, left + width_of(title, letters)) + MARGIN,
        top + whole + beside + 2 * line_height(letters),
    )
    page = Image.new("RGB", size, "white")
    page.paste(Image.fromarray(_enlarged(colormaps["Blues"](shares)[..., :3], side, side)), (left, top))
    ImageDraw.Draw(page).rectangle((left - 1, top - 1, left + whole, top + whole), outline="gray")
    write(page, (left, MARGIN), title, letters)
    write(page, (left + whole / 2, top + whole + beside + 8), across, letters, align="center")
    write_upwards(page, (MARGIN + line_height(letters) // 2, top + whole // 2), down, letters)
    for i, name in enumerate(names if named else ()):
        middle = i * side + side // 2
        write(page, (left - 4, top + middle - line_height(letters) / 2), name, letters, align="right")
        write_upwards(page, (left + middle, top + whole + 4), name, letters)
    for i, j in np.argwhere(shares >= 0.005) if side > line_height(letters) else ():
        center, middle = left + j * side + side / 2, top + i * side + side / 2
        color = "white" if shares[i, j] > 0.6 else "black"
        write(page, (center, middle - line_height(small) / 2), f"{100 * shares[i, j]:.0f}", small, color, "center")
    return page


def lines_pictures(name: str, title: str, text: str) -> dict[str, Picture]:
    """Lines as a picture, and under the same name as text."""
    return {name: text_page({title: text}), f"{name}.txt": f"{text}\n"}


def joined(pages: Sequence[Image.Image], down: bool = False) -> Image.Image:
    """Pages from left to right, or from the top down."""
    widths, heights = [page.width for page in pages], [page.height for page in pages]
    size = (max(widths), sum(heights)) if down else (sum(widths), max(heights))
    whole, place = Image.new("RGB", size, "white"), 0
    for page in pages:
        whole.paste(page, (0, place) if down else (place, 0))
        place += page.height if down else page.width
    return whole
