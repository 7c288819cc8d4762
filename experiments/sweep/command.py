"""Runs a Weights & Biases sweep file locally, without a server.

    python train.py sweep configs/sweeps/vqa.yaml                 one trial after the other
    python train.py sweep configs/sweeps/vqa.yaml --jobs 3        three at a time
    python train.py sweep configs/sweeps/vqa.yaml --dry_run       only show the commands

``method: grid`` runs every combination of the parameters' values; ``method: random`` draws ``run_cap`` different ones
(with ``seed``, 0 by default, a key of this program that W&B does not know). A parameter has a ``value``, ``values``
(optionally with ``probabilities``), or ``min`` and ``max`` with a ``distribution``: ``int_uniform``, ``uniform`` or
``log_uniform_values``. Its name is that of the option, with dots.

Each trial is a process with a run folder, whose name is derived from the sweep's name and the trial's parameters. So
the same call again skips the finished trials (those with a test in ``summary.json``) and resumes the others from their
last checkpoints. ``runs/sweeps/NAME/`` holds each trial's output, and ``sweep.json`` its outcome.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from common.files import write_whole
from experiments.arguments import ArgumentParser, Mistake
from experiments.compare.views import text
from experiments.run_folder import read_record
from experiments.sweep.sweep_file import Trial, make_trials, read_sweep, slug


class Runner:
    """Runs trials, at most ``jobs`` at a time, and keeps ``sweep.json`` up to date.

    Args:
        sweep: as :func:`~experiments.sweep.sweep_file.read_sweep` returns it.
        trials: all trials, including finished ones.
        folder: the sweep's folder, for the record and one log per trial.
        console: where progress is shown.
    """

    def __init__(self, sweep: dict[str, Any], trials: list[Trial], folder: Path, console: Console) -> None:
        self.sweep = sweep
        self.trials = trials
        self.folder = folder
        self.console = console
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, tuple[float, int]] = {}  # when, and where in the log

    def run(self, jobs: int) -> bool:
        """Runs the waiting trials; returns False if it was interrupted, after giving them time to save their states."""
        waiting = [trial for trial in self.trials if trial.state == "waiting"]
        bar = Progress(
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        # A termination is like Ctrl-C. The trials, in sessions of their own, hear of either from here alone.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        interrupted = False
        with bar:
            task = bar.add_task("", total=len(self.trials))
            while waiting or self.running:
                try:
                    while waiting and len(self.running) < jobs:
                        self._start(waiting.pop(0), jobs)
                    for trial in [trial for trial in self.trials if trial.id in self.running]:
                        status = self.running[trial.id].poll()
                        if status is not None:
                            self._end(trial, status, interrupted)
                    counts = Counter(trial.state for trial in self.trials)
                    shown = ", ".join(f"{counts[state]} {state}" for state in ("running", "failed") if counts[state])
                    bar.update(task, completed=counts["finished"] + counts["failed"], description=shown)
                    time.sleep(0.1)
                except KeyboardInterrupt:
                    interrupted = True
                    waiting.clear()
                    for process in self.running.values():
                        # Not SIGINT, which who was started by a shell in the background ignores.
                        process.send_signal(signal.SIGTERM)
                    self.console.print(f"waiting for {len(self.running)} trials to save their states")
        signal.signal(signal.SIGTERM, before)
        return not interrupted

    def _start(self, trial: Trial, jobs: int) -> None:
        command = [*trial.command, *(["--ckpt_path=last"] if trial.folder else [])]
        # What a trial says last is its reason: Python would hold back what it printed before until it has ended.
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if jobs > 1:  # else each trial takes every core for itself
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        with self.log(trial).open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self.started[trial.id] = (time.monotonic(), log.tell())
            trial.state = "running"
            try:
                self.running[trial.id] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"{error}\n".encode())
                log.flush()
                self._end(trial, 127, False)
                return
        self._say(trial)

    def _end(self, trial: Trial, status: int, interrupted: bool) -> None:
        self.running.pop(trial.id, None)
        since, offset = self.started[trial.id]
        trial.seconds = round(time.monotonic() - since, 1)
        trial.exit_status = status
        trial.last_line = _last_line(self.log(trial), offset)
        if status == 0 and trial.summary().get("test"):
            trial.state = "finished"
        elif interrupted:
            trial.state = "stopped"
        else:
            trial.state = "failed"
            if status == 0:
                trial.last_line = f"ended without a test in summary.json: {trial.last_line}"
        self._say(trial)

    def _say(self, trial: Trial) -> None:
        self.save()
        position = f"[{self.trials.index(trial) + 1}/{len(self.trials)}]"
        line = f"{position} {trial.id} {trial.state}"
        if trial.state == "failed":
            line += f" with exit status {trial.exit_status}: {trial.last_line}"
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def log(self, trial: Trial) -> Path:
        return self.folder / f"{trial.id}.log"

    def save(self) -> None:
        """Writes the record."""
        content = {
            **{key: self.sweep[key] for key in ("name", "method", "command")},
            "trials": [trial.record() | {"log": str(self.log(trial))} for trial in self.trials],
        }
        write_whole(self.folder / "sweep.json", json.dumps(content, indent=2) + "\n")


def _last_line(log: Path, offset: int) -> str:
    """The last non-empty line that was written to a log after ``offset``."""
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - 10_000))
        written = file.read().decode(errors="replace")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]", written)]
    return next((line for line in reversed(lines) if line), "")


def take_up(trials: list[Trial], file: Path, command: list[Any]) -> None:
    """Marks the trials that an earlier call finished.

    Raises:
        Mistake: the record cannot be read, or the earlier call had a different ``command`` block.
    """
    try:
        record = read_record(file)
    except ValueError as error:
        raise Mistake(f"{error}; expected the record of this sweep; move the file away to start over") from None
    if record and record["command"] != command:
        raise Mistake(f"{file}: this sweep had a different command; use the same one, or give the sweep another name")
    earlier = {trial["id"]: trial for trial in record.get("trials", [])}
    for trial in trials:
        trial.seconds = earlier.get(trial.id, {}).get("seconds", 0.0)
        if trial.summary().get("test"):
            trial.state, trial.exit_status = "finished", 0


def print_table(trials: list[Trial], metric: str | None, console: Console) -> None:
    """One row per trial: the parameters that vary, its state, and the metric that the file names."""
    names = [name for name in trials[0].parameters if len({text(trial.parameters[name]) for trial in trials}) > 1]
    table = Table()
    for name in ("trial", *names, "state", *([metric] if metric else []), "seconds"):
        table.add_column(name, overflow="fold")
    for trial in trials:
        summary = trial.summary()
        value = (summary.get("test", {}) | summary.get("best", {})).get(metric)
        number = [f"{value:.4f}" if isinstance(value, float) else "–"] if metric else []
        values = [text(trial.parameters[name]) for name in names]
        table.add_row(trial.id, *values, trial.state, *number, f"{trial.seconds:.0f}")
    console.print(table, markup=False)


def main(args: list[str]) -> int:
    """Runs the sweep; returns 1 if a trial failed, 130 if it was interrupted.

    Raises:
        Mistake: an argument or the file is wrong.
    """
    parser = ArgumentParser("sweep", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a W&B sweep file, as in configs/sweeps/")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time (default: 1)")
    parser.add_argument("--dry_run", action="store_true", help="only show the trials' commands")
    options = parser.parse_args(args)
    if options.jobs < 1:
        raise Mistake(f"--jobs={options.jobs}: expected at least 1")

    sweep = read_sweep(options.file)
    trials = make_trials(sweep)
    folder = trials[0].root / "sweeps" / slug(sweep["name"])
    take_up(trials, folder / "sweep.json", sweep["command"])
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    if options.dry_run:
        for trial in trials:
            state = "finished" if trial.state == "finished" else "goes on" if trial.folder else "new"
            console.print(f"{state:>8}  {shlex.join(trial.command)}", soft_wrap=True, markup=False, highlight=False)
        return 0
    if "early_terminate" in sweep:
        console.print("note: early_terminate needs W&B's server; here every trial runs to the end", highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(sweep, trials, folder, console)
    whole = runner.run(options.jobs)
    runner.save()
    print_table(trials, (sweep.get("metric") or {}).get("name"), console)
    console.print(f" record  {folder}/sweep.json, and one log per trial", soft_wrap=True, highlight=False)
    pattern = f"{trials[0].root}/*/*/{slug(sweep['name'])}-*"
    console.print(f"compare  python train.py compare '{pattern}'", soft_wrap=True, highlight=False, markup=False)
    return 130 if not whole else int(any(trial.state != "finished" for trial in trials))
