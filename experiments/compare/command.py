"""Compares runs by what is in their folders: no server, nothing of Lightning.

    python train.py compare runs/vqa/easy_vqa                                     every run in a folder
    python train.py compare 'runs/*/digits/*' --metric val/knn_accuracy           those that a glob matches
    python train.py compare runs/vqa --by model.fusion --format markdown          by the values of these keys

Runs whose configurations differ in nothing but the seed (and in labels, places and what is shown meanwhile) are one
group: n runs, mean ± sample standard deviation. A run that is broken or unfinished is in no group but in the list
below the table. The picture shows the means of the metric over the steps, with ± one standard deviation.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checks import nearest
from experiments.arguments import ArgumentParser, Mistake
from experiments.compare.finished_runs import Run, find_folders, read_run
from experiments.compare.picture import draw
from experiments.compare.views import VIEWS, below, short, text

SEED = "seed_everything"
IRRELEVANT = {
    *("run.id", "run.root", "run.project", "run.tags", "ckpt_path", "weights_only"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary", "data.init_args.root"),
}
"""configuration keys that change no number"""


@dataclass
class Group:
    """Runs that differ in nothing but their seed, or have the same values of ``--by``."""

    keys: dict[str, Any]
    """the configuration keys, with values, that tell this group from the others"""
    runs: list[Run]
    figures: dict[str, tuple[float, float | None] | None]
    """name: mean and sample standard deviation, which one run has not; None where no run has the number"""

    @property
    def label(self) -> str:
        values = ", ".join(f"{short(key)}={_cut(text(value))}" for key, value in self.keys.items())
        return f"{values or self.runs[0].folder.name} (n = {len(self.runs)})"

    @property
    def short_label(self) -> str:
        """The values alone, where the keys stand above them."""
        return ", ".join(_cut(text(value)) for value in self.keys.values()) + f" ({len(self.runs)})"


def _cut(value: str) -> str:
    return value if len(value) < 40 else f"{value[:38]}…"


def choose_metric(runs: list[Run], asked: str | None) -> str:
    """``asked``, or what the runs' best checkpoints are chosen by: on the test set where all were tested.

    Raises:
        Mistake: no run has it, or the runs watch different ones.
    """
    known = {name.removeprefix("best/").removeprefix("last/") for run in runs for name in run.metrics()}
    if asked:
        if asked not in known:
            raise Mistake(f"--metric {asked}: no run has it{nearest(asked, sorted(known))}")
        return asked
    monitors = {str(run.config.get("best.monitor")) for run in runs}
    if len(monitors) > 1:
        raise Mistake(f"the runs watch different metrics ({', '.join(sorted(monitors))}); expected --metric NAME")
    monitor = monitors.pop()
    test = monitor.replace("val/", "test/", 1)
    return test if all(test in run.metrics() for run in runs) else monitor


def with_numbers(runs: list[Run], metric: str, left_out: dict[str, str]) -> tuple[list[Run], list[str]]:
    """The runs that have the metric as finite numbers, and by which names; the others go to ``left_out``."""
    names = [metric, f"best/{metric}", f"last/{metric}"]
    names = [name for name in names if any(name in run.metrics() for run in runs)]
    whole = []
    for run in runs:
        values = {name: run.metrics().get(name, "missing") for name in names}
        wrong = [name for name, value in values.items() if not _is_number(value)]
        if wrong:
            left_out[str(run.folder.path)] = f"broken: {wrong[0]} is {text(values[wrong[0]])}"
        else:
            whole.append(run)
    return whole, [*names, "wall_seconds", "samples_per_second"]


def with_columns(runs: list[Run], names: list[str], columns: list[str]) -> list[str]:
    """The names with further ones before the last two, which are of speed.

    Raises:
        Mistake: no run has such a number.
    """
    known = {name for run in runs for name, value in (run.metrics() | run.summary).items() if _is_number(value)}
    if unknown := [name for name in columns if name not in known]:
        raise Mistake(f"--columns {unknown[0]}: no run has it{nearest(unknown[0], sorted(known))}")
    return list(dict.fromkeys([*names[:-2], *columns, *names[-2:]]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def make_groups(runs: list[Run], names: list[str], by: list[str] | None) -> list[Group]:
    """Groups by the whole configuration less seed and ``IRRELEVANT``, or ``by`` the values of some keys.

    Raises:
        Mistake: no run's configuration has such a key.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.config))
    keys = [key for key in known if key not in {SEED, *IRRELEVANT}]
    if by is not None:
        full = {short(key): key for key in known} | {key: key for key in known}  # as on the command line, or in full
        if unknown := [key for key in by if key not in full]:
            raise Mistake(f"--by {unknown[0]}: no such key in the runs' configurations{nearest(unknown[0], full)}")
        keys = [full[key] for key in by]
    members: dict[str, list[Run]] = {}
    for run in runs:
        # A key that is missing was not there yet, which is what None mostly means.
        identity = json.dumps([run.config.get(key) for key in keys], default=str)
        members.setdefault(identity, []).append(run)
    shown = keys if by is not None else differing([group[0].config for group in members.values()])
    groups = [
        Group(
            {key: group[0].config.get(key) for key in shown},
            group,
            {name: _mean_and_std(group, name) for name in names},
        )
        for group in members.values()
    ]
    return sorted(groups, key=lambda group: [_order(value) for value in group.keys.values()])


def differing(configs: list[dict[str, Any]]) -> list[str]:
    """The keys whose values differ, less the arguments of a class that not all have where the classes differ."""
    known = dict.fromkeys(key for config in configs for key in config if key not in {SEED, *IRRELEVANT})
    keys = [key for key in known if any(config.get(key) != configs[0].get(key) for config in configs)]
    owners = [key.removesuffix("class_path") + "init_args." for key in keys if key.endswith("class_path")]
    return [
        key
        for key in keys
        if all(key in config for config in configs) or not any(key.startswith(owner) for owner in owners)
    ]


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, value if number else 0.0, str(value))


def _mean_and_std(runs: list[Run], name: str) -> tuple[float, float | None] | None:
    values = [run.metrics().get(name, run.summary.get(name)) for run in runs]
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def remarks(groups: list[Group]) -> list[str]:
    """What a reader of the table should know about the runs in it."""
    notes = []
    for group in groups:
        seeds = [str(run.config.get(SEED)) for run in group.runs]
        if mixed := [key for key in differing([run.config for run in group.runs]) if key not in group.keys]:
            notes.append(f"{group.label}: its runs differ in {', '.join(map(short, mixed))}")
        elif twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            notes.append(f"{group.label}: more than one run of seed {', '.join(twice)}")
        steps = sorted({(run.summary.get("last") or {}).get("step", 0) for run in group.runs})
        if len(steps) > 1:
            notes.append(f"{group.label}: the last validations were at different steps: {', '.join(map(str, steps))}")
    commits = sorted({run.commit for group in groups for run in group.runs})
    return notes + ([f"the runs are of different commits: {', '.join(commits)}"] if len(commits) > 1 else [])


def main(args: list[str]) -> int:
    """Reads, groups and shows.

    Raises:
        Mistake: in the arguments.
    """
    parser = ArgumentParser("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_GLOB", help="a run's folder, a folder above runs, or a glob")
    parser.add_argument("--by", nargs="+", action="extend", metavar="KEY", help="group by the values of these keys")
    parser.add_argument("--metric", help="default: best.monitor, on the test set where all runs were tested")
    parser.add_argument(
        "--columns", nargs="+", action="extend", default=[], metavar="NAME", help="further numbers, such as parameters"
    )
    parser.add_argument("--format", choices=list(VIEWS), default="table")
    parser.add_argument("--picture", metavar="FILE", help="default: compare_METRIC.png; '' for none")
    options = parser.parse_intermixed_args(args)

    left_out: dict[str, str] = {}
    runs = []
    for folder in find_folders(options.runs, left_out):
        try:
            runs.append(read_run(folder))
        except (ValueError, OSError) as error:
            left_out[str(folder.path)] = str(error)
    groups: list[Group] = []
    notes: list[str] = []
    picture = None
    if runs:
        metric = choose_metric(runs, options.metric)
        runs, names = with_numbers(runs, metric, left_out)
        names = with_columns(runs, names, options.columns)
        groups = make_groups(runs, names, options.by) if runs else []
        notes = remarks(groups)
        file = f"compare_{metric.replace('/', '_')}.png" if options.picture is None else options.picture
        if file and groups:
            picture = draw(groups, metric, Path(file), notes)
    elif not left_out:
        raise Mistake(f"{' '.join(options.runs)}: no runs")
    print(VIEWS[options.format](groups, left_out, notes, picture), end="")
    if options.format == "csv":  # which has no place for them
        print(*below(left_out, notes, picture), sep="\n", file=sys.stderr)
    return 0
