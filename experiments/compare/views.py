"""Formats of a comparison: a table for people, CSV, JSON, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.compare.groups import Group, short, text

DIGITS = {"wall_seconds": 1, "samples_per_second": 0, "characters_per_second": 0, "parameters": 0}
"""after the point; other metrics have four"""


def _rows(groups: list[Group]) -> list[list[str]]:
    """The heading and one row per group."""
    if not groups:
        return []
    rows = [[*map(short, groups[0].keys), "n", *groups[0].metrics]]
    for group in groups:
        cells = []
        for name, found in group.metrics.items():
            shown = [f"{value:.{DIGITS.get(name, 4)}f}" for value in found or () if value is not None]
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
    """One column per key (in full), ``n``, and two per metric: its mean under its own name, and ``…_std``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = list(groups[0].metrics) if groups else []
    writer.writerow(
        [*(groups[0].keys if groups else ()), "n", *(f"{name}{end}" for name in names for end in ("", "_std"))]
    )
    for group in groups:
        keys = [json.dumps(value) if isinstance(value, list | dict) else value for value in group.keys.values()]
        writer.writerow([*keys, len(group.runs), *(x for name in names for x in group.metrics[name] or (None, None))])
    return buffer.getvalue()


def as_json(groups: list[Group], left_out: dict[str, str], notes: list[str], picture: Path | None) -> str:
    found = {
        "groups": [
            {
                "config": group.keys,
                "n": len(group.runs),
                "seeds": [run.config.get("seed_everything") for run in group.runs],
                "runs": [str(run.folder.path) for run in group.runs],
                "metrics": {
                    name: found and {"mean": found[0], "std": found[1]} for name, found in group.metrics.items()
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
