"""Runs that belong together: those that differ in nothing but their seed, or agree in what is asked for."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from common.checks import nearest
from experiments.arguments import Mistake
from experiments.compare.finished_runs import Run

SEED = "seed_everything"
IRRELEVANT = {
    *("run.id", "run.root", "run.project", "run.tags", "ckpt_path", "weights_only"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary", "data.init_args.root"),
}
"""configuration keys that change no number"""


def short(key: str) -> str:
    """As the command line has it: ``model.fusion`` for ``model.init_args.fusion``."""
    return key.replace(".init_args", "")


def text(value: object) -> str:
    """A configuration's value in a table; None is a dash."""
    return value if isinstance(value, str) else "–" if value is None else json.dumps(value, default=str)


@dataclass
class Group:
    """Runs that differ in nothing but their seed, or have the same values of ``--by``."""

    keys: dict[str, Any]
    """the configuration keys, with values, that tell this group from the others"""
    runs: list[Run]
    metrics: dict[str, tuple[float, float | None] | None]
    """name: mean and sample standard deviation, None of a single run; None where no run has the number"""

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
