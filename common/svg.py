"""The lines of an SVG file: its paths and basic shapes as polylines, in the order in which they are drawn."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from common.drawings import extent_of

FLATNESS = 1e-3
"""largest distance of a polyline from its curve, as a share of the drawing's longer side"""

MOST_ELEMENTS = 100_000
"""that a file may draw: a few that refer to each other could stand for any number"""

DEEPEST = 20
"""how often a ``use`` may stand for another"""

GROUPS = ("g", "a", "switch")
UNSEEN = (
    *("defs", "symbol", "clipPath", "mask", "pattern", "marker", "linearGradient", "radialGradient", "filter"),
    *("style", "script", "title", "desc", "metadata", "animate", "animateMotion", "animateTransform", "set", "view"),
)
"""what draws nothing by itself"""

PAINT = ("fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "opacity")
"""the properties that decide whether a shape can be seen"""

PIXELS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
"""how many a unit has"""

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_CSS_MAPS = "matrix|translate|scale|rotate|skewX|skewY"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class Relative(ValueError):
    """A length in percent or in letters, which is known only where the picture is shown."""


class Curve(NamedTuple):
    """A piece of a line, after its start."""

    points: np.ndarray
    """(2 to 4, 2): a Bézier curve's control points, of which two are a straight line; of an arc its center and the two
    vectors whose cosine and sine parts it is"""
    turn: tuple[float, float] | None = None
    """the angles at which an arc starts and ends"""

    def at(self, steps: int) -> np.ndarray:
        """(steps, 2): points at equal steps along the parameter, without the start."""
        t = np.arange(1, steps + 1)[:, None] / steps
        if self.turn is not None:
            center, u, v = self.points
            angle = self.turn[0] + t * (self.turn[1] - self.turn[0])
            return np.asarray(center + u * np.cos(angle) + v * np.sin(angle))
        found = np.repeat(self.points[None], steps, 0)
        while found.shape[1] > 1:  # de Casteljau
            found = (1 - t[:, None]) * found[:, :-1] + t[:, None] * found[:, 1:]
        return found[:, 0]

    def steps(self, tolerance: float) -> int:
        """How many chords keep within a tolerance: a chord over h is at most h²/8 · |second derivative| away."""
        if self.turn is not None:
            bend = float(np.linalg.norm(self.points[1:])) * (self.turn[1] - self.turn[0]) ** 2
        elif (degree := len(self.points) - 1) > 1:
            bend = degree * (degree - 1) * float(np.hypot(*np.diff(self.points, 2, axis=0).T).max())
        else:
            return 1
        return min(1000, max(1, math.ceil(math.sqrt(bend / (8 * tolerance))))) if tolerance else 1

    def moved(self, matrix: np.ndarray) -> Curve:
        """The curve under an affine map (2, 3)."""
        points = self.points @ matrix[:, :2].T
        points[: len(points) if self.turn is None else 1] += matrix[:, 2]
        return self._replace(points=points)


def svg_lines(content: bytes) -> tuple[list[np.ndarray], Counter[str]]:
    """The polylines (n, 2) of a file, and what it shows beside them: the number of elements of each name.

    ``path``, ``line``, ``polyline``, ``polygon``, ``rect``, ``circle`` and ``ellipse`` are drawn as their outlines,
    under all transforms of the groups around them, and where a ``use`` repeats them. The unit is that of the file's
    coordinates. Curves are within :data:`FLATNESS` of the drawing's longer side. A line without length is one point.
    Texts, pictures and pictures in the picture are no lines; nor is a shape with lengths in percent, one that has
    neither fill nor stroke or is fully transparent, as far as attributes and not a style sheet say so, or what a
    transform in ``style`` moves by more than pixels and degrees.

    Raises:
        ValueError: it is not SVG, or a part of it is broken, says which; or svg.path is not installed.
    """
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"no SVG: {error}") from None
    if _name(root) != "svg":
        raise ValueError(f"no SVG: its root is {root.tag!r}, expected 'svg'")
    lines: list[tuple[np.ndarray, list[Curve]]] = []
    left_out: Counter[str] = Counter()
    for element, matrix in _drawn(root, left_out):
        try:
            d = _path_of(element)
        except Relative:
            left_out[f"{_name(element)} with lengths in percent"] += 1
            continue
        for start, curves in _curves(d) if d else ():
            moved = [curve.moved(matrix) for curve in curves]
            lines.append((matrix[:, :2] @ start + matrix[:, 2], moved))
    if not lines:
        return [], left_out
    rough = [_flattened(start, curves, 8) for start, curves in lines]
    tolerance = FLATNESS * extent_of(rough)
    return [_flattened(start, curves, None, tolerance) for start, curves in lines], left_out


def _flattened(start: np.ndarray, curves: list[Curve], steps: int | None, tolerance: float = 0.0) -> np.ndarray:
    pieces = [curve.at(steps or curve.steps(tolerance)) for curve in curves]
    line = np.concatenate([start[None], *pieces])
    return line if (line != line[0]).any() else line[:1]


def _name(element: Any) -> str:
    """The name of an element of SVG, also where a file leaves out the namespace; of any other nothing."""
    tag = element.tag if isinstance(element.tag, str) else ""  # comments have a function
    return tag.removeprefix(_NAMESPACE) if tag.startswith(_NAMESPACE) or "{" not in tag else ""


def _drawn(root: Any, left_out: Counter[str]) -> Iterator[tuple[Any, np.ndarray]]:
    """Each shape with the affine map (2, 3) that it is under; counts the elements that are no lines."""
    by_id = {element.get("id"): element for element in root.iter() if element.get("id")}
    has_sheet = any(_name(element) == "style" for element in root.iter())  # by which anything may be painted
    waiting: list[tuple[Any, np.ndarray, dict[str, str], int]] = [(root, np.eye(2, 3), {}, 0)]
    seen = 0
    while waiting:
        element, above, paint, depth = waiting.pop()
        name = _name(element)
        seen += 1
        if seen > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements")
        if not name or name in UNSEEN or (_is_hidden(element) and element is not root):
            continue
        try:
            matrix = _joined(above, _transform(element))
        except Relative:
            left_out[f"{name} with a transform of CSS"] += 1
            continue
        paint = _paint(element, paint)
        if name in GROUPS or element is root:
            waiting += [(child, matrix, paint, depth) for child in reversed(element)]
        elif name == "use":
            target = (element.get("href") or element.get("{http://www.w3.org/1999/xlink}href") or "").removeprefix("#")
            if target not in by_id or depth > 20:
                raise ValueError(
                    f"a use of {target!r}, which " + ("uses itself" if target in by_id else "is not there")
                )
            shift = np.array([[1, 0, _length(element, "x")], [0, 1, _length(element, "y")]])
            found = by_id[target]
            placed = _joined(matrix, shift)
            if _name(found) != "symbol":
                waiting.append((found, placed, paint, depth + 1))
            elif found.get("viewBox"):
                left_out["symbol with a viewBox"] += 1
            else:
                waiting += [(child, placed, paint, depth + 1) for child in reversed(found)]
        elif name in ("path", "line", "polyline", "polygon", "rect", "circle", "ellipse"):
            if _is_painted(paint) or has_sheet:
                yield element, matrix
            else:
                left_out[f"{name} without fill and stroke"] += 1
        else:
            left_out[name] += 1


def _is_hidden(element: Any) -> bool:
    return _property(element, "display") == "none" or _property(element, "visibility") == "hidden"


def _property(element: Any, name: str) -> str:
    """What the attribute ``style``, or else one of the property's own name, says; empty if neither does."""
    found = re.search(rf"(?:^|;)\s*{name}\s*:([^;]*)", element.get("style", ""))
    return str(found[1] if found else element.get(name, "")).removesuffix("!important").strip()


def _paint(element: Any, above: Mapping[str, str]) -> dict[str, str]:
    """How an element is painted, by the properties that it has or inherits; opacity stays 0 once it is."""
    own = {name: _property(element, name) for name in PAINT}
    paint = {**above, **{name: value for name, value in own.items() if value not in ("", "inherit")}}
    return paint | ({"opacity": "0"} if _is_nothing(above.get("opacity", "")) else {})


def _is_painted(paint: Mapping[str, str]) -> bool:
    """Whether something can be seen. By default a shape is filled and its outline is not drawn."""
    nothing = {name for name in PAINT if _is_nothing(paint.get(name, "none" if name == "stroke" else ""))}
    return "opacity" not in nothing and not (
        nothing & {"fill", "fill-opacity"} and nothing & {"stroke", "stroke-opacity", "stroke-width"}
    )


def _is_nothing(value: str) -> bool:
    return value in ("none", "transparent") or re.fullmatch(r"\+?0*\.?0+%?", value) is not None


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The affine map (2, 3) that does the second and then the first."""
    return np.column_stack([first[:, :2] @ second[:, :2], first[:, :2] @ second[:, 2] + first[:, 2]])


def _transform(element: Any) -> np.ndarray:
    """The affine map (2, 3) of an element's transform, which a style may have in place of the attribute.

    Raises:
        Relative: it is one of CSS alone, about another origin or in other units than pixels and degrees.
    """
    matrix = np.eye(2, 3)
    text = _property(element, "transform").removesuffix("none")
    if text and _property(element, "transform-origin") not in ("", "0 0", "0px 0px"):
        raise Relative
    if text != element.get("transform", "").strip():
        text = re.sub(r"(?<=[\d.])(?:px|deg)\b", "", text)
        if not re.fullmatch(rf"(?:(?:{_CSS_MAPS})\([\d\s,.eE+-]*\)\s*)*", text):
            raise Relative
    for kind, inside in re.findall(r"(\w+)\s*\(([^)]*)\)", text):
        values = [float(value) for value in re.findall(_NUMBER, inside)]
        match kind, values:
            case "matrix", [a, b, c, d, e, f]:
                step = np.array([[a, c, e], [b, d, f]])
            case "translate", [x, *rest]:
                step = np.array([[1, 0, x], [0, 1, rest[0] if rest else 0]])
            case "scale", [x, *rest]:
                step = np.array([[x, 0, 0], [0, rest[0] if rest else x, 0]])
            case "rotate", [angle, *center] if len(center) in (0, 2):
                cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                x, y = center or (0.0, 0.0)
                step = np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
            case "skewX", [angle]:
                step = np.array([[1, math.tan(math.radians(angle)), 0], [0, 1, 0]])
            case "skewY", [angle]:
                step = np.array([[1, 0, 0], [math.tan(math.radians(angle)), 1, 0]])
            case _:
                raise ValueError(f"transform={text!r:.80}: expected matrix, translate, scale, rotate, skewX or skewY")
        matrix = _joined(matrix, step)
    return matrix


def _length(element: Any, name: str, default: float = 0.0) -> float:
    """An attribute in pixels."""
    text = element.get(name)
    if text is None or text == "auto":
        return default
    found = re.fullmatch(rf"\s*({_NUMBER})\s*([a-z%]*)\s*", text)
    if found is None:
        raise ValueError(f"{_name(element)}: {name}={text!r:.40}: expected a length")
    if found[2] not in PIXELS:
        raise Relative
    return float(found[1]) * PIXELS[found[2]]


def _path_of(element: Any) -> str:
    """A shape in the language of paths; empty if it has no size."""

    def sizes(*names: str) -> list[float]:
        return [_length(element, name) for name in names]

    match _name(element):
        case "path":
            d = str(element.get("d", "")).strip()
            return "" if d == "none" else d
        case "line":
            return "M {} {} L {} {}".format(*sizes("x1", "y1", "x2", "y2"))
        case "circle" | "ellipse" as name:
            x, y = sizes("cx", "cy")
            rx, ry = sizes("r", "r") if name == "circle" else sizes("rx", "ry")
            return f"M {x + rx} {y} A {rx} {ry} 0 0 1 {x - rx} {y} A {rx} {ry} 0 0 1 {x + rx} {y}" if rx and ry else ""
        case "rect":
            x, y, width, height = sizes("x", "y", "width", "height")
            if width <= 0 or height <= 0:
                return ""
            rx = _length(element, "rx", _length(element, "ry"))
            ry = min(_length(element, "ry", rx), height / 2)
            rx = min(rx, width / 2)
            if not (rx and ry):
                return f"M {x} {y} h {width} v {height} h {-width} Z"
            across, down, arc = width - 2 * rx, height - 2 * ry, f"a {rx} {ry} 0 0 1"
            return (
                f"M {x + rx} {y} h {across} {arc} {rx} {ry} v {down} {arc} {-rx} {ry} h {-across} {arc} {-rx} {-ry} "
                f"v {-down} {arc} {rx} {-ry} Z"
            )
        case name:
            numbers = re.findall(_NUMBER, element.get("points", ""))
            if len(numbers) < 2:
                return ""
            return f"M {' '.join(numbers[: len(numbers) // 2 * 2])}{' Z' if name == 'polygon' else ''}"


def _curves(d: str) -> Iterator[tuple[np.ndarray, list[Curve]]]:
    """The start (2,) of each line of a path that the pen draws without being lifted, and its pieces."""
    try:
        from svg.path import Arc, Close, CubicBezier, Move, QuadraticBezier, parse_path
    except ModuleNotFoundError as error:
        raise ValueError("SVG needs svg.path, which is not installed: pip install 'lit-baselines[svg]'") from error
    try:
        segments = list(parse_path(d))
    except Exception as error:  # of a broken path it raises almost anything
        raise ValueError(f"a path is broken: {' '.join(str(error).split()) or type(error).__name__}: {d:.60}") from None

    def pair(number: complex) -> tuple[float, float]:
        return number.real, number.imag

    start, curves = np.zeros(2), list[Curve]()
    for segment in segments:
        if isinstance(segment, Move):
            if curves:
                yield start, curves
            start, curves = np.array(pair(segment.end)), []
            continue
        if not curves:  # also what follows a Z without a move
            start = np.array(pair(segment.start))
        ends = [segment.start, segment.end]
        match segment:
            case CubicBezier():
                curve = Curve(np.array([*map(pair, (ends[0], segment.control1, segment.control2, ends[1]))]))
            case QuadraticBezier():
                curve = Curve(np.array([*map(pair, (ends[0], segment.control, ends[1]))]))
            case Arc() if ends[0] != ends[1] and segment.radius.real and segment.radius.imag:
                tilt, radius = math.radians(segment.rotation), segment.radius * segment.radius_scale
                u = abs(radius.real) * np.array([math.cos(tilt), math.sin(tilt)])
                v = abs(radius.imag) * np.array([-math.sin(tilt), math.cos(tilt)])
                turn = math.radians(segment.theta), math.radians(segment.theta + segment.delta)
                curve = Curve(np.array([pair(segment.center), u, v]), turn)
            case _:
                curve = Curve(np.array([*map(pair, ends)]))
        if not (isinstance(segment, Close) and ends[0] == ends[1] and curves):  # already back at its start
            curves.append(curve)
        if isinstance(segment, Close):
            yield start, curves
            curves = []
    if curves:
        yield start, curves
