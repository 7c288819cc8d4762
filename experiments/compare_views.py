"""How a comparison is shown: a table for people, CSV, JSON, Markdown, and a picture of the curves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments.arguments import Mistake

if TYPE_CHECKING:
    from experiments.compare import Group

DIGITS = {"wall_seconds": 1, "samples_per_second": 0, "parameters": 0}
"""after the point; other figures have four"""
PICTURES = (".png", ".pdf", ".svg")


def short(key: str) -> str:
    """As the command line has it: ``model.fusion`` for ``model.init_args.fusion``."""
    return key.replace(".init_args", "")


def text(value: Any) -> str:
    """A configuration's value in a table; None is a dash."""
    return value if isinstance(value, str) else "–" if value is None else json.dumps(value, default=str)


def _rows(groups: list[Group]) -> list[list[str]]:
    """The heading and a row a group."""
    if not groups:
        return []
    rows = [[*map(short, groups[0].keys), "n", *groups[0].figures]]
    for group in groups:
        cells = []
        for name, figure in group.figures.items():
            shown = [f"{value:.{DIGITS.get(name, 4)}f}" for value in figure or () if value is not None]
            cells.append(" ± ".join(shown) or "–")
        rows.append([*map(text, group.keys.values()), str(len(group.runs)), *cells])
    return rows


def below(left_out: dict[str, str], notes: list[str], picture: Path | None) -> list[str]:
    """The lines below a table."""
    lines = [f"note: {note}" for note in notes]
    if left_out:
        lines += ["not in the table:", *(f"  {path}: {reason}" for path, reason in left_out.items())]
    return lines + ([f"picture: {picture}"] if picture else [])


def as_table(groups: list[Group], left_out: dict[str, str], notes: list[str], picture: Path | None) -> str:
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    heading, *rows = _rows(groups) or [["no finished run"]]
    keys = len(groups[0].keys) if groups else 1
    table = Table()
    for i, name in enumerate(heading):
        table.add_column(name, justify="left" if i < keys else "right")
    for row in rows:
        table.add_row(*row)
    with console.capture() as captured:
        console.print(table, markup=False)
        for line in below(left_out, notes, picture):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    return captured.get()


def as_markdown(groups: list[Group], left_out: dict[str, str], notes: list[str], picture: Path | None) -> str:
    heading, *rows = _rows(groups) or [["no finished run"]]
    keys = len(groups[0].keys) if groups else 1
    rule = ["---" if i < keys else "---:" for i in range(len(heading))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heading, rule, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    points = [f"- {line.strip()}" for line in below(left_out, notes, None)]
    image = ["", f"![curves]({picture})"] if picture else []
    return "\n".join([*lines, *([""] if points else []), *points, *image]) + "\n"


def as_csv(groups: list[Group], *_: object) -> str:
    """A column a key (in full), ``n``, and two a figure: its mean by its own name, and ``…_std``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = list(groups[0].figures) if groups else []
    writer.writerow(
        [*(groups[0].keys if groups else ()), "n", *(f"{name}{end}" for name in names for end in ("", "_std"))]
    )
    for group in groups:
        keys = [json.dumps(value) if isinstance(value, list | dict) else value for value in group.keys.values()]
        writer.writerow([*keys, len(group.runs), *(x for name in names for x in group.figures[name] or (None, None))])
    return buffer.getvalue()


def as_json(groups: list[Group], left_out: dict[str, str], notes: list[str], picture: Path | None) -> str:
    found = {
        "groups": [
            {
                "config": group.keys,
                "n": len(group.runs),
                "seeds": [run.config.get("seed_everything") for run in group.runs],
                "runs": [str(run.folder.path) for run in group.runs],
                "figures": {
                    name: figure and {"mean": figure[0], "std": figure[1]} for name, figure in group.figures.items()
                },
            }
            for group in groups
        ],
        "left_out": left_out,
        "notes": notes,
        "picture": str(picture) if picture else None,
    }
    return json.dumps(found, indent=2, default=str) + "\n"


VIEWS: dict[str, Callable[[list[Group], dict[str, str], list[str], Path | None], str]]
VIEWS = {"table": as_table, "csv": as_csv, "json": as_json, "markdown": as_markdown}


def draw(groups: list[Group], metric: str, file: Path, notes: list[str]) -> Path | None:
    """Writes the curves of ``metric``: a line for the mean of each group's runs, a band of ± one standard deviation.

    Runs that were measured at different steps are interpolated linearly where all of a group have values. A run
    without a curve goes to ``notes``; nothing is written where no run has one.

    Raises:
        Mistake: no such folder, or no known kind of picture.
    """
    if file.suffix not in PICTURES:
        raise Mistake(f"--picture {file}: expected a name that ends in {', '.join(PICTURES)}")
    if not file.parent.is_dir():
        raise Mistake(f"--picture {file}: no folder {str(file.parent)!r}")
    import numpy as np
    from cycler import cycler
    from matplotlib.colors import TABLEAU_COLORS
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=metric)
    # Of many groups each has a line of its own, by color and then by dashes.
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=TABLEAU_COLORS.values()))
    many = len(groups) > 4
    for group in groups:
        curves = []
        for run in group.runs:
            try:
                curve = run.curve(metric)
            except (OSError, ValueError, KeyError, TypeError) as error:
                notes.append(f"{run.folder.path}: no curve, metrics.csv cannot be read ({error})")
                continue
            if curve:
                curves.append(curve)
            else:
                notes.append(f"{run.folder.path}: no curve, metrics.csv has no {metric}")
        steps = np.unique([step for curve in curves for step in curve])
        common = [(min(curve), max(curve)) for curve in curves]
        steps = steps[
            (steps >= max((a for a, _ in common), default=0)) & (steps <= min((b for _, b in common), default=0))
        ]
        if not len(steps):
            continue
        values = np.stack([np.interp(steps, list(curve), list(curve.values())) for curve in curves])  # (runs, steps)
        mean = values.mean(0)
        (line,) = axes.plot(
            steps, mean, label=group.short_label if many else group.label, marker="." if len(steps) < 40 else None
        )
        if len(curves) > 1:
            std = values.std(0, ddof=1)
            axes.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)
    if not axes.lines:
        return None
    if many:
        title = ", ".join(key.rpartition(".")[2] for key in groups[0].keys)
        figure.legend(
            loc="outside right center", title=title, title_fontsize="x-small", fontsize="x-small", frameon=False
        )
    else:
        figure.legend(loc="outside upper left", fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150, bbox_inches="tight")
    return file
