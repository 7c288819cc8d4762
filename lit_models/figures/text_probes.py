"""What a recurrent network keeps of a text: cells with a meaning, closed brackets, the reach of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from lit_models.char_lm import CharLM

CLOSERS = {")": "(", "]": "[", "}": "{", '"': '"'}


def line_position(text: str) -> list[float]:
    """The position of each character in its line."""
    return _running(text, lambda position, char: 0 if char == "\n" else position + 1)


def indentation(text: str) -> list[float]:
    """The number of leading spaces in each character's line, as far as it has been read."""
    values, width, leading = [], 0, True
    for char in text:
        if char == "\n":
            width, leading = 0, True
        elif leading and char in " \t":
            width += 1
        else:
            leading = False
        values.append(float(width))
    return values


def inside_quotes(text: str) -> list[float]:
    """1 between double quotes; an empty line ends an unclosed quote."""
    values, inside, last = [], 0, ""
    for char in text:
        inside = 1 - inside if char == '"' else 0 if char == last == "\n" else inside
        values.append(float(inside))
        last = char
    return values


def bracket_depth(text: str) -> list[float]:
    """The number of open brackets."""
    return _running(text, lambda depth, char: depth + 1 if char in "([{" else max(0, depth - (char in ")]}")))


def inside_comment(text: str) -> list[float]:
    """1 from a ``#`` to the end of its line."""
    return _running(text, lambda inside, char: 1 if char == "#" else 0 if char == "\n" else inside)


def word_position(text: str) -> list[float]:
    """The position of each character in its word."""
    return _running(text, lambda position, char: position + 1 if char.isalnum() else 0)


def capitals(text: str) -> list[float]:
    """1 if a character is a capital letter."""
    return [float(char.isupper()) for char in text]


def _running(text: str, step: Callable[[float, str], float]) -> list[float]:
    values, value = [], 0.0
    for char in text:
        value = step(value, char)
        values.append(float(value))
    return values


DETECTORS: dict[str, Callable[[str], list[float]]] = {
    "position in the line": line_position,
    "indentation": indentation,
    "inside quotes": inside_quotes,
    "open brackets": bracket_depth,
    "inside a comment": inside_comment,
    "position in the word": word_position,
    "capital letters": capitals,
}
"""properties of a text, character by character"""

RARE = 0.02  # a property of fewer characters says little about the cell that happens to go along with it


def detector_cells(activations: np.ndarray, text: str) -> list[tuple[str, int, float]]:
    """For each property that varies in the text, the unit with the strongest correlation, and that correlation.

    Args:
        activations: (N, units) after reading each of the N characters of ``text``.

    Returns:
        (property, unit, correlation), the strongest first.
    """
    centered = activations - activations.mean(0)
    scale = np.sqrt((centered**2).sum(0)) + 1e-12
    found = []
    for name, measure in DETECTORS.items():
        wanted = np.asarray(measure(text))
        if min((wanted > wanted.min()).sum(), (wanted == wanted.min()).sum()) < RARE * len(wanted):
            continue
        wanted = wanted - wanted.mean()
        correlation = wanted @ centered / (scale * np.sqrt((wanted**2).sum()))
        unit = int(np.abs(correlation).argmax())
        found.append((name, unit, float(correlation[unit])))
    return sorted(found, key=lambda item: -abs(item[2]))


def closing_choices(logits: Tensor, text: str, vocab: list[str]) -> list[tuple[int, bool]]:
    """Whether the right closing character is the likeliest one, wherever ``text`` closes something.

    Only the opening bracket or quote tells how to close it, so this requires memory.

    Args:
        logits: (N, V); row k predicts ``text[k]``.

    Returns:
        (distance, right) of each closing character whose opening one stands in ``text``; empty where the vocabulary
        has fewer than two closing characters, since then there is no choice.
    """
    codes = {char: vocab.index(char) for char in CLOSERS if char in vocab}
    if len(codes) < 2:
        return []
    choice = np.array(list(codes))[logits[:, list(codes.values())].argmax(1).cpu().numpy()]
    opened: list[tuple[str, int]] = []
    found = []
    for place, char in enumerate(text):
        if opened and char in CLOSERS and opened[-1][0] == CLOSERS[char]:
            found.append((place - opened.pop()[1], bool(choice[place] == char)))
        elif char in CLOSERS.values():
            opened.append((char, place))
    return found


def accuracy_by_distance(choices: list[tuple[int, bool]], bounds: tuple[int, ...]) -> list[tuple[str, int, float]]:
    """(distances, how many, share right) of :func:`closing_choices`, in the ranges that begin at ``bounds``."""
    rows = []
    for first, end in zip(bounds, [*bounds[1:], None], strict=True):
        right = [r for d, r in choices if d >= first and (end is None or d < end)]
        name = f"{first}–{end - 1}" if end else f"{first} and more"
        rows.append((name, len(right), sum(right) / len(right) if right else float("nan")))
    return rows


def gradient_reach(model: CharLM, codes: Tensor, layer: int = 0) -> dict[str, Tensor]:
    """How strongly the last prediction depends on the state some steps before it.

    With L_T the loss of the last character, the mean over the texts of log10‖∂L_T/∂h_t‖, and of log10‖∂L_T/∂c_t‖ for an
    LSTM, as tensors (T,) by the lag T − t = 0, 1, …

    Args:
        codes: (B, T + 1) of some texts.
        layer: the layer of the states; all paths go through those of the first layer.
    """
    with torch.inference_mode(False), torch.enable_grad():
        codes = codes.clone()
        opened = model.recurrent.open(model.embed(codes[:, :-1]))
        logits = model.decoder(model.recurrent.norms[-1](opened[-1]["h"][-1]))
        loss = F.cross_entropy(logits, codes[:, -1], reduction="sum")
        reach = {}
        for name in ("h", "c"):
            if states := opened[layer].get(name):
                slopes = torch.autograd.grad(loss, states, retain_graph=True)
                norms = torch.stack([slope.norm(dim=1) for slope in slopes[::-1]])
                reach[name] = norms.clamp_min(1e-38).log10().mean(1)
    return reach
