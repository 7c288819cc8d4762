"""Compares runs by the contents of their folders, without a server and without Lightning.

    python train.py compare runs/vqa/easy_vqa                                     every run in a folder
    python train.py compare 'runs/*/digits/*' --metric val/knn_accuracy           those that a glob matches
    python train.py compare runs/vqa --by model.fusion --format markdown          by the values of these keys

Runs whose configurations differ only in the seed (and in labels, paths and progress output) form one group: n runs,
mean ± sample standard deviation. Broken and unfinished runs belong to no group and are listed below the table. The
picture shows the means of the metric over the steps, with ± one standard deviation.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from common.checks import nearest
from experiments.arguments import ArgumentParser, Mistake
from experiments.compare.finished_runs import Run, find_folders, read_run
from experiments.compare.groups import Group, make_groups, remarks, text
from experiments.compare.picture import draw
from experiments.compare.views import VIEWS, below


def choose_metric(runs: list[Run], asked: str | None) -> str:
    """``asked``, or the metric that chooses the runs' best checkpoints: on the test set if all runs were tested.

    Raises:
        Mistake: no run has it, or the runs monitor different metrics.
    """
    known = {name.removeprefix("best/").removeprefix("last/") for run in runs for name in run.metrics()}
    if asked:
        if asked not in known:
            raise Mistake(f"--metric {asked}: no run has it{nearest(asked, sorted(known))}")
        return asked
    monitors = {str(run.summary.get("monitor") or run.config.get("best.monitor")) for run in runs}
    if len(monitors) > 1:
        raise Mistake(f"the runs monitor different metrics ({', '.join(sorted(monitors))}); choose with --metric NAME")
    monitor = monitors.pop()
    test = monitor.replace("val/", "test/", 1)
    return test if all(test in run.metrics() for run in runs) else monitor


def with_numbers(runs: list[Run], metric: str, left_out: dict[str, str]) -> tuple[list[Run], list[str]]:
    """The runs in which the metric is finite, and the names of their metrics; the others go to ``left_out``."""
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
    speeds = {key for run in whole for key in run.summary if key.endswith("_per_second")}
    return whole, [*names, "wall_seconds", *sorted(speeds)]


def with_columns(runs: list[Run], names: list[str], columns: list[str]) -> list[str]:
    """The names with further ones before those that are of speed.

    Raises:
        Mistake: no run has such a number.
    """
    known = {name for run in runs for name, value in (run.metrics() | run.summary).items() if _is_number(value)}
    if unknown := [name for name in columns if name not in known]:
        raise Mistake(f"--columns {unknown[0]}: no run has it{nearest(unknown[0], sorted(known))}")
    first = names.index("wall_seconds")
    return list(dict.fromkeys([*names[:first], *columns, *names[first:]]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def main(args: list[str]) -> int:
    """Reads, groups and shows runs.

    Raises:
        Mistake: an argument is wrong.
    """
    parser = ArgumentParser("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_GLOB", help="a run folder, a folder above runs, or a glob")
    parser.add_argument("--by", nargs="+", action="extend", metavar="KEY", help="group by the values of these keys")
    parser.add_argument("--metric", help="default: best.monitor, on the test set if all runs were tested")
    parser.add_argument(
        "--columns", nargs="+", action="extend", default=[], metavar="NAME", help="further columns, such as parameters"
    )
    parser.add_argument("--format", choices=list(VIEWS), default="table")
    parser.add_argument("--picture", metavar="FILE", help="default: compare_METRIC.png; '' means no picture")
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
