"""Every test runs offline, in a folder of its own, and leaves no trace in the process.

The fast tier leaves the tests marked ``slow`` to ``pytest --all``. It runs them too where they are asked for: by a node
id, by a marker, or by files and folders that hold nothing else.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
NO_PICTURES = ["--figures.every_n_epochs", "null"]
NO_PROBE = ["--probe.every_n_epochs", "null"]


SHARED = r"tests/bolts/|tests/slurm/|two_ranks|tests/datamodules/test_easy_vqa|(?<=test_resume.py::).*(\[.*\])"
"""in the names of tests that share lightning-bolts, SLURM's daemons, the server of two ranks, easy-VQA's images, or the
training of one configuration"""

LEFT = pytest.StashKey[int]()
"""how many tests the fast tier has left to the other"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run everything, and not the fast tier only")


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("--all"):
        return "tier: all of the tests"
    return "tier: fast, which holds every technique to every contract; `pytest --all` runs the whole matrix"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all") or re.search(r"(?<!not )\b(slow|bolts|slurm)\b", config.option.markexpr):
        return
    named = tuple(arg for arg in config.args if "::" in arg)
    left = [item for item in items if item.get_closest_marker("slow") and not is_named(item, named)]
    if 0 < len(left) < len(items):
        config.hook.pytest_deselected(items=left)
        config.stash[LEFT] = len(left)
        items[:] = [item for item in items if item not in set(left)]


def is_named(item: pytest.Item, named: tuple[str, ...]) -> bool:
    """Whether an argument of the command line is the node id of a test, or of what it is a case of."""
    here = f"{item.path}::{item.nodeid.partition('::')[2]}"
    for arg in named:
        file, _, name = arg.partition("::")
        whole = f"{Path(item.config.invocation_params.dir, file).resolve()}::{name}"
        if here == whole or here.startswith((f"{whole}[", f"{whole}::")):
            return True
    return False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out the tests one by one, but those that share something expensive all to one process.

    By their names and not by ``xdist_group``, which pytest-xdist 3.8 overlooks under pytest 9.2.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = re.search(SHARED, nodeid)
            return shared[shared.lastindex or 0] if shared else nodeid

    return Together(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # of pytest-xdist: handed to the process that prints
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT, 0):
        terminalreporter.write_line(f"fast tier: {left} tests left to `pytest --all`")


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
    """``fit(*args)`` trains as ``train.py fit`` would, in this process, and returns what it made.

    It draws no pictures, which would take most of the time, where the arguments do not ask for them.
    """

    def run(*args: object) -> CLI:
        cli = build(["fit", *NO_PICTURES, *map(str, args), *QUIET])
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
