"""The pictures that explain a VQA model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.parts.evaluating import evaluating
from lit_models.scores.vqa import score_of
from lit_models.vqa import AttentionFact

if TYPE_CHECKING:
    from datamodules.parts.visual_questions import VQABatch
    from lit_models.vqa import VQA

RIGHT, WRONG = "#1a7f37", "#c62828"


def illustrate(model: VQA, batch: VQABatch) -> dict[str, Figure]:
    """Questions with their images, truths and answers; where the model attends; confusions by question type."""
    assert model.confusions is not None
    figures = {"confusion": confusion_figure(model.confusions, model.answers, model.question_types)}
    if batch.images.shape[1] not in (1, 3):  # cached features, not pictures
        return figures
    attention = None
    with evaluating(model), torch.no_grad():
        logits = model(batch)
        if isinstance(model.fact, AttentionFact) and model.encoder is not None:
            grid = model.encoder(batch.images)
            question = model.encode_question(batch.questions, batch.lengths)
            attention = model.fact.attend(grid, question, batch.image_index, batch.question_index)
            attention = attention.unflatten(1, grid.shape[2:])
    figures["questions"] = question_figure(logits, batch, model.vocab, model.answers, attention)
    return figures


def question_figure(
    logits: Tensor,
    batch: VQABatch,
    vocab: Sequence[str],
    answers: Sequence[str],
    attention: Tensor | None = None,
    columns: int = 6,
    rows: int = 3,
) -> Figure:
    """A grid of images, each with one question, its true answer and the model's two best answers.

    Wrong answers come first, since they are the most interesting. ``attention`` (Q, h, w) is laid over the images.
    """
    truth = batch.answers if batch.answers.dim() == 1 else batch.answers.argmax(1)
    probabilities = logits.float().softmax(1)
    score = score_of(logits.argmax(1), batch.answers)
    # One question an image, the worst answered, so that the grid shows as many images as it has places.
    chosen: dict[int, int] = {}
    for pair in score.argsort().tolist():
        chosen.setdefault(int(batch.image_index[pair]), pair)
    pairs = list(chosen.values())[: columns * rows]
    rows = max(1, -(-len(pairs) // columns))
    figure = Figure(figsize=(2.1 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, pair in zip(axes, pairs, strict=False):
        image = batch.images[batch.image_index[pair]].float().cpu().clamp(0, 1)
        height, width = image.shape[1:]
        axis.imshow(image.movedim(0, -1).expand(-1, -1, 3).numpy())
        if attention is not None:
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.imshow(attention[pair].float().cpu().numpy(), cmap="inferno", alpha=0.55, extent=extent)
        row = int(batch.question_index[pair])
        words = [vocab[i] for i in batch.questions[row, : int(batch.lengths[row])].tolist()]
        best = probabilities[pair].topk(min(2, len(answers)))
        given = "  ".join(
            f"{answers[i]} {p:.0%}" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        question = textwrap.fill(" ".join(words) + "?", 26)
        axis.set_title(f"{question}\ntrue: {answers[int(truth[pair])]}", fontsize=8)
        axis.text(
            0.5,
            -0.04,
            given,
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=8,
            weight="bold",
            color=RIGHT if score[pair] >= 0.5 else WRONG,
        )
    return figure


def confusion_figure(
    confusions: Tensor, answers: Sequence[str], question_types: Sequence[str], most: int = 16
) -> Figure:
    """One matrix per question type: rows are true, columns given answers, and each row is divided by its sum.

    ``confusions`` (K, A, A) are counts. The matrix shows the ``most`` frequent answers that occur for the type.
    """
    counts = confusions.double().cpu()
    kinds = [k for k in range(len(question_types)) if counts[k].sum() > 0]
    figure = Figure(figsize=(4.2 * max(1, len(kinds)), 4.2), layout="constrained")
    for axis, k in zip(figure.subplots(1, max(1, len(kinds)), squeeze=False)[0], kinds, strict=True):
        occurrences = counts[k].sum(0) + counts[k].sum(1)
        shown = occurrences.argsort(descending=True)[: min(most, int((occurrences > 0).sum()))].sort().values
        matrix = counts[k][shown][:, shown]
        total = counts[k][shown].sum(1, keepdim=True).clamp_min(1)
        share = (matrix / total).numpy()
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        names = [answers[i] for i in shown.tolist()]
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        accuracy = float(counts[k].diagonal().sum() / counts[k].sum())
        axis.set_title(f"{question_types[k]}: {accuracy:.1%} of {int(counts[k].sum())}", fontsize=9)
        axis.set_xlabel("given")
        axis.set_ylabel("true")
        for i in range(len(names)):
            for j in range(len(names)):
                if share[i, j] >= 0.005:
                    color = "white" if share[i, j] > 0.6 else "black"
                    axis.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=color)
    return figure
