"""What the contract tests measure, of every configuration, as tables for the docs.

    python -m tests.contracts.tables

python -m tests.contracts.tables --only kills char_lm     some configurations, by a part of their names
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.conftest import NO_PICTURES
from tests.contracts.conftest import CONFIGS, options_of
from tests.contracts.test_ranks import one_and_two_ranks
from tests.contracts.test_resume import EPOCHS, KILLED_AFTER, STEPS, assert_same_run, resume, run


@contextlib.contextmanager
def made_small(name: str) -> Iterator[tuple[list[str], Path]]:
    """The options of a configuration and a folder, with the environment that the tests have; nothing is printed."""
    before = dict(os.environ), sys.argv[:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options, data = options_of(name, folder / "data")
        os.environ |= {"LIT_RUNS": str(folder / "runs"), "LIT_DATA": str(data), "WANDB_MODE": "disabled"}
        logging.disable(logging.WARNING)
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                warnings.catch_warnings(action="ignore"),
            ):
                yield [*options, *NO_PICTURES], folder
        finally:
            logging.disable(logging.NOTSET)
            sys.argv[:] = before[1]
            os.environ.clear()
            os.environ.update(before[0])


def kills(name: str) -> list[str]:
    """For each step that the run is killed after: whether it ends as the one that was not, or what differs first."""
    cells = []
    with made_small(name) as (options, _):
        whole = run(options, "whole")
        for after in KILLED_AFTER:
            try:
                assert_same_run(resume(options, *after), whole, "")
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0].strip("/")
                cells.append(f"differs: {reason or 'metrics.csv'}" if isinstance(error, AssertionError) else reason)
            else:
                cells.append("equal")
    return cells


def ranks(name: str) -> list[str]:
    """The largest differences between one rank and two, in double precision."""
    with made_small(name) as (options, _):
        try:
            one, two = one_and_two_ranks(options)
        except AssertionError as error:
            return [f"failed: {str(error).splitlines()[-1]}", "", "", ""]
    losses = [abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)]
    pairs = [(two["gradients"][key], value) for key, value in one["gradients"].items()]
    gradients = [float((a - b).abs().max()) for a, b in pairs]
    largest = max(float(value.abs().max()) for _, value in pairs)
    validation = {key: value for key, value in one["metrics"].items() if key.startswith("val/")}
    apart = [abs(two["metrics"][key] - value) for key, value in validation.items() if value == value]
    return [f"{max(losses):.1e}", f"{max(gradients):.1e}", f"{largest:.1e}", f"{max(apart):.1e} ({len(validation)})"]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("names", nargs="*", help="parts of the names of configurations (default: all)")
    parser.add_argument("--only", choices=["kills", "ranks"], help="one of the two tables")
    args = parser.parse_args()
    chosen = [name for name in CONFIGS if not args.names or any(part in name for part in args.names)]
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    tables = {
        "kills": (f"killed after step … of {EPOCHS * STEPS}", [str(step) for step in KILLED_AFTER], kills),
        "ranks": ("one rank, two ranks", ["loss", "gradient", "largest gradient", "validation (metrics)"], ranks),
    }
    for kind, (title, columns, measure) in tables.items():
        if args.only in (None, kind):
            print(row([title, *columns]), row(["---"] * (len(columns) + 1)), sep="\n")
            for name in chosen:
                print(row([name, *measure(name)]), flush=True)
            print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
