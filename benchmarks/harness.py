"""What every benchmark shares: interleaved rounds, ratios with their range, and a check of their median."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

Times = dict[str, list[float]]
"""seconds of each case, one number a round"""


def interleaved(cases: dict[str, Callable[[], float]], repeats: int = 5, warmup: int = 1) -> Times:
    """Runs the cases in turn, A B A B …; each returns the seconds of what it timed. Warm-up rounds are not kept."""
    times: Times = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, case in cases.items():
            gc.collect()  # what the case before has left
            seconds = case()
            if turn >= warmup:
                times[name].append(seconds)
    return times


def ratios(times: Times, reference: str) -> Times:
    """Each case over the reference, round by round."""
    return {name: [a / b for a, b in zip(times[name], times[reference], strict=True)] for name in times}


def report(title: str, times: Times, reference: str) -> None:
    """Prints the machine, medians and ranges in milliseconds, and the ratios to the reference with theirs."""
    print(f"{title}\n{machine()}\nmedian (min – max) of {len(times[reference])} interleaved rounds\n")
    rows = [("", "milliseconds", f"× {reference}")]
    for name, ratio in ratios(times, reference).items():
        rows.append((name, _cell([1e3 * seconds for seconds in times[name]]), _cell(ratio)))
    for row in rows:
        print(f"{row[0]:14}{row[1]:>34}{row[2]:>28}".rstrip())


def _cell(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


def machine() -> str:
    """Processor, threads, load and versions in one line."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    parts = [named[1] if named else platform.processor() or platform.machine()]
    parts += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    parts += [f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads", f"load {os.getloadavg()[0]:.1f}"]
    return ", ".join([*parts, *(f"{package} {metadata.version(package)}" for package in ("torch", "lightning"))])


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark accepts: ``--repeats`` and ``--check``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--check", type=float, metavar="LIMIT", help="exit status 1 if the median ratio misses LIMIT")
    return parser


def verdict(ratio: list[float], limit: float | None, *, at_least: bool = False) -> int:
    """The exit status: 1 if there is a limit and the median ratio is beyond it, else 0."""
    if limit is None:
        return 0
    middle = median(ratio)
    met = middle >= limit if at_least else middle <= limit
    print(f"\n{middle:.3f}: expected at {'least' if at_least else 'most'} {limit}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
