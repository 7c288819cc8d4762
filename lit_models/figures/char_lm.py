"""The pictures that explain a character language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lit_models.char_lm import PASSAGE
from lit_models.figures.canvas import Picture, joined, shaded_text_page, text_page
from lit_models.figures.grids import panels
from lit_models.figures.text_probes import (
    accuracy_by_distance,
    closing_choices,
    detector_cells,
    gradient_reach,
)
from lit_models.parts.evaluating import evaluating

if TYPE_CHECKING:
    from lit_models.char_lm import CharLM

TEMPERATURES = (0.5, 0.8, 1.0)
COLUMNS, ROWS = 72, 14  # of a passage that is shown
REACH = 100  # steps back that the gradient is followed
GATES = {
    "rnn": {"h": "state"},
    "gru": {"r": "reset", "z": "update"},
    "lstm": {"i": "input", "f": "forget", "o": "output"},
}
BOUNDS = (1, 10, 20, 40, 80)


def illustrate(model: CharLM, batch: object) -> dict[str, Picture]:
    """Samples, surprise over a passage, cells with a meaning, saturated gates, and how far the gradient reaches.

    The passage is the beginning of the text that was last evaluated, of which a batch has only windows.
    """
    codes = torch.cat(model.passage)[:PASSAGE]
    with evaluating(model), torch.no_grad():
        characters = [model.vocab[code] for code in codes.tolist()]
        text = "".join(character if len(character) == 1 else "\ufffd" for character in characters)  # <unk> is longer
        opened = model.recurrent.open(model.embed(codes[None]))
        logits = model.decoder(model.recurrent.norms[-1](torch.stack(opened[-1]["h"], 1)))[0]
        written = samples(model)
        made: dict[str, Picture] = {
            "samples": samples_page(written),
            "samples.txt": "\n".join(f"---- {title} ----\n{sample}\n" for title, sample in written.items()),
            "surprise": surprise_page(text, logits[:-1].log_softmax(1), codes[1:]),
            "saturation": saturation_figure(opened, model.hparams["cell"]),
            "gradient_reach": own_reach_figure(model, codes),
        }
        if (cells := cells_page(text, opened, model.hparams["cell"])) is not None:
            made["cells"] = cells
        choices = closing_choices(logits[:-1], text[1:], model.vocab)
        if len(choices) >= 10:
            made["closing"] = closing_figure({model.hparams["cell"]: choices})
    return made


def samples(model: CharLM, length: int = 500) -> dict[str, str]:
    """What the model writes at three temperatures."""
    return {
        f"temperature {temperature}": str(model.sample(length=length, temperature=temperature, seed=0))
        for temperature in TEMPERATURES
    }


def samples_page(texts: Mapping[str, str], columns: int = 55, rows: int = 25) -> Image.Image:
    """The beginning of each text, in broken lines, below its title."""
    shown = {}
    for title, text in texts.items():
        lines = text.expandtabs(4).split("\n")
        broken = [line[i : i + columns] for line in lines for i in range(0, max(1, len(line)), columns)]
        shown[title] = "\n".join(broken[:rows])
    return text_page(shown)


def surprise_page(text: str, log_p: Tensor, targets: Tensor) -> Image.Image:
    """Each character on the color of its −ln p: white was expected, red surprises."""
    nats = -log_p.gather(1, targets[:, None])[:, 0].float().cpu().numpy()
    title = f"surprise: {nats.mean():.3f} nats a character over {len(nats)} characters"
    return shaded_text_page(*laid_out(text[1:], nats), "Reds", 0, 6, title, "nats")


def cells_page(text: str, opened: list[dict[str, list[Tensor]]], cell: str, count: int = 3) -> Image.Image | None:
    """The units that follow a property of the text most closely, over the text (Karpathy et al. 2015, figure 2)."""
    memory = [torch.stack(layer["c"] if cell == "lstm" else layer["h"], 1)[0] for layer in opened]
    activations = torch.cat([(m.tanh() if cell == "lstm" else m) for m in memory], 1).float().cpu().numpy()
    hidden = memory[0].shape[1]
    pages = []
    for name, unit, correlation in detector_cells(activations, text)[:count]:
        title = f"{name}: layer {unit // hidden + 1}, unit {unit % hidden}, correlation {correlation:+.2f}"
        values = activations[:, unit]
        pages.append(
            shaded_text_page(*laid_out(text, values), "coolwarm", -1, 1, title, "tanh c" if cell == "lstm" else "h")
        )
    return joined(pages, down=True) if pages else None


def laid_out(text: str, values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The beginning of a text as lines of at most :data:`COLUMNS` characters, and the value of each (lines, COLUMNS).

    Line breaks and tabs are characters too, and shown.
    """
    lines, grid = [""], np.full((ROWS, COLUMNS), np.nan)
    for char, value in zip(text, values, strict=True):
        if len(lines[-1]) == COLUMNS:
            lines.append("")
        if len(lines) > ROWS:
            break
        grid[len(lines) - 1, len(lines[-1])] = value
        lines[-1] += {"\n": "↵", "\t": "→"}.get(char, char)
        if char == "\n":
            lines.append("")
    count = max(1, min(ROWS, len(lines) - (lines[-1] == "")))
    return lines[:count], grid[:count]


def saturation_figure(opened: list[dict[str, list[Tensor]]], cell: str) -> Figure:
    """For each unit, how often its gate is nearly closed and nearly open (Karpathy et al. 2015, figure 3).

    A gate counts as closed below 0.1 and as open above 0.9; the state of a simple RNN beyond ∓0.9.
    """
    gates = GATES[cell]
    low = -0.9 if cell == "rnn" else 0.1
    figure, axes = panels(3.6 * len(gates), 3.8, columns=len(gates))
    for axis, (gate, name) in zip(axes, gates.items(), strict=True):
        for number, layer in enumerate(opened, 1):
            values = torch.stack(layer[gate], 1)[0].float()
            right, left = (values > 0.9).float().mean(0).cpu(), (values < low).float().mean(0).cpu()
            axis.scatter(right, left, s=12, alpha=0.6, label=f"layer {number}")
        axis.plot([0, 1], [1, 0], color="0.8", lw=1, zorder=0)
        axis.set(xlabel="share of time open (right-saturated)", ylabel="closed (left-saturated)", title=name)
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axis.legend(fontsize=8)
    return figure


def own_reach_figure(model: CharLM, codes: Tensor) -> Figure:
    """How far back the gradient reaches, before training (weights newly drawn) and now."""
    arguments = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):  # weights that gradients can be taken of
        torch.random.default_generator.manual_seed(0)  # the CPU's alone
        untrained = type(model)(**arguments).to(codes.device).eval()
    steps = min(REACH, (len(codes) - 1) // 2)
    windows = codes[: len(codes) // (steps + 1) * (steps + 1)].view(-1, steps + 1)[:16]
    return reach_figure({"untrained": gradient_reach(untrained, windows), "trained": gradient_reach(model, windows)})


def reach_figure(reach: dict[str, dict[str, Tensor]]) -> Figure:
    """The results of :func:`gradient_reach` for several models, by name, over the lag."""
    figure, (axis,) = panels(7, 4.2, margins=(0.7, 0.15, 0.5, 0.1))
    for name, norms in reach.items():
        color = None
        for state, values in norms.items():
            style = "-" if state == "h" else "--"
            (line,) = axis.plot(values.cpu(), style, color=color, lw=1.6, label=f"{name}, ∂L/∂{state}")
            color = line.get_color()
    axis.set(xlabel="lag (characters before the prediction)", ylabel="log10 of the gradient's norm")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure


def closing_figure(choices: dict[str, list[tuple[int, bool]]]) -> Figure:
    """How often the right closing bracket or quote is the likeliest one, by the distance to the opening one."""
    figure, (axis,) = panels(7, 3.8, margins=(0.7, 0.15, 0.5, 0.1))
    for name, made in choices.items():
        rows = accuracy_by_distance(made, BOUNDS)
        axis.plot([row[2] for row in rows], "o-", label=f"{name} ({len(made)} closed)")
    axis.set_xticks(range(len(BOUNDS)), [row[0] for row in rows])
    axis.set(xlabel="characters since it was opened", ylabel="right one is the likeliest", ylim=(0, 1.03))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure
