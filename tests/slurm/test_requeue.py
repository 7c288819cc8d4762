"""A job of two processes that SLURM warns of its end is queued again and ends as one that never was interrupted."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.run_folder import RunFolder
from tests.conftest import REPOSITORY
from tests.contracts.conftest import SHRINK
from tests.contracts.test_resume import assert_equal, rows, state
from tests.slurm.conftest import Slurm, wait_until

NAME = "vqa/sort_of_clevr"
EPOCHS, STEPS = 4, 60  # the steps of an epoch: 480 images in batches of 4 on two ranks
SIGNAL_AFTER = STEPS + 14  # a step that is logged, in the middle of the second epoch
OPTIONS = [
    *("-c", REPOSITORY / "configs" / f"{NAME}.yaml", "-c", SHRINK / f"{NAME}.yaml"),
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", EPOCHS, "--trainer.log_every_n_steps", 7),
    *("--data.num_train", STEPS * 8),
    # Only the last epoch saves a state of its own accord: what is resumed is what the signal saved.
    *("--checkpoint.every_n_epochs", EPOCHS, "--figures.every_n_epochs", EPOCHS, "--test_after_fit", "false"),
]

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """The folder of the jobs' output files; their ends are shown when the test fails."""
    yield tmp_path
    for path in sorted(tmp_path.glob("slurm-*.out")):
        print(f"--- {path.name}", *path.read_text().splitlines()[-40:], sep="\n")


def submit(slurm: Slurm, output: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Submits the script as a user would, with two tasks; gives the job's number."""
    if (Path(sys.prefix) / "bin" / "activate").is_file():
        monkeypatch.setenv("LIT_VENV", sys.prefix)
    else:
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    chosen = ["--ntasks-per-node=2", f"--output={output}/slurm-%j.out"]
    return slurm("sbatch", "--parsable", *chosen, "configs/cluster/train.sbatch", *OPTIONS, cwd=REPOSITORY)


def folder_of(job: str) -> RunFolder:
    return RunFolder(Path(os.environ["LIT_RUNS"]) / NAME / f"slurm-{job}")


def logged_step(folder: RunFolder) -> int:
    return int(rows(folder)[-1]["step"]) if folder.metrics.is_file() else 0


def test_requeued(slurm: Slurm, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = submit(slurm, output, monkeypatch)
    job = submit(slurm, output, monkeypatch)  # waits for the two cores

    def completed(number: str) -> bool:
        now = slurm.job(number)["JobState"]
        assert now not in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), f"job {number}: {now}"
        return now == "COMPLETED"

    wait_until("the uninterrupted job ends", lambda: completed(whole), 120)
    wait_until("the other job is in mid-epoch", lambda: logged_step(folder_of(job)) >= SIGNAL_AFTER, 60)
    slurm("scancel", "--signal=USR1", job)  # as --signal has SLURM do it ahead of the end
    wait_until("the job is queued again", lambda: slurm.job(job)["Restarts"] == "1", 30)
    wait_until("it has left the node", lambda: slurm.job(job)["JobState"] == "PENDING", 30)
    # Two minutes if SLURM is let; within the second it would take the new start for the old one, which it has revoked.
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3seconds")
    wait_until("the job ends", lambda: completed(job), 120)

    assert slurm.job(job)["Restarts"] == "1"
    assert sorted(path.name for path in folder_of(job).path.parent.iterdir()) == [f"slurm-{n}" for n in (whole, job)]
    assert len(json.loads(folder_of(job).manifest.read_text())["starts"]) == 2
    text = (output / f"slurm-{job}.out").read_text()
    saved = [int(step) for step in re.findall(r"SIGUSR1: stopped; the state is saved in \S*step=(\d+)\.ckpt", text)]
    assert len(saved) == 2  # both processes say so
    assert saved[0] == saved[1]
    assert SIGNAL_AFTER <= saved[0] < 2 * STEPS
    assert "restart 1" in text
    found, expected = (folder_of(number).recovery_checkpoints()[0] for number in (job, whole))
    assert_equal(state(found), state(expected))
    assert_equal(state(folder_of(job).best_checkpoint()), state(folder_of(whole).best_checkpoint()))
    assert rows(folder_of(job)) == rows(folder_of(whole))
