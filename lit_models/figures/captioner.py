"""The pictures that explain a captioner."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.captioner import shifted
from lit_models.figures.vqa import RIGHT, WRONG
from lit_models.networks.caption_decoders import END, until_end
from lit_models.parts.evaluating import evaluating
from lit_models.scores.captions import judge

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch
    from lit_models.captioner import Captioner

ByLength = Mapping[int, tuple[int, float, float]]
"""for captions of each length: their number, their mean CIDEr-D, the share that is truthful"""


def illustrate(model: Captioner, batch: CaptionBatch) -> dict[str, Figure]:
    """Images with captions; where it looks for each word; scores by length; how varied each way to decode is."""
    made = {}
    with evaluating(model), torch.no_grad():
        if batch.images.shape[1] in (1, 3):  # pictures, not cached features
            made["captions"] = captions_figure(model, batch)
            if (attention := attention_figure(model, batch)) is not None:
                made["attention"] = attention
    if model.by_length:
        made["length"] = length_figure(model.by_length)
    if len(model.by_method) > 1:
        made["diversity"] = diversity_figure(model.by_method)
    return made


def captions_figure(model: Captioner, batch: CaptionBatch, columns: int = 6, rows: int = 3) -> Figure:
    """Images, each with a reference and the model's caption: green if it is true, red if not, black if unknown.

    Untrue captions come first, since they are the most interesting.
    """
    said = [model.to_text(tokens) for tokens in model.decode(batch.images)[:, 0].tolist()]
    stated, true, *_ = judge(batch.objects, model.attributes, said).T.tolist()
    colors = ["black" if n < 0 else RIGHT if n == t > 0 else WRONG for n, t in zip(stated, true, strict=True)]
    order = sorted(range(len(said)), key=lambda image: colors[image] != WRONG)[: columns * rows]
    rows = max(1, -(-len(order) // columns))
    figure = Figure(figsize=(2.2 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    first = (batch.image_index.diff(prepend=batch.image_index.new_tensor([-1])) > 0).nonzero()[:, 0].tolist()
    for axis in axes[len(order) :]:
        axis.axis("off")
    for axis, image in zip(axes, order, strict=False):
        show(axis, batch.images[image])
        axis.set(xticks=[], yticks=[])  # the frame stays: the ground may be as white as the page
        axis.set_title(textwrap.fill(model.to_text(batch.captions[first[image]].tolist()), 32), fontsize=7)
        axis.set_xlabel(textwrap.fill(said[image], 28), fontsize=8, weight="bold", color=colors[image])
    return figure


def attention_figure(model: Captioner, batch: CaptionBatch, images: int = 4) -> Figure | None:
    """Where the model looked for each generated word; None for a model without attention."""
    shown = batch.images[:images]
    tokens = model.decode(shown)[:, 0]
    said = [until_end(row) for row in tokens.tolist()]
    inputs, _, _ = shifted(tokens, tokens.new_tensor([len(words) for words in said]))
    attention = model.decoder(inputs, *model.read(shown)).attention
    if attention is None:
        return None
    height, width = model.grid(shown[:1]).shape[2:]
    columns = max(len(words) for words in said) + 2  # the image itself, and the end
    figure = Figure(figsize=(1.1 * columns, 1.35 * len(said)), layout="constrained")
    axes = figure.subplots(len(said), columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for row, words, image, shares in zip(axes, said, shown, attention, strict=True):
        show(row[0], image)
        for axis, word, share in zip(row[1:], [*words, END], shares, strict=False):
            show(axis, image)
            size = image.shape[2] - 0.5, image.shape[1] - 0.5
            cells = share.view(height, width).float().cpu().numpy()
            axis.imshow(cells, cmap="inferno", alpha=0.6, extent=(-0.5, size[0], size[1], -0.5))
            axis.set_title("(end)" if word == END else model.vocab[word], fontsize=8)
    return figure


def length_figure(by_length: ByLength) -> Figure:
    """The quality and the number of captions of each length."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    lengths = list(by_length)
    below.bar(lengths, [count for count, _, _ in by_length.values()], color="gray")
    below.set(xlabel="words in the caption", ylabel="captions")
    known = not any(math.isnan(truthful) for _, _, truthful in by_length.values())
    if known:
        above.plot(lengths, [truthful for _, _, truthful in by_length.values()], "o-", color=RIGHT)
        above.set_ylabel("truthful", color=RIGHT)
        above.set_ylim(-0.03, 1.03)
    other = above.twinx() if known else above
    other.plot(lengths, [cider for _, cider, _ in by_length.values()], "s--", color="tab:blue")
    other.set_ylabel("CIDEr-D", color="tab:blue")
    other.set_ylim(bottom=0)
    return figure


def diversity_figure(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """The variety of captions for each decoding method, against their agreement with the references."""
    measures = {"distinct_2": "distinct-2", "unique_share": "unique captions", "self_bleu": "self-BLEU (less is more)"}
    figure = Figure(figsize=(4 * len(measures), 3.6), layout="constrained")
    for axis, (measure, title) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        for method, scores in table.items():
            axis.plot(scores[measure], scores["cider_d"], "o", color="black" if method == "people" else "tab:blue")
            axis.annotate(method, (scores[measure], scores["cider_d"]), (4, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel=title, ylabel="CIDEr-D")
        axis.margins(0.2)
    return figure


def show(axis: Axes, image: Tensor) -> None:
    """An image (C, H, W) in 0..1, gray or in color."""
    axis.imshow(image.float().cpu().clamp(0, 1).movedim(0, -1).expand(-1, -1, 3).numpy())
