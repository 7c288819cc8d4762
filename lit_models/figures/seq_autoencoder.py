"""The pictures that explain a sequence autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.figures.canvas import Picture, lines_pictures
from lit_models.figures.grids import map_figure, names_of_classes, panels, rows_page
from lit_models.figures.sketch_rnn import drawings_figure
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from datamodules.sequences import SequenceBatch
    from lit_models.seq_autoencoder import SequenceAutoencoder

COLUMNS = 10
LINES = 16
"""number of lines of text that are shown"""
MAPPED = 500


def illustrate(model: SequenceAutoencoder, batch: SequenceBatch) -> dict[str, Picture]:
    """Sequences and reconstructions; paths between two codes; the score against the length; a map of the codes."""
    assert model.by_length is not None
    # Evenly from the batch, since evaluation goes through the data in their order.
    chosen = torch.linspace(0, len(batch.lengths) - 1, min(len(batch.lengths), LINES)).long()
    some = type(batch)(*(part[chosen.to(part.device)] for part in batch))
    with evaluating(model), torch.no_grad():
        draw = text_pictures if model.vocab is not None else sketch_pictures if model.scale_factor else row_pictures
        return {
            **draw(model, some),
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
    images = [_image(model, row) for row in model._sequences(batch, None)][:COLUMNS]
    rows, labels = [images], ["sequence"]
    given = model._sequences(batch, None)[:COLUMNS]
    rows.append([_image(model, row) for row in model.reconstruct(given)])
    labels.append(f"code of {model.code_dim}")
    for label, values in rivals(model, batch).items():
        rows.append([_image(model, row) for row in values[:COLUMNS]])
        labels.append(label)
    paths = [
        torch.stack([_image(model, row) for row in model.interpolate(a, b, COLUMNS)])
        for a, b in zip(given[::2], given[1::2], strict=False)
    ]
    return {
        "reconstructions": rows_page([torch.stack(row) for row in rows], labels),
        "interpolations": rows_page(paths or [torch.stack(images)], title="between the codes of two sequences"),
    }


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


def _image(model: SequenceAutoencoder, row: Tensor) -> Tensor:
    """(1, longest, D) from a sequence (N, D): white after its end."""
    image = torch.ones(1, model.longest, row.shape[1])
    image[0, : len(row)] = row[: model.longest].float().cpu()
    return image
