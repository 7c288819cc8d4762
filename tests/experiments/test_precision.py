"""Mixed precision on processors that lack it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments import precision
from experiments.cli import CLI
from experiments.precision import usable_precision
from tests.conftest import QUIET, REPOSITORY

CONFIG = REPOSITORY / "configs/vqa/easy_vqa.yaml"
TINY = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]
TINY += ["--trainer.precision", "bf16-mixed", "--figures.every_n_epochs", "null"]


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose fused LSTM has no bfloat16."""
    fused = torch._VF.lstm  # type: ignore[attr-defined]

    def lstm(input: torch.Tensor, *args: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor")
        return fused(input, *args)

    monkeypatch.setattr(torch._VF, "lstm", lstm, raising=False)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("without_bfloat16")
def test_a_run_goes_on_in_float32_and_says_so(fit: Callable[..., CLI], capsys: pytest.CaptureFixture[str]) -> None:
    cli = fit("-c", CONFIG, *TINY)
    assert cli.trainer.precision == "32-true"
    assert cli.trainer.global_step == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trainer.precision=bf16-mixed")]
    assert len(lines) == 1
    assert "float32" in lines[0]


@pytest.mark.usefixtures("without_bfloat16")
def test_what_has_no_lstm_or_runs_elsewhere_keeps_its_precision() -> None:
    assert usable_precision("bf16-mixed", nn.Linear(2, 2), "cpu") == "bf16-mixed"
    assert usable_precision("bf16-mixed", nn.LSTM(2, 2), "gpu") == "bf16-mixed"
    assert usable_precision("64-true", nn.LSTM(2, 2), "cpu") == "64-true"
    assert usable_precision("bf16-mixed", nn.Sequential(nn.LSTM(2, 2)), "cpu") == "32-true"


def test_a_processor_that_can_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_fault_of_lstm", lambda: None)
    assert usable_precision("bf16-mixed", nn.LSTM(2, 2), "cpu") == "bf16-mixed"


def test_trying_draws_no_random_number() -> None:
    module = nn.LSTM(2, 2)
    before = torch.get_rng_state()
    usable_precision("bf16-mixed", module, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_with_the_instruction_set_capped(tmp_path: Path) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(CONFIG), *TINY, *QUIET]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
