"""Compares runs by what is in their folders: no server, nothing of Lightning.

    python train.py compare runs/vqa/easy_vqa                                     every run in a folder
    python train.py compare 'runs/*/digits/*' --metric val/knn_accuracy           those that a glob matches
    python train.py compare runs/vqa --by model.fusion --format markdown          by the values of these keys

Runs whose configurations differ in nothing but the seed (and in labels, places and what is shown meanwhile) are one
group: n runs, mean ± sample standard deviation. A run that is broken or unfinished is in no group but in the list
below the table. The picture shows the means of the metric over the steps, with ± one standard deviation.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.arguments import ArgumentParser, Mistake, nearest
from experiments.run_folder import RunFolder, read_json

SEED = "seed_everything"
IRRELEVANT = {
    *("run.id", "run.root", "run.project", "run.tags", "ckpt_path", "weights_only"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary", "data.init_args.root"),
}
"""configuration keys that change no number"""
MARKS = {"config.yaml", "manifest.json", "summary.json", "metrics.csv", "checkpoints", ".lock"}
"""a folder with any of these is a run's"""
PICTURES = (".png", ".pdf", ".svg")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


@dataclass
class Run:
    """One run as it was read: ``config`` is flat (``model.init_args.fusion``), lists and all."""

    folder: RunFolder
    config: dict[str, Any]
    summary: dict[str, Any]
    commit: str

    def metrics(self) -> dict[str, Any]:
        """Test metrics by their own names, those of validation as ``best/val/…`` and ``last/val/…``."""
        values: dict[str, Any] = dict(self.summary.get("test") or {})
        for when in ("best", "last"):
            of_stage = self.summary.get(when) or {}
            values |= {f"{when}/{name}": value for name, value in of_stage.items() if "/" in name}
        return values

    def curve(self, metric: str) -> dict[int, float]:
        """The metric's value at each step of ``metrics.csv`` that has one; the later of two rows of a step counts."""
        with self.folder.metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(metric)]
        points = {int(row["step"]): float(row[metric]) for row in rows}
        return {step: points[step] for step in sorted(points) if math.isfinite(points[step])}


@dataclass
class Group:
    """Runs that are told apart by their seed alone, with the values of the keys that tell them from other groups."""

    keys: dict[str, Any]
    runs: list[Run]
    figures: dict[str, dict[str, float | None] | None]
    """name: mean and sample standard deviation, which one run has not; None where no run has the number"""

    @property
    def label(self) -> str:
        values = ", ".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in self.keys.items())
        return f"{values or self.runs[0].folder.name} (n = {len(self.runs)})"


def find_folders(places: list[str], left_out: dict[str, str]) -> list[RunFolder]:
    """The run folders that are, lie below, or match; what holds none goes to ``left_out``.

    Raises:
        Mistake: nothing has such a name.
    """
    found: dict[str, RunFolder] = {}
    for place in places:
        matches = sorted(glob.glob(place, recursive=True)) if not os.path.exists(place) else [place]
        if not matches:
            beside = [str(path) for path in Path(place).parent.glob("*")]
            raise Mistake(f"{place}: no such folder; expected a run, a folder above runs, or a glob{nearest(place, beside)}")
        for match in matches:
            before = len(found)
            for path, folders, files in os.walk(match):
                if MARKS & {*folders, *files}:
                    found.setdefault(os.path.realpath(path), RunFolder(Path(os.path.normpath(path))))
                    folders.clear()
                folders[:] = sorted(name for name in folders if not name.startswith("."))
            if len(found) == before and os.path.realpath(match) not in found:
                left_out[match] = "no run in it" if os.path.isdir(match) else "no run's folder"
    return list(found.values())


def read_run(folder: RunFolder) -> Run:
    """Reads the records of a run.

    Raises:
        ValueError: what is missing or cannot be read.
    """
    for path in (folder.config, folder.manifest, folder.summary):
        if not path.is_file():
            raise ValueError(f"unfinished: no {path.name}")
    try:
        config = yaml.load(folder.config.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"broken: {folder.config.name} is not YAML ({' '.join(str(error).split())})") from None
    try:
        manifest, summary = read_json(folder.manifest), read_json(folder.summary)
    except ValueError as error:
        raise ValueError(f"broken: {str(error).removeprefix(f'{folder.path}{os.sep}')}") from None
    if not all(isinstance(content, dict) for content in (config, manifest, summary)):
        raise ValueError("broken: config.yaml, manifest.json or summary.json holds no mapping")
    if not summary.get("test") and config.get("test_after_fit", True):
        step = (summary.get("last") or {}).get("step", "none")
        raise ValueError(f"unfinished: no test in summary.json (step of the last validation: {step})")
    git = (manifest.get("starts") or [{}])[-1].get("git") or {}
    commit = f"{str(git.get('commit'))[:10]}{' with changes' if git.get('dirty') else ''}"
    return Run(folder, flatten(config), summary, commit)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def choose_metric(runs: list[Run], asked: str | None) -> str:
    """``asked``, or what the runs' best checkpoints are chosen by: on the test set where all were tested.

    Raises:
        Mistake: no run has it, or the runs watch different ones.
    """
    known = {name.removeprefix("best/").removeprefix("last/") for run in runs for name in run.metrics()}
    if asked:
        if known and asked not in known:
            raise Mistake(f"--metric {asked}: no run has it{nearest(asked, sorted(known))}")
        return asked
    monitors = {str(run.config.get("best.monitor")) for run in runs}
    if len(monitors) > 1:
        raise Mistake(f"the runs watch different metrics ({', '.join(sorted(monitors))}); expected --metric NAME")
    monitor = monitors.pop() if monitors else ""
    test = monitor.replace("val/", "test/", 1)
    return test if all(test in run.metrics() for run in runs) else monitor


def make_groups(runs: list[Run], metrics: list[str], by: list[str] | None) -> list[Group]:
    """Groups by the whole configuration less seed and ``IRRELEVANT``, or ``by`` the values of some keys.

    Raises:
        Mistake: no run's configuration has such a key.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.config))
    if by is None:
        keys = [key for key in known if key not in {SEED, *IRRELEVANT}]
    else:
        full = {_short(key): key for key in known} | {key: key for key in known}  # as on the command line, or in full
        if unknown := [key for key in by if runs and key not in full]:
            raise Mistake(f"--by {unknown[0]}: no such key in the runs' configurations{nearest(unknown[0], full)}")
        keys = [full[key] for key in by] if runs else []
    members: dict[str, list[Run]] = {}
    for run in runs:
        identity = json.dumps([[key in run.config, run.config.get(key)] for key in keys], default=str)
        members.setdefault(identity, []).append(run)
    shown = keys if by else _telling([group[0].config for group in members.values()], keys)
    return [
        Group(
            {key: group[0].config.get(key) for key in shown},
            group,
            {name: _mean_and_std(run.metrics().get(name, run.summary.get(name)) for run in group) for name in metrics},
        )
        for group in members.values()
    ]


def _telling(configs: list[dict[str, Any]], keys: list[str]) -> list[str]:
    """The keys whose values differ, less the arguments of a class that not all have."""
    differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    classes = [key.removesuffix("class_path") + "init_args." for key in differing if key.endswith("class_path")]
    shared = {key for key in differing if all(key in config for config in configs)}
    return [key for key in differing if key in shared or not any(key.startswith(prefix) for prefix in classes)]


def _mean_and_std(values: Iterable[float | None]) -> dict[str, float | None] | None:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return {"mean": statistics.fmean(numbers), "std": statistics.stdev(numbers) if len(numbers) > 1 else None}


def remarks(groups: list[Group], by: list[str] | None) -> list[str]:
    """What a reader of the table should know about the runs in it."""
    notes = []
    for group in groups:
        configs = [run.config for run in group.runs]
        seeds = [config.get(SEED) for config in configs]
        if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1 and by is None}):
            notes.append(f"{group.label}: more than one run of seed {', '.join(twice)}")
        if mixed := _telling(configs, [key for key in configs[0] if key not in {SEED, *IRRELEVANT}]):
            notes.append(f"{group.label}: its runs differ in {', '.join(mixed)}")
        steps = sorted({(run.summary.get("last") or {}).get("step", 0) for run in group.runs})
        if len(steps) > 1:
            notes.append(f"{group.label}: the last validations were at different steps: {', '.join(map(str, steps))}")
    commits = sorted({run.commit for group in groups for run in group.runs})
    return notes + ([f"the runs are of different commits: {', '.join(commits)}"] if len(commits) > 1 else [])


def table_rows(groups: list[Group]) -> list[list[str]]:
    """Heading and rows of the table that people read."""
    digits = {"wall_seconds": 1, "samples_per_second": 0}
    names = list(groups[0].figures) if groups else []
    rows = [[*(_short(key) for key in (groups[0].keys if groups else [])), "n", *names]]
    for group in groups:
        figures = [_figure(group.figures[name], digits.get(name, 4)) for name in names]
        rows.append([*map(_text, group.keys.values()), str(len(group.runs)), *figures])
    return rows


def _figure(figure: dict[str, float | None] | None, digits: int) -> str:
    if figure is None:
        return "–"
    return " ± ".join(f"{value:.{digits}f}" for value in figure.values() if value is not None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "–" if value is None else json.dumps(value, default=str)


def _short(key: str) -> str:
    """As the command line has it: ``model.fusion`` for ``model.init_args.fusion``."""
    return key.replace(".init_args", "")


def as_csv(groups: list[Group]) -> str:
    buffer = io.StringIO()
    names = list(groups[0].figures) if groups else []
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{name}{suffix}" for name in names for suffix in ("", "_std")]
    writer.writerow([*(groups[0].keys if groups else []), "n", *columns])
    for group in groups:
        figures = [group.figures[name] or {"mean": None, "std": None} for name in names]
        values = [value for figure in figures for value in (figure["mean"], figure["std"])]
        writer.writerow([*(json.dumps(v) if isinstance(v, list | dict) else v for v in group.keys.values()), len(group.runs), *values])
    return buffer.getvalue()
