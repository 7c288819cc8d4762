"""SVG: shapes and transforms against where their points are by geometry; what is no line is counted."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from common import svg
from common.drawings import extent_of
from common.svg import FLATNESS, svg_lines


def lines_in(inside: str, root: str = "") -> list[np.ndarray]:
    return svg_lines(f'<svg xmlns="http://www.w3.org/2000/svg" {root}>{inside}</svg>'.encode())[0]


def bezier(t: np.ndarray, *points: tuple[float, float]) -> np.ndarray:
    """The curve by Bernstein's polynomials."""
    weights = {3: [(1 - t) ** 2, 2 * t * (1 - t), t**2]}.get(
        len(points), [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    )
    return np.asarray(np.stack(weights, 1) @ np.array(points))


def distance(points: np.ndarray, line: np.ndarray) -> float:
    """The largest of points from a polyline."""
    a, b = line[:-1], line[1:]
    chords = b - a
    along = ((points[:, None] - a) * chords).sum(2) / np.maximum((chords**2).sum(1), 1e-12)
    nearest = a + along.clip(0, 1)[..., None] * chords
    return float(np.hypot(*(nearest - points[:, None]).transpose(2, 0, 1)).min(1).max())


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        ("M1 2 L3 4 5 0", [[[1, 2], [3, 4], [5, 0]]]),
        ("m1 2 2 2 2-4", [[[1, 2], [3, 4], [5, 0]]]),
        ("M1,2H5v3h-1V0", [[[1, 2], [5, 2], [5, 5], [4, 5], [4, 0]]]),
        ("M0 0 4 0 4 3 z", [[[0, 0], [4, 0], [4, 3], [0, 0]]]),
        ("M0 0 4 0 4 3 0 0 z", [[[0, 0], [4, 0], [4, 3], [0, 0]]]),
        ("M1 1h2zl0 5m1 1h1", [[[1, 1], [3, 1], [1, 1]], [[1, 1], [1, 6]], [[2, 7], [3, 7]]]),
        ("M9 9 M1 1 2 2 M8 8", [[[1, 1], [2, 2]]]),
        ("M7 8L7 8", [[[7, 8]]]),
        ("none", []),
    ],
)
def test_straight_paths(d: str, expected: list[list[list[float]]]) -> None:
    assert [line.tolist() for line in lines_in(f'<path d="{d}"/>')] == expected


def test_curves_are_near_the_true_ones() -> None:
    t = np.linspace(0, 1, 500)
    cases = [
        ("M0 0 C0 60 90 60 90 0", bezier(t, (0, 0), (0, 60), (90, 60), (90, 0))),
        ("M0 0 q50 90 100 0", bezier(t, (0, 0), (50, 90), (100, 0))),
        ("M0 0 Q10 20 20 0 T40 0", bezier(t, (20, 0), (30, -20), (40, 0))),
        ("M0 0 c0 9 9 9 9 0 s9-9 9 0", bezier(t, (9, 0), (9, -9), (18, -9), (18, 0))),
        ("M0 0 A50 50 0 0 1 100 0", np.column_stack([50 - 50 * np.cos(np.pi * t), -50 * np.sin(np.pi * t)])),
        ("M0 0 a1 1 0 00100 0", np.column_stack([50 - 50 * np.cos(np.pi * t), 50 * np.sin(np.pi * t)])),
        ("M20 0 A20 10 0 1 0 0 10", np.column_stack([20 * np.cos(1.5 * np.pi * t), -10 * np.sin(1.5 * np.pi * t)])),
    ]
    for d, curve in cases:
        (line,) = lines_in(f'<path d="{d}"/>')
        assert distance(curve, line) <= FLATNESS * extent_of([line]), d
        assert len(line) < 60, d
        assert np.allclose(line[-1], curve[-1]), d


def test_shapes_are_their_outlines() -> None:
    (square,) = lines_in('<rect x="1" y="2" width="3" height="4"/>')
    assert square.tolist() == [[1, 2], [4, 2], [4, 6], [1, 6], [1, 2]]
    (circle,) = lines_in('<circle cx="5" cy="6" r="2"/>')
    assert np.allclose(np.hypot(*(circle - [5, 6]).T), 2)
    assert np.allclose(circle[0], circle[-1])
    (ellipse,) = lines_in('<ellipse cx="1" rx="3" ry="2"/>')
    assert np.allclose((((ellipse - [1, 0]) / [3, 2]) ** 2).sum(1), 1)
    (rounded,) = lines_in('<rect width="10" height="6" rx="2"/>')
    assert np.allclose([rounded.min(0), rounded.max(0)], [[0, 0], [10, 6]])
    assert np.hypot(*rounded.T).min() == pytest.approx(2 * (2**0.5 - 1), abs=0.02), "the corner is cut round"
    assert lines_in('<line x1="1" y2="1cm"/>')[0].tolist() == [[1, 0], [0, 96 / 2.54]]
    assert lines_in('<polyline points="1,2 3,4,5 6"/>')[0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert lines_in('<polygon points="1,2 3,4 5 6"/>')[0].tolist() == [[1, 2], [3, 4], [5, 6], [1, 2]]
    assert lines_in('<circle r="0"/><rect width="0" height="3"/><polyline points=""/>') == []


def test_transforms_are_those_of_all_groups_around() -> None:
    inside = '<path d="M1 0 L2 0"/>'
    for transforms, expected in (
        (["translate(10)"], [[11, 0], [12, 0]]),
        (["translate(10,20) scale(2)"], [[12, 20], [14, 20]]),
        (["scale(2)", "translate(10 20)"], [[22, 40], [24, 40]]),
        (["rotate(90)"], [[0, 1], [0, 2]]),
        (["rotate(90 1 0)"], [[1, 0], [1, 1]]),
        (["matrix(0 1 -1 0 5 6)"], [[5, 7], [5, 8]]),
        (["skewY(45)", "scale(3 9)"], [[3, 3], [6, 6]]),
    ):
        text = inside
        for transform in reversed(transforms):
            text = f'<g transform="{transform}">{text}</g>'
        (line,) = lines_in(text)
        assert np.allclose(line, expected), transforms
    (used,) = lines_in(f'<defs><g id="a" transform="scale(2)">{inside}</g></defs><use href="#a" x="5" y="6"/>')
    assert used.tolist() == [[7, 6], [9, 6]]
    (circle,) = lines_in('<g transform="scale(100 50)"><circle r="1"/></g>')
    assert np.allclose(((circle / [100, 50]) ** 2).sum(1), 1)
    assert len(circle) > 30, "as many points as its size in the drawing asks for"


def test_what_is_no_line_is_counted_and_what_is_hidden_is_not_drawn() -> None:
    lines, left_out = svg_lines(
        b"""<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"><title>t</title>
        <!-- a note --><defs><path d="M0 0 1 1"/></defs><text x="1">a</text><text>b</text><image/>
        <rect width="100%" height="100%"/><path d="M0 0 9 9" style="display: none"/>
        <g visibility="hidden"><line x2="1"/></g>
        <path d="M3 3 4 4"/><layer xmlns="http://example.org"/></svg>"""
    )
    assert [line.tolist() for line in lines] == [[[3, 3], [4, 4]]]
    assert left_out == {"text": 2, "image": 1, "rect with lengths in percent": 1}


def test_what_cannot_be_seen_is_counted() -> None:
    square = 'd="M0 0h24v24H0z"'
    for inside in (
        f'<path {square} fill="none"/>',
        f'<g fill="none"><path {square}/></g>',
        f'<path {square} style="fill: none; stroke-width: 2"/>',
        f'<path {square} style="opacity:0" stroke="red"/>',
        f'<g opacity="0.0"><path {square} stroke="red" opacity="1"/></g>',
        f'<path {square} fill="none" stroke="red" stroke-opacity="0"/>',
        f'<path {square} fill-opacity="0%"/>',
    ):
        lines, left_out = svg_lines(f'<svg>{inside}<path d="M3 3 4 4"/></svg>'.encode())
        assert [line.tolist() for line in lines] == [[[3, 3], [4, 4]]], inside
        assert left_out == {"path without fill and stroke": 1}, inside
    for inside in (
        f'<g fill="none" stroke="currentColor"><path {square}/></g>',
        f'<path {square} fill="none" style="stroke:#000"/>',
        f'<g stroke="red"><path {square} fill="none" stroke="inherit" opacity=".05"/></g>',
        f'<style>.a {{ stroke: red }}</style><path class="a" fill="none" {square}/>',
        f'<g fill="none"><path {square} fill="red"/></g>',
    ):
        assert len(lines_in(inside)) == 1, inside


def test_a_transform_in_a_style_is_applied_or_counted() -> None:
    for style, expected in (
        ("transform: translate(10px, 20px) scale(2)", [[12, 20], [14, 20]]),
        ("fill:red;transform:rotate(90deg)", [[0, 1], [0, 2]]),
        ("transform: none", [[1, 0], [2, 0]]),
    ):
        (line,) = lines_in(f'<path d="M1 0 L2 0" transform="scale(9)" style="{style}"/>')
        assert np.allclose(line, expected), style
    for style in ("transform: rotate(1turn)", "transform: translate(5%)", "transform:scale(2);transform-origin:center"):
        lines, left_out = svg_lines(f'<svg><g style="{style}"><path d="M1 0 L2 0"/></g></svg>'.encode())
        assert not lines
        assert left_out == {"g with a transform of CSS": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<svg><path", "no SVG: "),
        ("<html/>", "no SVG: its root is 'html', expected 'svg'"),
        ('<svg><path d="M1 1 L2"/></svg>', "a path is broken: "),
        ('<svg><g transform="spin(3)"/></svg>', "transform='spin.3.': expected matrix, translate"),
        ('<svg><use href="#b"/></svg>', "a use of 'b', which is not there"),
        ('<svg><g id="a"><use href="#a"/></g></svg>', "a use of 'a', which uses itself"),
        ('<svg><rect width="wide" height="1"/></svg>', "rect: width='wide': expected a length"),
    ],
)
def test_broken_files_are_one_line(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        svg_lines(content.encode())
    assert "\n" not in str(error.value)


def test_few_elements_cannot_stand_for_endlessly_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "MOST_ELEMENTS", 1000)
    groups = "".join(f'<g id="g{i}">' + f'<use href="#g{i + 1}"/>' * 10 + "</g>" for i in range(9))
    with pytest.raises(ValueError, match="more than 1000 elements"):
        lines_in(f'{groups}<g id="g9"/>')


def test_without_the_library_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "svg.path", None)
    with pytest.raises(ValueError, match=r"svg.path, which is not installed: pip install 'lit-baselines\[svg\]'"):
        lines_in('<path d="M1 1 2 2"/>')
