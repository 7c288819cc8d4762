"""Two ranks with half of the batch each compute what one rank with all of it does.

In double precision, so that what is compared is the mathematics: the gradient of a convolution before a batch norm is a
small difference of large numbers, of which single precision leaves three digits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import QUIET, REPOSITORY


def train(config: list[str], ranks: int, batch_size: int, folder: Path) -> dict[str, Any]:
    result = folder / f"{ranks}.pt"
    options = [
        *("--data.batch_size", batch_size, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1),
        *(
            "--trainer.precision",
            "64-true",
            "--trainer.log_every_n_steps",
            1,
            "--test_after_fit",
            "false",
            "--figures.every_n_epochs",
            0,
        ),
        *(
            "--trainer.devices",
            ranks,
            "--trainer.strategy",
            "ddp" if ranks > 1 else "auto",
            "--run.id",
            f"{ranks}-ranks",
        ),
    ]
    command = [sys.executable, "-m", "tests.contracts.ranks", "fit", *config, *map(str, options), *QUIET]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RESULT": str(result)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result, weights_only=True)


def one_and_two_ranks(config: list[str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one rank with the whole batch and two with half of it each have seen."""
    settings = [yaml.safe_load(Path(path).read_text()) for path in config[1::2]]
    batch_size = next(s["data"]["init_args"]["batch_size"] for s in settings[::-1] if "data" in s)
    half = max(1, batch_size // 2)
    return train(config, 1, 2 * half, folder), train(config, 2, half, folder)


def test_two_ranks_equal_one(config: list[str], tmp_path: Path) -> None:
    one, two = one_and_two_ranks(config, tmp_path)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["gradients"].keys() == one["gradients"].keys()
    for name, expected in one["gradients"].items():
        difference = (two["gradients"][name] - expected).abs().max()
        assert difference <= 1e-5 * float(expected.abs().max()) + 1e-12, name
    evaluated = {name: value for name, value in one["metrics"].items() if name.startswith("val/")}
    found = {name: two["metrics"][name] for name in evaluated}
    assert found == pytest.approx(evaluated, rel=1e-5, abs=1e-5, nan_ok=True)
