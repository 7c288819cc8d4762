"""The two ranks that other tests rely on: what they see, and what is said of one that fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.two_ranks import on_two_ranks


def seen() -> tuple[int, int, str, str | None, str | None]:
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    return dist.get_rank(), int(total), os.getcwd(), os.environ.get("MINE"), os.environ.get("LOCAL_RANK")


def test_they_compute_together_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "1")
    assert on_two_ranks(seen) == [(0, 3, str(tmp_path), "1", "0"), (1, 3, str(tmp_path), "1", "1")]


def leave_traces() -> None:
    os.environ["MINE"] = "2"
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)


def found() -> tuple[str | None, str, torch.dtype, int]:
    return os.environ.get("MINE"), os.getcwd(), torch.get_default_dtype(), torch.initial_seed()


def test_nothing_is_left_to_the_next(tmp_path: Path) -> None:
    before = on_two_ranks(found)
    on_two_ranks(leave_traces)
    assert on_two_ranks(found) == before


def fail(rank: int) -> None:
    if dist.get_rank() == rank:
        print("shortly before")
        raise ValueError("the reason")
    dist.barrier()  # which nobody comes to


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_is_told_with_its_traceback(rank: int) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)rank {rank} of 2.*shortly before.*in fail.*ValueError: the reason"):
        on_two_ranks(fail, rank)
    assert len(on_two_ranks(seen)) == 2, "the next call has others"


def die() -> None:
    os._exit(3)


def test_a_rank_that_dies_is_told() -> None:
    with pytest.raises(AssertionError, match=r"rank \d of 2"):
        on_two_ranks(die)


def hang() -> None:
    time.sleep(600)


def test_ranks_that_hang_are_ended_and_told_where() -> None:
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)Timeout.*in hang"):
        on_two_ranks(hang, seconds=1)
    assert time.monotonic() - start < 60
