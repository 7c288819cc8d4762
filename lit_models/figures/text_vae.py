"""The pictures that explain a text VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lit_models.figures.canvas import Picture, lines_pictures
from lit_models.figures.seq_autoencoder import LINES
from lit_models.figures.vae import kl_figure

if TYPE_CHECKING:
    from datamodules.sequences import SequenceBatch
    from lit_models.text_vae import TextVAE

DRAWS = 3
"""number of codes drawn for each line"""


def illustrate(model: TextVAE, batch: SequenceBatch) -> dict[str, Picture]:
    """Samples; of a model with a code also reconstructions, homotopies, and what each dimension holds."""
    pictures = lines_pictures("samples", "samples", samples_of(model))
    if model.mean_kl is None:
        return pictures
    # Evenly from the batch, since evaluation goes through the data in their order.
    chosen = torch.linspace(0, len(batch.lengths) - 1, min(len(batch.lengths), LINES)).long().tolist()
    lines = ["".join(model.vocab[code] for code in batch.values[i, : batch.lengths[i]].tolist()) for i in chosen]
    rebuilt, between = reconstructions_of(model, lines), homotopies_of(model, lines)
    pictures |= lines_pictures("reconstructions", "lines, and what their codes are decoded to", rebuilt)
    pictures |= lines_pictures("homotopies", "between the codes of two lines", between)
    return pictures | {"kl": kl_figure(model.mean_kl)}


def reconstructions_of(model: TextVAE, lines: list[str]) -> str:
    """Each line, the decoded mean of its code, and decoded draws of it: similar, but not the same."""
    rows = [lines, model.reconstruct(lines)]
    rows += [model.reconstruct(lines, sample=True, seed=seed) for seed in range(DRAWS)]
    labels = ["line", "mean", *["draw"] * DRAWS]
    return "\n\n".join(
        "\n".join(f"{label:6}{text}" for label, text in zip(labels, texts, strict=True))
        for texts in zip(*rows, strict=True)
    )


def homotopies_of(model: TextVAE, lines: list[str]) -> str:
    """Lines decoded between the codes of two lines."""
    pairs = list(zip(lines[:8:2], lines[1:8:2], strict=False)) or [(lines[0], lines[0])]
    return "\n\n".join("\n".join(model.interpolate(a, b, 7)) for a, b in pairs)


def samples_of(model: TextVAE) -> str:
    """Lines for codes from the prior (or from the decoder alone), the likeliest one of each and drawn ones."""
    drawn = "\n".join(["drawn, temperature 1", "", *model.sample(LINES, seed=0)])
    likeliest = ["likeliest characters of codes from the prior", "", *model.sample(LINES, 0.0, seed=0)]
    return "\n".join([*likeliest, "", drawn]) if model.latent_dim else drawn
