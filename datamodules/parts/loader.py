"""TensorLoader: whole-batch indexing over data in memory, sharded over ranks, resumable at any batch."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.checks import at_least
from common.distributed import rank_and_world_size
from common.randomness import draws_of_place, keyed_generator


class BatchSource(Protocol):
    """Anything that returns one whole batch for a vector of sample indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Any: ...


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of the content of the tensors."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.contiguous().numpy().reshape(-1).view("uint8").data, crc)
    return crc


def training_draws(trainer: Trainer, num_samples: int, num_draws: int, seed: int) -> Tensor:
    """:func:`draws_of_place` for the training batch being prepared, one row per sample.

    They are a function of (seed, epoch, batch, place), so a resumed run repeats them.
    """
    batch_idx = trainer.fit_loop.batch_idx + 1  # the loop counts a batch only once it is on the device
    return draws_of_place(num_samples, num_draws, seed, "augment", trainer.current_epoch, batch_idx)


def draws_per_sample(trainer: Trainer, num_samples: int, num_draws: int, seed: int) -> Tensor:
    """:func:`training_draws` on the trainer's device."""
    draws = training_draws(trainer, num_samples, num_draws, seed)
    return draws.to(trainer.strategy.root_device, non_blocking=True)


GATHERED_BYTES = 2**18
"""small batches are gathered together, up to this many bytes, and then split, which is cheaper than one by one"""


class TensorLoader:
    """Batches of a source that fits in memory, by one indexing operation per batch instead of one per sample.

    The order of an epoch is a function of (seed, epoch). A *global* batch consists of ``batch_size × ranks``
    consecutive samples in that order; rank r takes every ranks-th of them, starting at r. So any number of ranks uses
    the same global batches, and in evaluation every sample is seen exactly once.

    Args:
        source: a (named) tuple of tensors with equal first dimension, or a :class:`BatchSource`.
        batch_size: samples per rank and batch.
        shuffle: draw a new order each epoch; otherwise the source's own order.
        drop_last: leave out the last global batch if it is not full. If it is kept but has fewer samples than there are
            ranks, they join the previous batch, so that no rank ever sees an empty batch.
        seed: seed of the order.
        pin_memory: pin each batch for fast transfer; by default if there is a CUDA device.

    ``state_dict`` and ``load_state_dict`` hold the position within the epoch: an iterator created after loading
    continues with the next batch. Lightning stores both in the checkpoint and calls ``set_epoch``.

    Raises:
        ValueError: the source is empty or its tensors differ in length; the batch size is not positive; there are
            fewer samples than ranks, or, with ``drop_last``, than one global batch.
    """

    def __init__(
        self,
        source: BatchSource | tuple[Tensor, ...],
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        at_least(1, batch_size=batch_size)
        self.source, self.num_samples = source, _num_samples(source)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.epoch = 0
        self._fixed: Tensor | None = None  # the order of every epoch
        self._position = 0  # batches of this epoch that were handed out
        self._resumed = False  # the next iterator goes on at _position

    def over(self, source: BatchSource | tuple[Tensor, ...]) -> Self:
        """The same loader over another source: some rows of its own, say."""
        loader = copy(self)
        loader.source, loader.num_samples, loader._fixed = source, _num_samples(source), None
        return loader

    def in_order(self, order: Tensor) -> Self:
        """The same loader with its samples in the order (N,), in every epoch."""
        loader = copy(self)
        loader._fixed = order
        return loader

    def in_full_batches(self) -> Self:
        """The same loader without the last batch if it is not full.

        Where there are too few samples for one full batch, the one batch has all of them.
        """
        loader = copy(self)
        loader.batch_size = min(self.batch_size, self.num_samples // rank_and_world_size()[1])
        loader.drop_last = True
        return loader

    batch_sampler = None  # Lightning asks every loader that has a sampler

    @property
    def sampler(self) -> TensorLoader:
        """Itself: Lightning looks for ``set_epoch`` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        # An epoch that was handed out whole is over: who resumes starts the next one at its first batch.
        return {"position": self._position % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]
        self._resumed = True

    def fingerprint(self) -> int | None:
        """A checksum of the data and their storage order; None if the source has none."""
        if isinstance(self.source, tuple):
            return checksum(self.source)
        made = getattr(self.source, "fingerprint", None)
        return made() if made else None

    def _order(self) -> Tensor:
        """The samples of this epoch (N,), a function of (seed, epoch), the same on every rank."""
        if self._fixed is not None:
            return self._fixed
        if self.shuffle:
            return torch.randperm(self.num_samples, generator=keyed_generator(self.seed, self.epoch))
        return torch.arange(self.num_samples)

    def _boundaries(self) -> list[int]:
        """The positions at which the global batches begin, and at which the last one ends."""
        _, world_size = rank_and_world_size()
        if self.num_samples < world_size:
            raise ValueError(f"{self.num_samples} samples for {world_size} ranks: expected at least one per rank")
        step = self.batch_size * world_size
        starts = list(range(0, self.num_samples + 1, step))  # the end of the last full batch included
        left_over = self.num_samples - starts[-1]
        if left_over and not self.drop_last:
            if left_over < world_size:
                starts.pop()
            starts.append(self.num_samples)
        if len(starts) < 2:
            raise ValueError(
                f"batch_size={self.batch_size} on {world_size} ranks: expected at most {self.num_samples} samples in a "
                "global batch, since an incomplete last batch is dropped"
            )
        return starts

    def __len__(self) -> int:
        return len(self._boundaries()) - 1

    def __iter__(self) -> Iterator[Any]:
        # A generator: the epoch is read when the first batch is asked for, which is after Lightning's set_epoch.
        remaining = self._remaining()
        if not isinstance(self.source, tuple):
            for indices in remaining:
                self._position += 1
                yield self._pinned(self.source[indices])
            return
        make = getattr(type(self.source), "_make", tuple)
        row_bytes = sum(tensor[0].numel() * tensor.element_size() for tensor in self.source)
        at_once = max(1, GATHERED_BYTES // (row_bytes * self.batch_size))  # batches
        for group in (remaining[i : i + at_once] for i in range(0, len(remaining), at_once)):
            sizes = [len(indices) for indices in group]
            rows = torch.cat(group)
            # index_select copies rows whole: for images many times faster than tensor[rows].
            columns = [tensor.index_select(0, rows).split(sizes) for tensor in self.source]
            for tensors in zip(*columns, strict=True):
                self._position += 1
                yield self._pinned(make(tensors))

    def _remaining(self) -> list[Tensor]:
        """The samples of this rank's batches from the current position, which is the epoch's start unless resumed."""
        if not self._resumed:
            self._position = 0
        self._resumed = False
        rank, world_size = rank_and_world_size()
        order, bounds = self._order(), self._boundaries()
        # Global batches begin at multiples of the number of ranks, so a rank's part of each is a run of its own part.
        sizes = [len(range(start + rank, end, world_size)) for start, end in pairwise(bounds)]
        return list(order[rank : bounds[-1] : world_size].split(sizes))[self._position :]

    def _pinned(self, batch: Any) -> Any:
        if not self.pin_memory:
            return batch
        return getattr(type(batch), "_make", tuple)([tensor.pin_memory() for tensor in batch])


def _num_samples(source: BatchSource | tuple[Tensor, ...]) -> int:
    if isinstance(source, tuple):
        lengths = {len(tensor) for tensor in source}
        if len(lengths) != 1:
            raise ValueError(f"tensors with {sorted(lengths)} samples: expected the same number in each")
        count = lengths.pop()
    else:
        count = len(source)
    if count == 0:
        raise ValueError("the data set is empty: expected at least one sample")
    return count


class WorkerLoader(TensorLoader):
    """A :class:`TensorLoader` whose batches are formed by ``num_workers`` processes, in the same order.

    It is for slow sources, for example images that must be decoded.
    """

    def __init__(self, source: BatchSource, batch_size: int, *, num_workers: int, **options: Any) -> None:
        super().__init__(source, batch_size, **options)
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[Any]:
        batches = DataLoader(
            _Guarded(self.source),
            batch_size=None,
            sampler=self._remaining(),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=keyed_generator(self.seed, "workers"),  # else it draws from the run's own generator
        )
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            self._position += 1  # of batches that were handed out: workers run ahead of it
            yield batch


class _Guarded(Dataset[Any]):
    """Passes on the original error for broken data: a DataLoader would wrap a worker's error in a traceback."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, indices: Tensor) -> Any:
        try:
            return self.source[indices]
        except (OSError, ValueError) as error:
            return error
