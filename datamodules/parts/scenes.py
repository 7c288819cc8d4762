"""Scenes of a few colored objects: drawing them, rendering them, and checking sentences about them.

The objects of a scene are numbers (K, A + 2): the value of each attribute, then row and column of the center in pixels;
all -1 if there is no object. :mod:`datamodules.parts.scene_grammar` defines what sentences mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.parts.scene_grammar import ATTRIBUTES, Mention, Relation, parse

__all__ = ["ATTRIBUTES", "Judgment", "check", "draw_scenes", "render", "stated_attributes"]

COLORS = {
    "red": (230, 25, 25),
    "green": (25, 170, 50),
    "blue": (30, 60, 230),
    "yellow": (245, 215, 20),
    "purple": (150, 40, 180),
    "gray": (128, 128, 128),
}
IMAGE_SIZE = 64
GROUND = 255
RADII = (4, 8)  # of small and large objects: half a side, in pixels, the center left out
MARGIN = 2  # pixels by which a center keeps away from the border of two places
KINDS = 4  # see kind_of
BETWEEN = -0.5  # an object is between two others if it sees them at an angle whose cosine is at most this: 120 degrees


class Judgment(NamedTuple):
    """How a sentence fits a scene."""

    stated: int
    """number of stated facts: that an object or an exact number of them exist; places; relations of two or three"""
    true: int
    """number of stated facts that are true"""
    covered: int
    """number of values of the scene's objects that it states correctly"""
    coverable: int
    """number of values of the scene's objects: attributes × objects"""
    parsed: bool
    """whether the sentence matches the grammar; if not, it states nothing"""

    @property
    def truthful(self) -> bool:
        return self.parsed and self.stated > 0 and self.true == self.stated


def place_of(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    """The place of centers in an image of ``size`` pixels: the middle is its central ninth, the rest are quadrants."""
    middle = (np.abs(rows - (size - 1) / 2) < size / 6) & (np.abs(columns - (size - 1) / 2) < size / 6)
    return np.where(middle, 4, 2 * (rows > (size - 1) / 2) + (columns > (size - 1) / 2))


def draw_scenes(
    count: int,
    rng: np.random.Generator,
    min_objects: int = 1,
    max_objects: int = 4,
    held_out: Sequence[tuple[int, int]] = (),
    kinds: Sequence[int] = range(KINDS),
) -> np.ndarray:
    """Scenes (count, max_objects, 6) int64 whose objects do not touch and lie clearly in their places.

    The number of objects is uniform, and so are their attributes except the place, but no object has a pair of shape
    and color in ``held_out``. Objects are in no particular order. All scenes have the given :func:`kind_of`.
    """
    shapes, colors, sizes, _ = (len(values) for values in ATTRIBUTES.values())
    pairs = [(s, c) for s in range(shapes) for c in range(colors) if (s, c) not in set(held_out)]
    numbers = rng.integers(min_objects, max_objects + 1, count)
    absent = np.arange(max_objects) >= numbers[:, None]
    looks = np.array(pairs)[rng.integers(0, len(pairs), (count, max_objects))]
    size = rng.integers(0, sizes, (count, max_objects))
    radius = np.array(RADII)[size]
    centers = np.zeros((count, max_objects, 2), np.int64)
    pending = np.arange(count)
    while len(pending):
        reach, none = radius[pending], absent[pending]
        drawn = rng.integers(reach[..., None] + 1, IMAGE_SIZE - 1 - reach[..., None], (*reach.shape, 2))
        gaps = np.abs(drawn[:, :, None] - drawn[:, None]).max(-1) - reach[:, :, None] - reach[:, None]
        ignored = none[:, :, None] | none[:, None] | np.eye(max_objects, dtype=bool)
        good = ((gaps > 2) | ignored).all((1, 2)) & (_is_clear(drawn) | none).all(1)
        good &= np.isin(kind_of(looks[pending], size[pending], drawn, ~none), kinds)
        centers[pending[good]] = drawn[good]
        pending = pending[~good]
    place = place_of(centers[..., 0], centers[..., 1], IMAGE_SIZE)
    scenes = np.concatenate([looks, size[..., None], place[..., None], centers], 2)
    scenes[absent] = -1
    return scenes


def kind_of(looks: np.ndarray, sizes: np.ndarray, centers: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(N,): one of :data:`KINDS` numbers for each scene, which depends on all its objects.

    Parts of a data set that draw different kinds share no scene, while neither an object's look nor its place reveals
    the part.
    """
    numbers = looks @ [3, 1] + sizes + centers @ [1, 2]
    array: np.ndarray = (numbers * there).sum(1) % KINDS
    return array


def _is_clear(centers: np.ndarray) -> np.ndarray:
    """Whether centers (..., 2) stay in their place when moved by :data:`MARGIN` along either axis."""
    rows, columns = centers[..., 0], centers[..., 1]
    own = place_of(rows, columns, IMAGE_SIZE)
    moves = [(MARGIN, 0), (-MARGIN, 0), (0, MARGIN), (0, -MARGIN)]
    array: np.ndarray = np.all([place_of(rows + down, columns + right, IMAGE_SIZE) == own for down, right in moves], 0)
    return array


def render(scenes: np.ndarray, palettes: np.ndarray | None = None, scattered: np.ndarray | None = None) -> Tensor:
    """(N, 3, 64, 64) uint8: the objects of scenes (N, K, 6) on white.

    Args:
        palettes: (N, colors, 3) uint8, for scenes in other than the named colors.
        scattered: (N, 17, 17) bool, for scenes whose objects have no shape: if any pixel is set, every object is drawn
            as these pixels within its square.
    """
    images = np.full((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), GROUND, np.uint8)
    reach = max(RADII)
    offset = np.arange(-reach, reach + 1)
    stamps = np.stack([[_stamp(shape, r, offset) for r in RADII] for shape in ATTRIBUTES["shape"]])
    named = np.array(list(COLORS.values()), np.uint8)
    square = ATTRIBUTES["shape"].index("square")
    for k in range(scenes.shape[1]):
        there = np.flatnonzero(scenes[:, k, 0] >= 0)
        shape, color, size, _, row, column = scenes[there, k].T
        covered = stamps[shape, size]
        if scattered is not None:
            dots = scattered[there]
            covered = np.where(dots.max((1, 2), keepdims=True), stamps[square, size] & dots, covered)
        paint = named[color] if palettes is None else palettes[there, color]
        n, y, x = np.nonzero(covered)
        images[there[n], row[n] + y - reach, column[n] + x - reach] = paint[n]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _stamp(shape: str, radius: int, offset: np.ndarray) -> np.ndarray:
    """The pixels that a shape covers, around its center."""
    down, right = offset[:, None], offset
    if shape == "circle":
        array: np.ndarray = down**2 + right**2 <= (radius + 0.3) ** 2  # without it, single pixels stick out
        return array
    if shape == "square":
        array = (np.abs(down) <= radius) & (np.abs(right) <= radius)
        return array
    array = (np.abs(down) <= radius) & (2 * np.abs(right) <= down + radius)  # a triangle, its apex above
    return array


# Truth.


def check(
    objects: Tensor | np.ndarray, sentence: str, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES
) -> Judgment:
    """How a sentence fits a scene.

    "A" refers to some object, and each "a" in a sentence to a different one: the objects are chosen to make as much as
    possible true, and then to cover as much as possible. A number is exact. "Left of" compares the columns of the
    centers and "above" their rows; :data:`BETWEEN` defines "between".

    Args:
        objects: (K, A + 2) of the scene.
        attributes: what the first A columns are.
    """
    names = list(attributes)
    scene = [row for row in objects.tolist() if row[0] >= 0]
    coverable = len(names) * len(scene)
    statement = parse(sentence, attributes)
    if statement is None:
        return Judgment(0, 0, 0, coverable, False)
    # What each mention says, as (column, value); where one object is, is a fact of its own.
    said = [[(names.index(a), attributes[a].index(v)) for a, v in m.values.items()] for m in statement.mentions]
    place = names.index("place") if "place" in names else None
    placed = [any(column == place for column, _ in values) for values in said]
    stated = len(said) + len(statement.relations)
    stated += sum(p and m.count is None for p, m in zip(placed, statement.mentions, strict=True))

    sets = [_such(scene, values) for values in said]  # who fits all that is said
    true = sum(m.count is not None and len(who) == m.count for m, who in zip(statement.mentions, sets, strict=True))
    best = (0, 0)
    described = [_such(scene, [(c, v) for c, v in values if c != place]) for values in said]
    for chosen in _choices(statement.mentions, described, sets):
        facts = sum(len(who) for who, m in zip(chosen, statement.mentions, strict=True) if m.count is None)
        facts += sum(
            bool(who) and m.count is None and p and who[0] in fits
            for who, m, p, fits in zip(chosen, statement.mentions, placed, sets, strict=True)
        )
        facts += sum(_holds(relation, chosen, scene) for relation in statement.relations)
        covered = {
            (k, column)
            for who, values in zip(chosen, said, strict=True)
            for k in who
            for column, value in values
            if scene[k][column] == value
        }
        best = max(best, (facts, len(covered)))
    return Judgment(stated, true + best[0], best[1], coverable, True)


def _such(scene: list[list[int]], values: list[tuple[int, int]]) -> list[int]:
    """The indices of the objects that have all of these values."""
    return [k for k, row in enumerate(scene) if all(row[column] == value for column, value in values)]


def _choices(
    mentions: Sequence[Mention], described: list[list[int]], sets: list[list[int]]
) -> Iterator[list[list[int]]]:
    """All assignments of objects to mentions: at most one, and distinct, for each "a"; all such for a number."""

    def extend(chosen: list[list[int]], used: frozenset[int]) -> Iterator[list[list[int]]]:
        number = len(chosen)
        if number == len(mentions):
            yield chosen
        elif mentions[number].count is not None:
            who = sets[number] if len(sets[number]) == mentions[number].count else []
            yield from extend([*chosen, who], used)
        else:
            for k in described[number]:
                if k not in used:
                    yield from extend([*chosen, [k]], used | {k})
            yield from extend([*chosen, []], used)

    return extend([], frozenset())


def _holds(relation: Relation, chosen: list[list[int]], scene: list[list[int]]) -> bool:
    """Whether it is true of the chosen objects, and of all of them if a mention refers to several."""
    subjects, others = chosen[relation.subject], [chosen[other] for other in relation.others]
    if not subjects or not all(others):
        return False
    for k in subjects:
        if any(k in who for who in others):
            return False
        center = scene[k][-2:]
        if relation.kind == "between":
            first, second = others
            ends = [(scene[a][-2:], scene[b][-2:]) for a in first for b in second if a != b]
            if not ends or not all(lies_between(center, a, b) for a, b in ends):
                return False
        elif not all(lies(relation.kind, center, scene[other][-2:]) for other in others[0]):
            return False
    return True


def lies(kind: str, center: Sequence[int], other: Sequence[int], by: int = 1) -> bool:
    """Whether a center (row, column) is left of, right of, above or below another by at least this many pixels."""
    down, right = center[0] - other[0], center[1] - other[1]
    return {"left": -right, "right": right, "above": -down, "below": down}[kind] >= by


def lies_between(center: Sequence[int], first: Sequence[int], second: Sequence[int], cosine: float = BETWEEN) -> bool:
    """Whether a center (row, column) sees two others at an angle with at most this cosine."""
    a, b = np.subtract(first, center), np.subtract(second, center)
    return float(a @ b) <= cosine * float(np.sqrt((a @ a) * (b @ b)))


def stated_attributes(sentence: str, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES) -> dict[str, str]:
    """What a sentence says about its one object, by attribute; nothing if it cannot be read or contradicts itself."""
    statement = parse(sentence, attributes)
    found: dict[str, str] = {}
    for mention in statement.mentions if statement else []:
        if any(found.get(attribute, value) != value for attribute, value in mention.values.items()):
            return {}
        found |= mention.values
    return found
