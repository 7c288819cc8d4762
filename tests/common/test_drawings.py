"""Drawings: what stays of a line that is simplified, pen moves and lines, one size for all."""

from __future__ import annotations

import numpy as np
import pytest

from common.drawings import Preparation, simplified, to_lines, to_stroke_3


def distance_to(point: np.ndarray, line: np.ndarray) -> float:
    """From a point to the nearest place of a polyline."""
    a, chord = line[:-1], np.diff(line, axis=0)
    lengths = (chord**2).sum(1)
    along = (((point - a) * chord).sum(1) / np.where(lengths, lengths, 1)).clip(0, 1)
    return float(np.hypot(*(a + along[:, None] * chord - point).T).min())


def test_simplified_lines_keep_their_ends_and_stay_near() -> None:
    t = np.linspace(0, 2 * np.pi, 400)
    wave = np.column_stack([30 * t, 40 * np.sin(3 * t)])
    circle = 50 * np.column_stack([np.cos(t), np.sin(t)])
    circle[-1] = circle[0]
    counts = []
    for line in (wave, circle):
        for epsilon in (0.1, 1.0, 10.0):
            found = simplified(line, epsilon)
            counts.append(len(found))
            assert np.array_equal(found[[0, -1]], line[[0, -1]])
            assert {tuple(p) for p in found} <= {tuple(p) for p in line}
            assert max(distance_to(p, found) for p in line) <= epsilon
    assert counts == sorted(counts[:3], reverse=True) + sorted(counts[3:], reverse=True)
    assert counts[2] <= 9
    assert counts[5] in (5, 6, 7, 8, 9)
    straight = np.column_stack([np.arange(50), 2 * np.arange(50)]).astype(float)
    assert simplified(straight, 0.01).tolist() == [[0, 0], [49, 98]]
    spike = np.array([[0, 0], [1, 0], [2, 5], [3, 0], [4, 0]], float)
    assert simplified(spike, 0.9).tolist() == spike.tolist()
    assert simplified(spike, 1).tolist() == [[0, 0], [2, 5], [4, 0]]
    assert simplified(spike, 6).tolist() == [[0, 0], [4, 0]]


def test_lines_as_stroke_3() -> None:
    lines = [np.array([[10.0, 20.0], [11.0, 22.0]]), np.array([[5.0, 5.0], [6.0, 5.0], [6.0, 4.0]])]
    assert to_stroke_3(lines).tolist() == [[0, 0, 0], [1, 2, 1], [-6, -17, 0], [1, 0, 0], [0, -1, 1]]
    points = np.array([[3, 4, 0], [1, 0, 1], [0, 5, 1], [2, 2, 0]], np.int16)
    assert [line.tolist() for line in to_lines(points)] == [[[3, 4], [4, 4]], [[4, 9]], [[6, 11]]]
    assert np.array_equal(to_stroke_3(to_lines(points))[1:], np.vstack([points[1:-1], [2, 2, 1]]))


def test_a_prepared_drawing_has_one_size_and_the_bends_that_can_be_seen_at_it() -> None:
    lines = [np.array([[0, 0], [500, 3], [1000, 0], [1000, 400]]), np.array([[7, 7]])]
    expected = [[0, 0, 0], [255, 0, 0], [0, 102, 1], [-255 + 7 * 0.255, -102 + 7 * 0.255, 1]]
    for unit in (1.0, 1e6, 1e-6):
        assert np.allclose(Preparation()([line * unit for line in lines]), expected, atol=1e-4)
    assert len(Preparation(epsilon=0)(lines)) == 5
    assert Preparation(None, 0)(lines)[1].tolist() == [500, 3, 0]
    assert Preparation()([np.array([[5, 5]])]).tolist() == [[0, 0, 1]], "a dot has no size"
    for options, message in (
        ({"size": 0}, "size=0: expected more than 0"),
        ({"epsilon": -1}, "epsilon=-1: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            Preparation(**options)
