"""The pictures that explain a text-to-image model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from lit_models.figures.canvas import Picture
from lit_models.figures.grids import rows_page

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch
    from lit_models.text_to_image import TextToImageGAN

SENTENCES, SAMPLES, STEPS = 8, 8, 9
BETWEEN = 0.85


def illustrate(model: TextToImageGAN, batch: CaptionBatch) -> dict[str, Picture]:
    """For the sentences of the first images: samples, paths from one sentence to the next, and exchanged words."""
    first = (batch.image_index[:, None] == torch.arange(len(batch.images), device=batch.image_index.device)).int()
    rows = first.argmax(0)[:SENTENCES].tolist()  # the first sentence of each image
    sentences = [sentence_of(batch, row, model.vocab) for row in rows]
    real = batch.images[:SENTENCES].float().cpu()
    made = model.generate(sentences, SAMPLES, seed=0).cpu()
    drawn = [torch.cat([image[None], samples]) for image, samples in zip(real, made, strict=True)]
    title = "a real image, and what is drawn of its sentence"
    pictures: dict[str, Picture] = {"samples": rows_page(drawn, wrapped(sentences), title, between=BETWEEN)}

    pairs = list(pairwise(sentences))[::2]
    if pairs:
        ways = [model.interpolate(a, b, STEPS, seed=0).cpu() for a, b in pairs]
        labels = wrapped([f"{a} → {b}" for a, b in pairs])
        pictures["interpolation"] = rows_page(ways, labels, "from sentence to sentence, at one noise", between=BETWEEN)

    changed = [variants for sentence in sentences for variants in exchanged(sentence, model.attributes)][:SENTENCES]
    if changed:
        drawn = [model.generate(variants, 1, seed=0)[:, 0].cpu() for variants in changed]
        labels = wrapped([" / ".join(marked(variants)) for variants in changed])
        pictures["words"] = rows_page(drawn, labels, "one word changed at a time, at one noise", between=BETWEEN)
    return pictures


def sentence_of(batch: CaptionBatch, row: int, vocab: Sequence[str]) -> str:
    return " ".join(vocab[i] for i in batch.captions[row, : int(batch.lengths[row])].tolist())


def exchanged(sentence: str, attributes: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """For each attribute whose value the sentence names in full: the sentence, and the same with each other value."""
    found = []
    for values in attributes.values():
        for value in values:
            if f" {value} " in f" {sentence} ":
                others = [other for other in values if other != value]
                padded = f" {sentence} "
                found.append([sentence, *(padded.replace(f" {value} ", f" {other} ").strip() for other in others)])
                break
    return found


def marked(variants: Sequence[str]) -> list[str]:
    """The first sentence in full, and only the words of the others that are not in it."""
    words = set(variants[0].split())
    return [variants[0], *(" ".join(word for word in text.split() if word not in words) for text in variants[1:])]


def wrapped(texts: Sequence[str]) -> list[str]:
    return [textwrap.fill(text, 28) for text in texts]
