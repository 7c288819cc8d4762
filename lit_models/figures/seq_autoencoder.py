"""The pictures that explain a sequence autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from common.trainer import datamodule_of
from lit_models.figures.canvas import Picture, lines_pictures, shortened
from lit_models.figures.grids import map_figure, names_of_classes, panels, rows_page
from lit_models.figures.sketch_rnn import drawings_figure
from lit_models.networks.sequence_elements import Points
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from datamodules.sequences import SequenceBatch
    from lit_models.seq_autoencoder import SequenceAutoencoder

COLUMNS = 10
LINES = 16
"""number of lines of text that are shown"""
MAPPED = 500
SERIES, CHANNELS = 4, 3
"""number of series that are drawn as lines, beside each other, and of their channels, one below the other"""
STEPS = 7
"""number of series on a path between two"""


def illustrate(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Picture]:
    """Sequences and reconstructions; paths between two codes; the score against the length; a map of the codes."""
    assert model.by_length is not None
    chosen = by_turns(batch.labels, LINES)
    some = type(batch)(*(part[chosen.to(part.device)] for part in batch))
    with evaluating(model), torch.no_grad():
        return {
            **drawer_of(model)(model, some),
            "by_length": length_figure(
                model.by_length, "exact match" if model.vocab is not None else "mean squared error"
            ),
            "codes": map_figure(
                model.encode(type(batch)(*(part[:MAPPED] for part in batch))),
                (batch.lengths if model.vocab is not None else batch.labels)[:MAPPED],
                names_of_classes(model),
                "characters" if model.vocab is not None else None,
            ),
        }


def by_turns(labels: Tensor, count: int) -> Tensor:
    """Rows (at most ``count``,) of a batch whose labels are (B,): of each class in turn, and evenly within the batch.

    Evaluation may go through the data in their order, so that the first rows are all alike.
    """
    labels = labels.cpu()
    classes = [(labels == label).nonzero()[:, 0] for label in labels.unique().tolist()]
    each = -(-count // len(classes))
    picked = [rows[torch.linspace(0, len(rows) - 1, min(len(rows), each)).long()].tolist() for rows in classes]
    turns = [row[turn] for turn in range(each) for row in picked if turn < len(row)]
    return torch.tensor(turns[:count])


def drawer_of(model: SequenceAutoencoder) -> Callable[[SequenceAutoencoder, SequenceBatch], dict[str, Picture]]:
    """What draws the sequences: by what they are, and not by what their values look like."""
    if model.vocab is not None:
        return text_pictures
    if model.scale_factor:
        return sketch_pictures
    return series_pictures if image_shape_of(model) is None else row_pictures


def image_shape_of(model: SequenceAutoencoder) -> list[int] | None:
    """C, H, W of the images whose rows the sequences are; None if the data that it is evaluated on are no images."""
    trainer = model._trainer  # the property raises where there is none
    shape = getattr(datamodule_of(trainer), "image_shape", None) if trainer is not None else None
    return list(shape) if shape is not None else None


def text_pictures(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Picture]:
    """Lines above their reconstructions, and lines between pairs of lines."""
    lines = model._sequences(batch, "")
    pairs = [f"{line}\n{made}" for line, made in zip(lines, model.reconstruct(lines), strict=True)]
    paths = ["\n".join(model.interpolate(a, b, 7)) for a, b in zip(lines[:8:2], lines[1:8:2], strict=False)]
    return {
        **lines_pictures("reconstructions", "lines, each above its reconstruction", "\n\n".join(pairs)),
        **lines_pictures("interpolations", "between the codes of two lines", "\n\n".join(paths)),
    }


def sketch_pictures(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Picture]:
    """Drawings above their reconstructions, including the rivals', and drawings between pairs of drawings."""
    drawings = [model.to_sketch(row) for row in model._sequences(batch, None)][:COLUMNS]
    rows, labels = [drawings, model.reconstruct(drawings)], ["drawing", f"code, {model.code_dim}"]
    for label, values in rivals(model, batch).items():
        made = [row[:length] for row, length in zip(values, batch.lengths.tolist(), strict=True)]
        rows.append([model.to_sketch(row) for row in made[:COLUMNS]])
        labels.append(label)
    paths = [model.interpolate(a, b, COLUMNS) for a, b in zip(drawings[::2], drawings[1::2], strict=False)]
    return {
        "reconstructions": drawings_figure(rows, labels),
        "interpolations": drawings_figure(paths or [drawings], title="between the codes of two drawings"),
    }


def row_pictures(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Picture]:
    """Sequences as images, with one row per element, above their reconstructions, including the rivals'; and paths."""
    shape = image_shape_of(model)
    assert shape is not None
    images = [_image(row, shape) for row in model._sequences(batch, None)][:COLUMNS]
    rows, labels = [images], ["sequence"]
    given = model._sequences(batch, None)[:COLUMNS]
    rows.append([_image(row, shape) for row in model.reconstruct(given)])
    labels.append(f"code of {model.code_dim}")
    for label, values in rivals(model, batch).items():
        rows.append([_image(row, shape) for row in values[:COLUMNS]])
        labels.append(label)
    paths = [
        torch.stack([_image(row, shape) for row in model.interpolate(a, b, COLUMNS)])
        for a, b in zip(given[::2], given[1::2], strict=False)
    ]
    return {
        "reconstructions": rows_page([torch.stack(row) for row in rows], labels),
        "interpolations": rows_page(paths or [torch.stack(images)], title="between the codes of two sequences"),
    }


def series_pictures(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Picture]:
    """Series as lines in their own units, with their reconstructions and the rivals', and series between two."""
    some = type(batch)(*(part[:SERIES] for part in batch))
    lengths = some.lengths.tolist()
    code = model.encode(some)
    pairs = [(i, i + 1) for i in range(0, len(code) - 1, 2)] or [(0, 0)]
    t = torch.linspace(0, 1, STEPS, dtype=code.dtype, device=code.device)[:, None]
    # Decoded together, since a long series takes as many steps however many there are.
    decoded = model.decoded(torch.cat([code, *(torch.lerp(code[a], code[b], t) for a, b in pairs)]))
    made = _as_lines(model, decoded.values, decoded.lengths.tolist())
    paths = [made[i : i + STEPS] for i in range(len(code), len(made), STEPS)]
    drawn = {"series": _as_lines(model, some.values, lengths), f"code of {model.code_dim}": made[: len(code)]}
    for label, values in rivals(model, some).items():
        drawn[label] = _as_lines(model, values, lengths)
    return {"reconstructions": series_figure(model, drawn), "interpolations": paths_figure(model, paths)}


def _as_lines(model: SequenceAutoencoder, values: Tensor, lengths: Sequence[int]) -> list[np.ndarray]:
    """Each sequence (N, D) of a batch in the units of the data."""
    assert isinstance(model.elements, Points)
    return [model.elements.in_own_units(row[:length]) for row, length in zip(values, lengths, strict=True)]


def series_figure(model: SequenceAutoencoder, drawn: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Lines of several kinds over each other: a column for each series, a row for each channel."""
    columns = len(next(iter(drawn.values())))
    figure, axes, shown = _series_panels(model, columns)
    for place, axis in enumerate(axes):
        row, column = divmod(place, columns)
        for number, (label, lines) in enumerate(drawn.items()):
            first = number == 0
            style: dict[str, Any] = {"color": "0.2", "lw": 1.4} if first else {"color": f"C{number - 1}", "lw": 0.9}
            faint = 0.5 if number > 1 else 1.0
            axis.plot(lines[column][:, shown[row]], label=label, alpha=faint, **style, **_dots(lines[column]))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(drawn), frameon=False, fontsize=8)
    return figure


def paths_figure(model: SequenceAutoencoder, paths: Sequence[Sequence[np.ndarray]]) -> Figure:
    """Lines from one series to another, dark to bright: a column for each pair, a row for each channel."""
    figure, axes, shown = _series_panels(model, len(paths))
    for place, axis in enumerate(axes):
        row, column = divmod(place, len(paths))
        for number, line in enumerate(paths[column]):
            color = colormaps["viridis"](0.9 * number / (STEPS - 1))
            axis.plot(line[:, shown[row]], color=color, lw=1, **_dots(line))
    figure.text(0.99, 0.99, "between the codes of two series", ha="right", va="top", fontsize=8)
    return figure


def _dots(line: np.ndarray) -> dict[str, Any]:
    return {"marker": "o", "ms": 2} if len(line) < 4 else {}  # of one step, a line would not be seen


def _series_panels(model: SequenceAutoencoder, columns: int) -> tuple[Figure, list[Axes], list[int]]:
    """A figure with axes for some channels, one below the other, and which these are."""
    shown = list(range(min(model.dim, CHANNELS)))
    width, height = max(4.5, 0.9 + 2.6 * columns), 0.8 + 1.5 * len(shown)
    figure, axes = panels(width, height, len(shown), columns, margins=(0.75, 0.1, 0.45, 0.35), gaps=(0.45, 0.15))
    names = model.channel_names or [f"channel {channel}" for channel in range(model.dim)]
    left_out = f"\n(1 of {model.dim})" if len(shown) < model.dim else ""
    for place, axis in enumerate(axes):
        row, column = divmod(place, columns)
        axis.tick_params(labelsize=7, labelbottom=row == len(shown) - 1)
        if column == 0 and model.dim > 1:
            axis.set_ylabel(f"{shortened(names[shown[row]])}{left_out}", fontsize=8)
        if row == len(shown) - 1:
            axis.set_xlabel("step", fontsize=8)
    return figure, axes, shown


def rivals(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Tensor]:
    """The rivals' reconstructions of sequences (B, T, D) from the same number of values."""
    values, lengths, _ = batch
    made: dict[str, Any] = {}
    if model.compares:
        made[f"PCA, {len(model.pca_components)}"] = model.pca_reconstruction(values, lengths)
    if (points := model.code_dim // model.dim) > 0:
        made[f"{points} points"] = model.resampled_reconstruction(values, lengths)
    return made


def length_figure(by_length: Tensor, score: str) -> Figure:
    """A score against the length of sequences."""
    figure, (axis,) = panels(6, 3)
    by_length = by_length.float().cpu()
    known = by_length.isfinite().nonzero()[:, 0]
    axis.plot(known, by_length[known], "o-", ms=3, lw=1)
    axis.set(xlabel="length", ylabel=score, ylim=(0, None))
    return figure


def _image(row: Tensor, shape: Sequence[int]) -> Tensor:
    """(C, H, W) from the rows (N, W · C) of an image of this shape: white after its end."""
    channels, height, width = shape
    image = torch.ones(height, width, channels)
    image[: len(row)] = row[:height].float().cpu().unflatten(1, (width, channels))
    return image.permute(2, 0, 1)
