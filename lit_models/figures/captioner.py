"""The pictures that explain a captioner."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lit_models.captioner import shifted
from lit_models.figures.canvas import ATTENTION, Captioned, Picture, attended, captioned_page, pixels_of
from lit_models.figures.fonts import DPI
from lit_models.figures.grids import panels
from lit_models.figures.vqa import RIGHT, WRONG
from lit_models.networks.caption_decoders import END, until_end
from lit_models.parts.evaluating import evaluating
from lit_models.scores.captions import judge

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch
    from lit_models.captioner import Captioner

ByLength = Mapping[int, tuple[int, float, float]]
"""for captions of each length: their number, their mean CIDEr-D, the share that is truthful"""


def illustrate(model: Captioner, batch: CaptionBatch) -> dict[str, Picture]:
    """Images with captions; where it looks for each word; scores by length; how varied each way to decode is."""
    made: dict[str, Picture] = {}
    with evaluating(model), torch.no_grad():
        said = [model.to_text(tokens) for tokens in model.decode(batch.images)[:, 0].tolist()]
        made["captions.txt"] = captions_text(model, batch, said)
        if batch.images.shape[1] in (1, 3):  # pictures, not cached features
            made["captions"] = captions_page(model, batch, said)
            if (attention := attention_page(model, batch)) is not None:
                made["attention"] = attention
    if model.by_length:
        made["length"] = length_figure(model.by_length)
    if len(model.by_method) > 1:
        made["diversity"] = diversity_figure(model.by_method)
    return made


def references(model: Captioner, batch: CaptionBatch) -> list[list[str]]:
    """The sentences about each image."""
    found: list[list[str]] = [[] for _ in batch.images]
    for image, tokens, length in zip(
        batch.image_index.tolist(), batch.captions.tolist(), batch.lengths.tolist(), strict=True
    ):
        found[image].append(model.to_text(tokens[:length]))
    return found


def captions_text(model: Captioner, batch: CaptionBatch, said: Sequence[str]) -> str:
    """The references of each image, and below them the model's caption."""
    paragraphs = [
        "\n".join([*(f"reference  {sentence}" for sentence in sentences), f"model      {caption}"])
        for sentences, caption in zip(references(model, batch), said, strict=True)
    ]
    return "\n\n".join(paragraphs) + "\n"


def captions_page(
    model: Captioner, batch: CaptionBatch, said: Sequence[str], columns: int = 6, rows: int = 3
) -> Image.Image:
    """Images, each with a reference and the model's caption: green if it is true, red if not, black if unknown.

    Untrue captions come first, since they are the most interesting.
    """
    stated, true, *_ = judge(batch.objects, model.attributes, said).T.tolist()
    colors = ["black" if n < 0 else RIGHT if n == t > 0 else WRONG for n, t in zip(stated, true, strict=True)]
    order = sorted(range(len(said)), key=lambda image: colors[image] != WRONG)[: columns * rows]
    told = references(model, batch)
    pixels = pixels_of(batch.images[order], 2 * DPI)
    cells = [
        Captioned(picture, textwrap.fill(told[image][0], 32), textwrap.fill(said[image], 28), colors[image])
        for picture, image in zip(pixels, order, strict=True)
    ]
    note = "Above each picture what a person said, below it the model: green if it is true, red if not."
    return captioned_page(cells, min(columns, len(cells)), note=note)


def attention_page(model: Captioner, batch: CaptionBatch, images: int = 4) -> Image.Image | None:
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
    cells: list[Captioned | None] = []
    for words, pixels, shares in zip(said, pixels_of(shown, DPI), attention, strict=True):
        row = [Captioned(pixels)]
        for word, share in zip([*words, END], shares, strict=False):
            row.append(
                Captioned(attended(pixels, share.view(height, width)), "(end)" if word == END else model.vocab[word])
            )
        cells += [*row, *[None] * (columns - len(row))]
    return captioned_page(cells, columns, note=ATTENTION)


def length_figure(by_length: ByLength) -> Figure:
    """The quality and the number of captions of each length."""
    margins = (0.7, 0.9, 0.5, 0.1)
    figure, (above, below) = panels(6, 4.5, rows=2, margins=margins, sharex=True, height_ratios=(2, 1))
    lengths = list(by_length)
    below.bar(lengths, [count for count, _, _ in by_length.values()], color="gray")
    below.set(xlabel="words in the caption", ylabel="captions", xlim=(lengths[0] - 1, lengths[-1] + 1))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    figure, axes = panels(4 * len(measures), 3.6, columns=len(measures))
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        for method, scores in table.items():
            axis.plot(scores[measure], scores["cider_d"], "o", color="black" if method == "people" else "tab:blue")
            axis.annotate(method, (scores[measure], scores["cider_d"]), (4, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel=title, ylabel="CIDEr-D")
        axis.margins(0.2)
    return figure
