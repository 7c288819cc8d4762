"""The table that a run ends with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.run_folder import RunFolder, read_record


def print_report(folder: RunFolder, subcommand: str, metrics: dict[str, Any]) -> None:
    """Prints metrics, time, speed, paths and how to continue: for ``fit`` from its summary, else from ``metrics``."""
    summary = read_record(folder.summary) if subcommand == "fit" else {}
    table = Table(title=f"{folder.name}  {folder.id}", title_justify="left")
    table.add_column("metric")
    stages = {"val": "best", "test": "test"} if summary else {"": subcommand}
    columns = {heading: _values(summary.get(heading, metrics), stage) for stage, heading in stages.items()}
    if not columns.get("test", True):  # there was none, since the data have none or none was wanted
        del columns["test"]
    for heading in columns:
        table.add_column({"best": "validation (best)"}.get(heading, heading), justify="right")
    names = dict.fromkeys(name for values in columns.values() for name in values)
    for name in names:
        table.add_row(name, *(_number(values.get(name)) for values in columns.values()))
    if summary:
        table.add_section()
        table.add_row("wall time", f"{summary['wall_seconds']:.0f} s")
        for key in summary:
            if key.endswith("_per_second"):
                table.add_row(key.replace("_", " "), f"{summary[key]:.0f}")
    console = Console(width=None if os.isatty(1) else 100)
    console.print(table)
    path = _relative(folder.path)
    lines = {"run": path}
    if folder.figures.is_dir():
        lines["figures"] = f"{path}/figures"
    if subcommand == "fit":
        lines["go on"] = f"python train.py fit -c {path}/config.yaml --ckpt_path last --run.id {folder.id}"
        if folder.best_checkpoint():
            lines["test again"] = f"python train.py test --ckpt_path {path}/checkpoints/best.ckpt"
    for name, text in lines.items():
        console.print(f"{name:>10}  {text}", soft_wrap=True, highlight=False)


def _values(metrics: dict[str, Any], stage: str) -> dict[str, float | None]:
    """The metrics of a stage, without the stage's prefix."""
    chosen = {name: value for name, value in metrics.items() if name.startswith(stage) and "/" in name}
    return {name.partition("/")[2]: None if value is None else float(value) for name, value in chosen.items()}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _relative(path: Path) -> str:
    """The path relative to the working directory, if it is below it."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
