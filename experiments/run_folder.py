"""A run's folder: its id, its contents, and how to find it again.

runs/<technique>/<data set>/<run id>/
    config.yaml      the complete configuration: `train.py fit -c config.yaml` repeats the run
    manifest.json    commit and uncommitted changes, versions, hardware, seed, command of every (re)start
    metrics.csv      one row per logging step
    summary.json     best and last val/*, test/*, wall time, samples per second
    checkpoints/  figures/  wandb/
    predictions/     of `train.py predict`
    other_data/      what the model was tested on, and what it predicts, beyond the data of the run
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common.files import read_json, write_whole

REPOSITORY = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "wandb", "numpy")


@dataclass
class RunOptions:
    """Where a run is stored and how it is labeled.

    Args:
        name: ``<technique>/<data set>``; by default derived from the model's file and the data's class.
        id: name of the run's folder; by default date, time and a random part, or the number of the SLURM job.
        root: the folder of all runs; by default ``LIT_RUNS`` in the environment, or ``runs``.
        project: the Weights & Biases project.
        tags: labels for Weights & Biases and the manifest.
    """

    name: str | None = None
    id: str | None = None
    root: str | None = None
    project: str = "lit-baselines"
    tags: list[str] = field(default_factory=list)


class RunFolder:
    """The paths of one run. A folder is created only when something is written to it.

    Args:
        path: the folder.
        of: the run whose checkpoint is used on other data here, see :meth:`on_other_data`.
    """

    def __init__(self, path: Path, of: RunFolder | None = None) -> None:
        self.path, self.of = path, of
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"

    @property
    def id(self) -> str:
        return f"{self.of.id}-on-{self.path.name}" if self.of else self.path.name

    @property
    def name(self) -> str:
        return self.of.name if self.of else f"{self.path.parent.parent.name}/{self.path.parent.name}"

    def on_other_data(self, label: str) -> RunFolder:
        """A new folder within this one, for what the run's model says about other data than the run's own."""
        label = re.sub(r"[^\w.-]+", "_", label).strip("._") or "data"
        number = 1
        while (path := self.path / "other_data" / f"{label}-{number}").exists():
            number += 1
        return RunFolder(path, self)

    def recovery_checkpoints(self) -> list[Path]:
        """The states saved for resuming, newest first."""
        found = [(int(match[1]), path) for path in self.checkpoints.glob("*.ckpt") if (match := _STEP.match(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of this folder as long as this process lives.

        Raises:
            ValueError: another process is using the folder.
        """
        if not is_first_process():  # the other ranks of the run that holds the lock
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip()
                raise ValueError(f"run.id={self.id}: {owner} is running in {self.path}; use another id") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def best_checkpoint(self) -> Path | None:
        """The checkpoint that validation chose; None if there is none."""
        path = self.checkpoints / "best.ckpt"
        return path if path.is_file() else None


_STEP = re.compile(r"step=(\d+)\.ckpt$")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_first_process() -> bool:
    """Whether this is the run's only process or its rank 0, according to the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def runs_root(options: RunOptions) -> Path:
    return Path(options.root or os.environ.get("LIT_RUNS") or "runs")


def launcher_run_id() -> str | None:
    """The id that torchrun's ``--rdzv-id`` gives a run on all nodes and at every restart; None without one.

    Also None for the id that ``torchrun --standalone`` makes up each time: it names a new run, not one to resume.
    """
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if torchrun == "none" or _UUID.fullmatch(torchrun) else f"torchrun-{torchrun}"


def new_run_id() -> str:
    """An id that all processes of a run agree on: that of SLURM or torchrun, else made of date, time and a random part.

    Raises:
        ValueError: several processes were started without a common id.
    """
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm-{job}"
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if torchrun != "none":
        return f"torchrun-{torchrun}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LIGHTNING_RANK" not in os.environ:
        raise ValueError(
            f"run.id: {os.environ['WORLD_SIZE']} processes were started without a common id; use --run.id ID, or "
            "torchrun's --rdzv-id"
        )
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def find_runs(root: Path, name: str) -> list[RunFolder]:
    """The runs of one name, in the order of their last starts, oldest first."""
    folders = [RunFolder(path.parent) for path in (root / name).glob("*/manifest.json")]
    return sorted(folders, key=lambda folder: folder.manifest.stat().st_mtime)


def folder_of_checkpoint(checkpoint: Path) -> RunFolder | None:
    """The run that a checkpoint belongs to; None for a file from elsewhere."""
    folder = RunFolder(checkpoint.resolve().parent.parent)
    return folder if checkpoint.parent.name == "checkpoints" and folder.config.is_file() else None


def read_record(path: Path) -> dict[str, Any]:
    """The content of one of a run's JSON files; empty if there is no such file.

    Raises:
        ValueError: the file is not JSON.
    """
    return read_json(path) if path.is_file() else {}


def write_manifest(
    folder: RunFolder, command: list[str], seed: int | None, tags: list[str], batch: dict[str, int] | None = None
) -> dict[str, Any]:
    """Writes everything about a run's origin that is not in the configuration; a restart adds to it.

    ``batch`` is the size of the global batch and its factors. Returns what it has written.
    """
    start = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *command]),
        "directory": str(Path.cwd()),
        "git": _git_state(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "hardware": _hardware(),
        **({"batch": batch} if batch else {}),
    }
    manifest = read_record(folder.manifest) or {
        "id": folder.id,
        "name": folder.name,
        "seed": seed,
        "tags": tags,
        "starts": [],
    }
    manifest["starts"].append(start)
    write_whole(folder.manifest, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and uncommitted changes of the running code; None if it is not a git checkout."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *args], capture_output=True, text=True, check=True)
        return done.stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        diff = git("diff", "HEAD")
        untracked = git("ls-files", "--others", "--exclude-standard").split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(diff or untracked), "diff": diff, "untracked": untracked}


def _hardware() -> dict[str, Any]:
    import torch

    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file() and (match := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = match[1]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    counts = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"host": platform.node(), "cpu": cpu, **counts, "gpus": gpus}
