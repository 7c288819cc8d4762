"""Pages of small pictures and words: where what stands, and in which color."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import Tensor

from lit_models.figures.canvas import (
    Captioned,
    attended,
    captioned_page,
    font,
    joined,
    line_height,
    lines_pictures,
    matrix_page,
    pixels_of,
    shaded_text_page,
    text_page,
    width_of,
)
from lit_models.figures.char_lm import COLUMNS, ROWS, laid_out
from lit_models.figures.grids import map_figure, rows_page

RED, GREEN = (255, 0, 0), (0, 128, 0)


def plain(color: tuple[int, int, int], side: int = 20) -> np.ndarray:
    return np.full((side, side, 3), color, np.uint8)


def count(page: object, color: tuple[int, int, int]) -> int:
    return int((np.asarray(page) == color).all(-1).sum())


@pytest.mark.parametrize(("side", "shown"), [(8, 80), (28, 84), (64, 64), (100, 100), (200, 80)])
def test_small_images_are_enlarged_whole_times_and_large_ones_reduced(side: int, shown: int) -> None:
    image = torch.rand(2, 1, side, side)
    pixels = pixels_of(image, 80)
    assert pixels.shape == (2, shown, shown, 3)
    if shown >= side:
        times = shown // side
        expected = (255 * image[:, 0]).round().byte()
        assert torch.equal(torch.from_numpy(pixels[:, ::times, ::times, 0].copy()), expected)
        assert (pixels[:, times - 1 :: times] == pixels[:, ::times]).all()
    assert pixels_of(image - 5, 80).max() == 0
    assert pixels_of(image + 5, 80).min() == 255


def test_a_typewriters_letters_stand_in_columns() -> None:
    letters = font(9.5, "SansMono")
    assert width_of("iiii\nWWWW", letters) == 4 * width_of("m", letters) == width_of("↵→é\ufffd", letters)
    assert font(8) is font(8)


def test_captions_stand_by_their_pictures_and_places_can_be_empty() -> None:
    cells = [Captioned(plain(RED), "above\nin two lines", "below", "#1a7f37"), None, Captioned(plain(GREEN))]
    page = captioned_page(cells, columns=2)
    assert count(page, RED) == count(page, GREEN) == 400
    red, green = (np.argwhere((np.asarray(page) == color).all(-1)).min(0) for color in (RED, GREEN))
    assert red[0] < green[0], "a row further down"
    assert red[1] == green[1], "in the first column"
    assert count(page, (26, 127, 55)) > 0, "what stands below has its color"
    assert captioned_page(cells, 2, framed=False).size == page.size
    assert captioned_page([cells[0]], 1).width > width_of("in two lines", font(8)), "words may be wider than pictures"


def test_a_map_lies_over_the_pixels() -> None:
    over = attended(plain((255, 255, 255)), torch.tensor([[0.0, 1.0]]), 0.5)
    assert over.shape == (20, 20, 3)
    left, right = over[:, :10].reshape(-1, 3), over[:, 10:].reshape(-1, 3)
    assert (left == left[0]).all()
    assert (right == right[0]).all()
    assert left[0].sum() < right[0].sum()


def test_attention_is_drawn_on_one_scale() -> None:
    """A hair off an even share looks even, and the same share looks the same beside any other."""
    white = plain((255, 255, 255))
    even = attended(white, torch.full((2, 2), 0.25))
    almost = attended(white, torch.tensor([[0.2501, 0.2499], [0.25, 0.25]]))
    assert np.abs(even.astype(int) - almost).max() <= 2
    decided = attended(white, torch.tensor([[0.25, 0.7], [0.04, 0.01]]))
    assert (decided[0, 0] == even[0, 0]).all()
    brightness = decided[[0, 0, -1, -1], [-1, 0, 0, -1]].sum(1).tolist()
    assert brightness == sorted(brightness, reverse=True)
    assert np.abs(decided.astype(int) - even).max() > 50


def test_lines_are_a_picture_and_a_text() -> None:
    made = lines_pictures("samples", "a title", "$one\n\n  two$")
    assert made["samples.txt"] == "$one\n\n  two$\n"
    assert set(made) == {"samples", "samples.txt"}
    assert text_page({"a": "x"}).width < text_page({"a": "x", "b": "x"}).width
    assert text_page({"a": "x"}).height < text_page({"a": "x\ny"}).height


def test_letters_are_light_on_dark_colors() -> None:
    values = np.array([[0.0, 6.0, np.nan]])
    page = np.asarray(shaded_text_page(["MM"], values, "Reds", 0, 6, "title", "nats"))
    width = width_of("M", font(9.5, "SansMono"))
    dark = np.argwhere((page == (103, 0, 13)).all(-1))  # the end of this color map
    left, top = dark[:, 1].min(), dark[:, 0].min()
    bright, dark_cell, none = (page[top : top + 14, left + i * width : left + (i + 1) * width] for i in (-1, 0, 1))
    assert dark_cell[..., 1].max() > 200, "white letters"
    assert dark_cell[..., 0].min() > 90, "no black"
    assert bright.sum(-1).min() < 100, "black letters where it is bright"
    assert (none == 255).all(), "no value, no color"


def test_text_is_laid_out_in_lines_of_limited_length() -> None:
    text = "ab\n" + "c" * (COLUMNS + 1) + "\td\n"
    lines, values = laid_out(text, np.arange(len(text), dtype=float))
    assert lines == ["ab↵", "c" * COLUMNS, "c→d↵"]
    assert values.shape == (3, COLUMNS)
    assert values[0, :3].tolist() == [0, 1, 2]
    assert values[2, 3] == len(text) - 1
    assert int(np.isfinite(values).sum()) == len(text)
    many, grid = laid_out("x\n" * 100, np.zeros(200))
    assert many == ["x↵"] * ROWS
    assert grid.shape == (ROWS, COLUMNS)
    assert laid_out("", np.zeros(0))[0] == [""]


@pytest.mark.parametrize("classes", [2, 10, 100, 101, 1000])
def test_confusions_of_few_and_of_many_classes(classes: int) -> None:
    names = [f"class {i}" for i in range(classes)]
    page = matrix_page(np.eye(classes), names, "title", "given", "true")
    assert max(page.size) < 1700
    dark = count(page, (8, 48, 107))  # the end of this color map: the diagonal, less the numbers on it
    least = line_height(font(8)) if classes <= 100 else 1  # a name stands beside its own row
    side = max(least, min(26, 560 // classes))
    assert 0.5 * classes * side**2 < dark <= classes * side**2
    bare = matrix_page(np.eye(classes), [""] * classes, "title", "given", "true")
    beside = [page.width - bare.width, page.height - bare.height]
    assert beside == ([width_of(names[-1], font(8))] * 2 if classes <= 100 else [0, 0])
    long = matrix_page(np.eye(2), ["x" * 500, "y"], "title", "given", "true")
    assert max(long.size) < 500


def test_rows_of_images_with_and_without_words() -> None:
    rows = [torch.zeros(3, 1, 8, 8), torch.zeros(2, 1, 8, 8)]
    bare, labeled, titled = rows_page(rows), rows_page(rows, ["a", "a longer\nlabel"]), rows_page(rows, title="title")
    assert count(bare, (0, 0, 0)) == 5 * 80 * 80
    assert labeled.height == bare.height
    assert labeled.width > bare.width
    assert titled.height > bare.height
    assert titled.width == bare.width
    assert count(rows_page(rows, between=0.5), (128, 128, 128)) > 80 * 80, "also where a row has fewer images"


def test_pages_beside_and_below_each_other() -> None:
    pages = [rows_page([torch.zeros(n, 1, 8, 8)]) for n in (1, 2)]
    widths, heights = [page.width for page in pages], [page.height for page in pages]
    assert joined(pages).size == (sum(widths), max(heights))
    assert joined(pages, down=True).size == (max(widths), sum(heights))


@pytest.mark.parametrize(("count", "titles"), [(1, ["PCA"]), (8, ["PCA"]), (40, ["PCA", "t-SNE"])])
def test_a_map_needs_some_points(count: int, titles: list[str]) -> None:
    axes = map_figure(torch.rand(count, 5), torch.arange(count) % 3).axes
    assert [axis.get_title() for axis in axes if axis.get_title()] == titles


def legend_of(labels: Tensor, names: Sequence[str] = (), **options: Any) -> tuple[list[str], list[str], list[str]]:
    """What the legend of a map says, its colors, and those of the points."""
    figure = map_figure(torch.rand(len(labels), 5), labels, names, **options)
    figure.savefig(io.BytesIO())  # draws it
    points = [to_hex(color) for color in figure.axes[0].collections[0].get_facecolors()]  # type: ignore[attr-defined]
    if not figure.legends:
        return [], [], points
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    return texts, [to_hex(mark.get_color()) for mark in figure.legends[0].get_lines()], points


def test_a_map_says_which_color_is_which_class() -> None:
    labels = torch.tensor([2, 0, 2, 5, -1])
    names = ["ant", "bee", "cat", "dog", "eel", "a very long name that no page has room for"]
    texts, marks, points = legend_of(labels, names)
    assert texts == ["ant", "cat", "a very long name that n…", "no class"]
    assert points == [marks[1], marks[0], marks[1], marks[2], marks[3]]
    assert len(set(marks)) == 4
    assert legend_of(labels)[0] == ["0", "2", "5", "no class"]
    assert legend_of(torch.full((5,), -1))[:2] == ([], [])
    assert len(set(legend_of(torch.full((5,), -1))[2])) == 1
    texts, marks, points = legend_of(torch.arange(20))
    assert len(set(marks)) == 20 == len(set(points))


def test_a_map_of_many_classes_names_the_most_frequent() -> None:
    labels = torch.cat([torch.arange(100), torch.arange(70, 88)])
    texts, marks, points = legend_of(labels, [f"class {i}" for i in range(100)])
    assert texts == [*(f"class {i}" for i in range(70, 88)), "82 other classes"]
    assert len(set(marks)) == 19
    assert [points[i] for i in (70, 87)] == [marks[0], marks[17]]
    assert {points[i] for i in (0, 69, 88)} == {marks[-1]}


def test_a_map_by_a_measure_has_a_scale() -> None:
    figure = map_figure(torch.rand(5, 3), torch.tensor([3, 9, 4, 20, 7]), scale="characters")
    assert figure.axes[-1].get_ylabel() == "characters"
    assert not figure.legends
