"""lightning-bolts in a folder of its own, beside the environment's torch, and what it computes there."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import torch
from torch import Tensor

from tests.conftest import REPOSITORY

Theirs = dict[str, dict[str, Tensor]]
"""tensors by item and name, as child.py writes them"""


class Unreachable(Exception):
    """It could not be installed."""


def installed(folder: Path) -> Path:
    """The folder ``LIT_BOLTS`` where lightning-bolts is ready, or ``folder``, into which it is installed.

    Without dependencies: it wants a Lightning below 2, which comes along, and all else is there.

    Raises:
        Unreachable: pip could not install it; the text is pip's last line.
    """
    if ready := os.environ.get("LIT_BOLTS"):
        return Path(ready)
    group = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]["bolts"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--target", str(folder)]
    done = subprocess.run([*pip, *group], capture_output=True, text=True)
    if done.returncode:
        raise Unreachable((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    return folder


def environment(overlay: Path) -> dict[str, str]:
    """Of a process that sees the overlay before anything else."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(overlay), str(REPOSITORY)]), "PYTHONWARNINGS": "ignore"}


def computed(overlay: Path, folder: Path) -> Theirs:
    """Runs child.py, which writes to ``folder``."""
    command = [sys.executable, str(Path(__file__).with_name("child.py")), str(folder)]
    done = subprocess.run(command, env=environment(overlay), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "theirs.pt", weights_only=True)
