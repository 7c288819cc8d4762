"""How far something is that takes long: a bar on a terminal, and else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from lightning.pytorch.utilities import rank_zero_info

from common.distributed import rank_and_world_size

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

PATIENCE = 1.0
"""seconds without a bar"""
BETWEEN = 30.0
"""seconds between two lines"""


class Meter:
    """Tells how far something is, and how long it still takes: ``with Meter(3000, "scan.png") as meter: …``.

    On a terminal it is a bar, which comes once it has taken a while; elsewhere a line now and then.

    Args:
        total: number of steps.
        what: is done in words, which :meth:`advance` can change.
        say: what a line is told to; by default the log of the first rank.
    """

    def __init__(self, total: int, what: str, say: Callable[[str], None] = rank_zero_info) -> None:
        from rich.console import Console

        self.total, self.what, self.say = total, what, say
        self.done = 0
        self._console, self._bar = Console(), None  # type: Console, Progress | None
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, count: int) -> None:
        """Steps that need not be done, which say nothing of how long the others take."""
        self.total -= count

    def advance(self, count: int = 1, what: str | None = None) -> None:
        """Steps that are done."""
        self.done += count
        self.what = what or self.what
        now = time.monotonic()
        if self._console.is_terminal:
            if self._bar is None and now - self._begun > PATIENCE:
                self._bar = self._made()
            if self._bar is not None:
                self._bar.update(
                    self._bar.task_ids[0],
                    description=self.what,
                    completed=self.done,
                    total=self.total,
                    left=self._left(now),
                )
        elif now - self._said > BETWEEN:
            self._said = now
            left = self._left(now)
            self.say(f"{self.what}: {self.done:,} of {self.total:,}{left and ', '}{left}")

    def _left(self, now: float) -> str:
        """How much longer it takes, in words; nothing before anything is done."""
        if not self.done:
            return ""
        return f"{in_words((now - self._begun) / self.done * (self.total - self.done))} left"

    def _made(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}/{task.total:,}")]
        bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=self._console, transient=True)
        bar.add_task(self.what, total=self.total, left="")
        bar.start()
        return bar


def in_words(seconds: float) -> str:
    """A time as people say it: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one after another; on the first rank it is told how far they are, if they take long."""
    if rank_and_world_size()[0]:
        yield from items
        return
    with Meter(len(items), what) as meter:
        for item in items:
            meter.advance(0)
            yield item
            meter.done += 1
