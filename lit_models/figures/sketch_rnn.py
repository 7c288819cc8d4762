"""The pictures that explain sketch-RNN."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps, rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.figures.canvas import Picture
from lit_models.figures.grids import panels
from lit_models.figures.vae import kl_figure
from lit_models.parts.latent import slerp
from lit_models.parts.sketch import Sketch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from datamodules.sketches import SketchBatch
    from lit_models.sketch_rnn import SketchRNN

COLUMNS = 8
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SIDE = 0.09
"""of a drawing on the map of the codes, whose sides are 2"""
INK, PREFIX = "0.1", "tab:red"


@torch.no_grad()
def illustrate(model: SketchRNN, batch: SketchBatch) -> dict[str, Picture]:
    """Samples and completions, and what a model's code holds where it has one.

    That is: reconstructions at several temperatures, several drawings of one code, a grid of interpolations, a map of
    the codes, and what each of its dimensions changes.

    Drawings are given both as figures and, under the same name with ``.svg``, as SVG texts.

    Args:
        batch: evaluated drawings. The map of the codes also has those of the batches after it.
    """
    kl = model.mean_kl
    drawings, labels = of_all_classes(_sketches(model, batch), batch.labels.tolist())
    shown = drawings[:COLUMNS]
    made = {"samples": samples_figure(model), "completions": completions_figure(model, shown)}
    if kl is not None:
        seen = model.evaluated or [batch]
        mapped = [sketch for some in seen for sketch in _sketches(model, some)]
        made["reconstructions"] = reconstructions_figure(model, shown)
        made["variations"] = variations_figure(model, shown)
        made["interpolations"] = interpolations_figure(model, drawings, labels)
        made["codes"] = codes_figure(model, mapped, torch.cat([some.labels for some in seen]))
    pictures: dict[str, Picture] = {**made}
    pictures |= {f"{name}.svg": to_svg(figure) for name, figure in made.items()}
    if kl is not None:
        pictures["kl"] = kl_figure(kl)
    return pictures


def of_all_classes(drawings: Sequence[Sketch], labels: Sequence[int]) -> tuple[list[Sketch], list[int]]:
    """Drawings and their labels, in turn one of each class: the first few are of as many classes as there are."""
    counts: Counter[int] = Counter()
    turns = []
    for place, label in enumerate(labels):
        turns.append((counts[label], place))  # without classes, all are of one
        counts[label] += 1
    order = [place for _, place in sorted(turns)]
    return [drawings[place] for place in order], [labels[place] for place in order]


def reconstructions_figure(model: SketchRNN, shown: Sequence[Sketch]) -> Figure:
    """Drawings, and the decoded means of their codes at several temperatures."""
    z = model.encode(shown)
    rows = [model.decode(z, temperature, seed=0) for temperature in TEMPERATURES]
    return drawings_figure([shown, *rows], ["input", *(f"τ = {temperature}" for temperature in TEMPERATURES)])


def variations_figure(model: SketchRNN, shown: Sequence[Sketch], temperature: float = 0.4, draws: int = 7) -> Figure:
    """One input gives several similar outputs, each from a different draw of its code and of its moves."""
    first = shown[:6]
    repeated = [sketch for sketch in first for _ in range(draws)]
    decoded = model.reconstruct(repeated, temperature, sample=True, seed=0)
    assert isinstance(decoded, list)
    rows = [[sketch, *decoded[i * draws : (i + 1) * draws]] for i, sketch in enumerate(first)]
    title = f"left: the input; the others: draws of its code, decoded at τ = {temperature}"
    return drawings_figure(rows, title=title)


def interpolations_figure(
    model: SketchRNN, drawings: Sequence[Sketch], labels: Sequence[int] = (), temperature: float = 0.1
) -> Figure:
    """The codes of four drawings in the corners, and drawings from the great circles between them.

    The drawings come in turn of each class, so that from left to right is from one class to another.
    """
    corners = model.encode([drawings[i % len(drawings)] for i in range(4)])
    left, right = (slerp(corners[i], corners[i + 2], COLUMNS) for i in (0, 1))
    z = torch.cat([slerp(a, b, COLUMNS) for a, b in zip(left, right, strict=True)])
    sketches = model.decode(z, temperature, seed=0)
    rows = [sketches[i : i + COLUMNS] for i in range(0, len(sketches), COLUMNS)]
    names = model.class_names or []
    known = [names[label] for label in labels[:4] if 0 <= label < len(names)]
    of = f" ({', '.join(known)})" if len(set(known)) > 1 and len(known) == 4 else ""
    return drawings_figure(rows, title=f"between the codes of four drawings{of}, τ = {temperature}")


def samples_figure(model: SketchRNN) -> Figure:
    """Drawings from nothing: from codes of the prior, or from the decoder alone, at several temperatures."""
    shown = [temperature for temperature in TEMPERATURES if temperature]
    rows = [model.generate(COLUMNS, temperature, seed=0) for temperature in shown]
    return drawings_figure(rows, [f"τ = {temperature}" for temperature in shown])


def completions_figure(model: SketchRNN, shown: Sequence[Sketch], temperature: float = 0.4) -> Figure:
    """The first third of some drawings, and how the model completes them."""
    prefixes = [Sketch(sketch.points[: max(1, len(sketch) // 3)]) for sketch in shown[:5]]
    # Drawings may be longer than all of the training.
    most = max(model.longest, *(len(prefix) + 1 for prefix in prefixes))
    ends: Any = model.complete(prefixes, COLUMNS - 1, temperature, seed=0, max_points=most)
    rows = [[prefix, *made] for prefix, made in zip(prefixes, ends, strict=True)]
    title = f"ends of a beginning (red), τ = {temperature}"
    return drawings_figure(rows, title=title, prefixes=[len(prefix) for prefix in prefixes])


def codes_figure(model: SketchRNN, drawings: Sequence[Sketch], labels: Tensor) -> Figure:
    """Each drawing at the position of its code on the plane of the codes' two strongest components.

    Either component has a scale of its own. Where codes are so close that drawings would cover each other, only one is
    drawn and the others are dots.
    """
    codes = model.encode(drawings).double().cpu()
    centered = codes - codes.mean(0)
    _, _, axes = torch.linalg.svd(centered, full_matrices=False)
    places = centered @ axes[:2].T
    low, high = places.amin(0), places.amax(0)
    places = (2 * places - low - high) / (high - low).clamp_min(1e-6)  # fills the square
    places = F.pad(places, (0, 2 - places.shape[1])).numpy() * [1, -1]
    classes = labels.tolist()
    colors = [colormaps["tab10"](place) for place in range(10)]
    inks = [INK if label < 0 else colors[label % len(colors)] for label in classes]
    is_drawn = apart(places, SIDE)
    figure, (axis,) = panels(8, 8.25, margins=(0.1, 0.1, 0.1, 0.35))
    placed = [_placed(drawings[i], places[i], SIDE) for i in is_drawn]
    strokes = [inks[i] for i, lines in zip(is_drawn, placed, strict=True) for _ in lines]
    _add(axis, [line for lines in placed for line in lines], strokes, 0.8)
    dots = sorted(set(range(len(drawings))) - set(is_drawn))
    axis.scatter(places[dots, 0], places[dots, 1], s=5, c=[inks[i] for i in dots], alpha=0.5, linewidths=0, zorder=0)
    known = sorted(set(classes) - {-1})
    if model.class_names and 1 < len(known) <= len(colors):
        for label in known:
            axis.plot([], [], color=colors[label % len(colors)], label=model.class_names[label])
        axis.legend(loc="upper left", frameon=False)
    _bare(axis, (-1.1, 1.1), (1.1, -1.1))
    rest = f"; {len(dots)} of {len(drawings)} are dots" if dots else ""
    axis.set_title(f"the codes on the plane of their two strongest components{rest}", size=10)
    return figure


def apart(places: np.ndarray, side: float) -> list[int]:
    """Which squares of a side around places (N, 2) to take, from the first on, so that none covers another."""
    taken: list[int] = []
    for i, place in enumerate(places):
        if not taken or (np.abs(places[taken] - place).max(1) >= side).all():
            taken.append(i)
    return taken


def drawings_figure(
    rows: Sequence[Sequence[Sketch]],
    labels: Sequence[str] = (),
    title: str = "",
    prefixes: Sequence[int] = (),
    size: float = 0.9,
) -> Figure:
    """A grid of drawings, each filling its cell of ``size`` inches; the first points of a row's drawings are red."""
    columns = max(len(row) for row in rows)
    margins = (0.8 if labels else 0.1, 0.1, 0.1, 0.35 if title else 0.1)
    width, height = size * columns + sum(margins[:2]), size * len(rows) + sum(margins[2:])
    figure, (axis,) = panels(width, height, margins=margins)
    lines, begun = [], []
    for i, row in enumerate(rows):
        for j, sketch in enumerate(row):
            placed = _placed(sketch, (j, i), 0.86)
            lines += placed
            if prefixes:
                first = Sketch(sketch.points[: prefixes[i]]).polylines()
                begun += [whole[: len(line)] for whole, line in zip(placed, first, strict=False)]
    _add(axis, lines, INK, 1.1)
    _add(axis, begun, PREFIX, 2)
    _bare(axis, (-0.5, columns - 0.5), (len(rows) - 0.5, -0.5))
    for i, label in enumerate(labels):
        axis.text(-0.55, i, label, size=8, ha="right", va="center")
    if title:
        axis.set_title(title, size=10)
    return figure


def _sketches(model: SketchRNN, batch: SketchBatch) -> list[Sketch]:
    return [Sketch.from_rows(rows.float().cpu(), model.scale_factor) for rows in batch.strokes]


def _placed(sketch: Sketch, center: Sequence[float] | np.ndarray, side: float) -> list[np.ndarray]:
    """The lines of a drawing, moved and scaled to a square of the axes."""
    lines = sketch.polylines()
    if not lines:
        return []
    every = np.concatenate(lines)
    low, high = every.min(0), every.max(0)
    extent = float((high - low).max())
    scale = side / extent if extent else 1.0
    return [(line - (low + high) / 2) * scale + np.asarray(center) for line in lines]


def _add(axis: Axes, lines: list[np.ndarray], colors: Any, width: float) -> None:
    """Adds all lines to the axes at once, which is much faster; a line without length is a dot twice as wide."""
    inks = [colors] * len(lines) if isinstance(colors, str) else colors
    are_dots = [bool((line == line[0]).all()) for line in lines]
    whole = [line for line, is_dot in zip(lines, are_dots, strict=True) if not is_dot]
    ink = [ink for ink, is_dot in zip(inks, are_dots, strict=True) if not is_dot]
    axis.add_collection(LineCollection(whole, colors=ink, linewidths=width, capstyle="round", joinstyle="round"))
    if any(are_dots):
        dots = np.array([line[0] for line, is_dot in zip(lines, are_dots, strict=True) if is_dot])
        ink = [ink for ink, is_dot in zip(inks, are_dots, strict=True) if is_dot]
        axis.scatter(dots[:, 0], dots[:, 1], s=(2 * width) ** 2, c=ink, linewidths=0)


def _bare(axis: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axis.set(xlim=x, ylim=y, aspect="equal")
    axis.axis("off")


def to_svg(figure: Figure) -> str:
    """The figure as an SVG text, identical for identical figures."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "sketch-rnn"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
