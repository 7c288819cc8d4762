"""How far something is that takes long: a bar on a terminal, and else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info

from common.distributed import rank_and_world_size

T = TypeVar("T")

PATIENCE = 1.0
"""seconds without a bar"""
BETWEEN = 30.0
"""seconds between two lines"""


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one after another; on the first rank it is told how far they are, if they take long."""
    if rank_and_world_size()[0]:
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    console, begun, bar = Console(), time.monotonic(), None
    said = begun
    try:
        for count, item in enumerate(items):
            now = time.monotonic()
            if bar is None and console.is_terminal and now - begun > PATIENCE:
                bar = Progress(console=console, transient=True)
                bar.add_task(what, total=len(items))
                bar.start()
            if bar is not None:
                bar.update(bar.task_ids[0], completed=count)
            elif not console.is_terminal and now - said > BETWEEN:
                said = now
                rank_zero_info(f"{what}: {count} of {len(items)}")
            yield item
    finally:
        if bar is not None:
            bar.stop()
