"""The picture of a comparison: the curves of a metric, or bars if it was measured only once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.arguments import Mistake
from experiments.compare.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = (".png", ".pdf", ".svg")


def draw(groups: list[Group], metric: str, file: Path, notes: list[str]) -> Path | None:
    """Draws the curves of ``metric``: for each group a line for the mean and a band of ± one standard deviation.

    For a test metric, the curve is that of the validation metric. If no run was validated more than once, there are no
    curves, and each group gets a bar with its value from the table instead. Runs without a curve go to ``notes``; if no
    run has one, nothing is written.

    Raises:
        Mistake: the folder does not exist, or the kind of picture is unknown.
    """
    if file.suffix not in PICTURES:
        raise Mistake(f"--picture {file}: expected a file name ending in {', '.join(PICTURES)}")
    if not file.parent.is_dir():
        raise Mistake(f"--picture {file}: no such folder: {str(file.parent)!r}")
    from matplotlib.figure import Figure

    validation = metric.replace("test/", "val/", 1)
    curves = [(group, found) for group in groups if (found := _curves(group, validation, notes))]
    if not curves:
        return None
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if all(len(curve) == 1 for _, found in curves for curve in found):
        _draw_bars(axes, groups, metric)
    else:
        many = len(groups) > 4
        _draw_lines(axes, [(group.short_label if many else group.label, found) for group, found in curves])
        axes.set(xlabel="step", ylabel=validation)
        place: dict[str, Any] = {"loc": "outside upper left", "fontsize": "small"}
        if many:
            title = ", ".join(key.rpartition(".")[2] for key in groups[0].keys)
            small = dict.fromkeys(("fontsize", "title_fontsize"), "x-small")
            place = {"loc": "outside right center", "title": title, **small}
        if not axes.lines:
            return None
        figure.legend(frameon=False, **place)
    figure.savefig(file, dpi=150, bbox_inches="tight")
    return file


def _curves(group: Group, metric: str, notes: list[str]) -> list[dict[int, float]]:
    """The curves of the group's runs; runs without one go to ``notes``."""
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
    return curves


def _draw_lines(axes: Axes, curves: list[tuple[str, list[dict[int, float]]]]) -> None:
    """Interpolates runs measured at different steps linearly, over the range that all runs of a group cover."""
    import numpy as np
    from cycler import cycler
    from matplotlib.colors import TABLEAU_COLORS

    # Of many groups each has a line of its own, by color and then by dashes.
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=TABLEAU_COLORS.values()))
    for label, found in curves:
        steps = np.unique([step for curve in found for step in curve])
        steps = steps[(steps >= max(min(curve) for curve in found)) & (steps <= min(max(curve) for curve in found))]
        if not len(steps):
            continue
        values = np.stack([np.interp(steps, list(curve), list(curve.values())) for curve in found])  # (runs, steps)
        mean = values.mean(0)
        (line,) = axes.plot(steps, mean, label=label, marker="." if len(steps) < 40 else None)
        if len(found) > 1:
            std = values.std(0, ddof=1)
            axes.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)


def _draw_bars(axes: Axes, groups: list[Group], metric: str) -> None:
    """Each group's mean and standard deviation, the largest on top."""
    bars = [(group.short_label, *found) for group in groups if (found := group.metrics.get(metric))]
    bars.sort(key=lambda bar: bar[1])
    labels, means = [label for label, _, _ in bars], [mean for _, mean, _ in bars]
    errors = [std or 0.0 for _, _, std in bars]
    axes.barh(range(len(bars)), means, xerr=errors, tick_label=labels, color="tab:cyan")
    for place, (mean, error) in enumerate(zip(means, errors, strict=True)):
        axes.annotate(f"{mean:.4g}", (mean + error, place), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set(xlabel=metric)
