"""The pictures that explain a VQA model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from lit_models.figures.canvas import (
    ATTENTION,
    Captioned,
    Picture,
    attended,
    captioned_page,
    joined,
    matrix_page,
    pixels_of,
)
from lit_models.figures.fonts import DPI
from lit_models.parts.evaluating import evaluating
from lit_models.scores.vqa import score_of, truth_of
from lit_models.vqa import AttentionFact

if TYPE_CHECKING:
    from datamodules.parts.visual_questions import VQABatch
    from lit_models.vqa import VQA

RIGHT, WRONG = "#1a7f37", "#c62828"


def illustrate(model: VQA, batch: VQABatch) -> dict[str, Picture]:
    """Questions with their images, truths and answers; where the model attends; confusions by question type."""
    assert model.confusions is not None
    made: dict[str, Picture] = {}
    if model.confusions.any():  # else no question has one of the answers
        made["confusion"] = confusion_page(model.confusions, model.answers, model.question_types)
    if batch.images.shape[1] not in (1, 3):  # cached features, not pictures
        return made
    attention = None
    with evaluating(model), torch.no_grad():
        logits = model(batch)
        if isinstance(model.fact, AttentionFact) and model.encoder is not None:
            grid = model.encoder(batch.images)
            question = model.encode_question(batch.questions, batch.lengths)
            attention = model.fact.attend(grid, question, batch.image_index, batch.question_index)
            attention = attention.unflatten(1, grid.shape[2:])
    made["questions"] = questions_page(logits, batch, model.vocab, model.answers, attention)
    return made


def questions_page(
    logits: Tensor,
    batch: VQABatch,
    vocab: Sequence[str],
    answers: Sequence[str],
    attention: Tensor | None = None,
    columns: int = 6,
    rows: int = 3,
) -> Image.Image:
    """A grid of images, each with one question, its true answer and the model's two best answers.

    Wrong answers come first, since they are the most interesting. ``attention`` (Q, h, w) is laid over the images.
    """
    truth = truth_of(batch.answers)
    soft = batch.answers.dim() == 2
    probabilities = logits.float().sigmoid() if soft else logits.float().softmax(1)
    score = score_of(logits.argmax(1), batch.answers)
    # One question an image, the worst answered, so that the grid shows as many images as it has places.
    chosen: dict[int, int] = {}
    for pair in score.argsort().tolist():
        chosen.setdefault(int(batch.image_index[pair]), pair)
    pairs = list(chosen.values())[: columns * rows]
    cells = []
    for pixels, pair in zip(pixels_of(batch.images[batch.image_index[pairs]], 1.9 * DPI), pairs, strict=True):
        row = int(batch.question_index[pair])
        words = [vocab[i] for i in batch.questions[row, : int(batch.lengths[row])].tolist()]
        best = probabilities[pair].topk(min(2, len(answers)))
        right = answers[int(truth[pair])] if truth[pair] >= 0 else "(none of the answers)"
        cells.append(
            Captioned(
                pixels if attention is None else attended(pixels, attention[pair], 0.55),
                f"{textwrap.fill(' '.join(words) + '?', 26)}\ntrue: {right}",
                "  ".join(
                    f"{answers[i]} {p:.0%}" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ),
                RIGHT if score[pair] >= 0.5 else WRONG,
            )
        )
    note = "Below each picture the model's two best answers, green if the first is right, red if not."
    note += "" if attention is None else f" {ATTENTION}"
    return captioned_page(cells, min(columns, len(cells)), note=note)


def confusion_page(
    confusions: Tensor, answers: Sequence[str], question_types: Sequence[str], most: int = 16
) -> Image.Image:
    """One matrix per question type: rows are true, columns given answers, and each row is divided by its sum.

    ``confusions`` (K, A, A) are counts. The matrix shows the ``most`` frequent answers that occur for the type.
    """
    pages = []
    for name, counts in zip(question_types, confusions.double().cpu(), strict=True):
        if (total := counts.sum()) == 0:
            continue
        occurrences = counts.sum(0) + counts.sum(1)
        shown = occurrences.argsort(descending=True)[: min(most, int((occurrences > 0).sum()))].sort().values
        shares = counts[shown][:, shown] / counts[shown].sum(1, keepdim=True).clamp_min(1)
        title = f"{name}: {float(counts.diagonal().sum() / total):.1%} of {int(total)}"
        pages.append(matrix_page(shares.numpy(), [answers[i] for i in shown.tolist()], title, "given", "true"))
    return joined(pages)
