"""Every test runs offline, in a folder of its own, and leaves no trace in the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch reads it, and for the processes that tests start: the networks here are tiny, and more threads than one
# would wait for each other and for the other workers of pytest-xdist.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from experiments.cli import CLI, build, main

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LIT_DATA", REPOSITORY.parent / "shared" / "data"))
"""real data, where there is some; tests that need it skip where there is not"""

QUIET = [
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.accelerator", "cpu"),
]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    torch.set_num_threads(1)
    generator = torch.get_rng_state()
    yield
    torch.set_rng_state(generator)


@pytest.fixture
def be_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``be_rank(r, n)`` makes this process rank r of n, without any others."""

    def become(rank: int, world_size: int) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: world_size > 1)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)

    return become


@pytest.fixture
def fit() -> Callable[..., CLI]:
    """``fit(*args)`` trains as ``train.py fit`` would, in this process, and returns what it made."""

    def run(*args: object) -> CLI:
        cli = build(["fit", *map(str, args), *QUIET])
        cli.execute()
        return cli

    return run


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``mistake(*args)`` is the one line that ``train.py`` ends with; fails if it ends in any other way."""

    def run(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        with pytest.raises(SystemExit) as exit_status:
            main()
        assert exit_status.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("error: ")

    return run
