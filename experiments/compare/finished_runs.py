"""Reads finished runs from their folders; broken and unfinished ones get a reason."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.checks import nearest
from common.files import matching
from experiments.arguments import Mistake
from experiments.run_folder import RunFolder, read_record

MARKS = {"config.yaml", "manifest.json", "summary.json", "metrics.csv", "checkpoints", ".lock"}
"""a folder that holds any of these is a run's folder"""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


@dataclass
class Run:
    """One run as read from its folder: ``config`` is flat (``model.init_args.fusion``), including lists."""

    folder: RunFolder
    config: dict[str, Any]
    summary: dict[str, Any]
    commit: str

    def metrics(self) -> dict[str, Any]:
        """Test metrics by their own names, validation metrics as ``best/val/…`` and ``last/val/…``."""
        values: dict[str, Any] = dict(self.summary.get("test") or {})
        for when in ("best", "last"):
            of_stage = self.summary.get(when) or {}
            values |= {f"{when}/{name}": value for name, value in of_stage.items() if "/" in name}
        return values

    def curve(self, metric: str) -> dict[int, float]:
        """The metric's value at each step of ``metrics.csv`` that has one; of two rows for a step, the later counts."""
        with self.folder.metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(metric)]
        points = {int(row["step"]): float(row[metric]) for row in rows}
        return {step: points[step] for step in sorted(points) if math.isfinite(points[step])}


def find_folders(places: list[str], left_out: dict[str, str]) -> list[RunFolder]:
    """The run folders at, below, or matching these places; places without a run go to ``left_out``.

    Raises:
        Mistake: nothing has this name.
    """
    found: dict[str, RunFolder] = {}
    for place in places:
        matches = [str(path) for path in matching(place)]
        if not matches:
            near = nearest(place, map(str, Path(place).parent.glob("*")))
            raise Mistake(f"{place}: no such folder; expected a run, a folder that contains runs, or a glob{near}")
        for match in matches:
            holds_one = False
            for path, folders, files in os.walk(match):
                if MARKS & {*folders, *files}:
                    holds_one = True
                    found.setdefault(os.path.realpath(path), RunFolder(Path(os.path.normpath(path))))
                    folders.clear()
                folders[:] = sorted(name for name in folders if not name.startswith("."))
            if not holds_one:
                left_out[match] = "no run in it" if os.path.isdir(match) else "no folder"
    return list(found.values())


def read_run(folder: RunFolder) -> Run:
    """Reads the records of a run.

    Raises:
        ValueError: a record is missing or cannot be read; says which.
    """
    for path in (folder.config, folder.manifest, folder.summary):
        if not path.is_file():
            raise ValueError(f"unfinished: no {path.name}")
    try:
        config = yaml.load(folder.config.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"broken: {folder.config.name} is not valid YAML ({' '.join(str(error).split())})") from None
    try:
        manifest, summary = read_record(folder.manifest), read_record(folder.summary)
    except ValueError as error:
        raise ValueError(f"broken: {str(error).removeprefix(f'{folder.path}{os.sep}')}") from None
    if not all(isinstance(content, dict) for content in (config, manifest, summary)):
        raise ValueError("broken: config.yaml, manifest.json or summary.json does not contain a mapping")
    if not summary.get("test") and config.get("test_after_fit", True):
        step = (summary.get("last") or {}).get("step", "none")
        raise ValueError(f"unfinished: no test in summary.json (step of the last validation: {step})")
    git = (manifest.get("starts") or [{}])[-1].get("git") or {}
    commit = f"{str(git.get('commit'))[:10]}{' with changes' if git.get('dirty') else ''}"
    return Run(folder, flatten(config), summary, commit)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings flattened into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
