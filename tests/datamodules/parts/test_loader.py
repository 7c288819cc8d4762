"""TensorLoader: its order, its sharding over ranks, its position in an epoch, and the draws that go with samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from common.randomness import keyed_generator
from datamodules.parts.loader import TensorLoader, WorkerLoader, draws_per_sample
from tests.two_ranks import on_two_ranks

Ranks = Callable[[int, int], None]


class Pair(NamedTuple):
    ids: Tensor
    squares: Tensor


class Source:
    """A batch source of ``size`` numbers; asking for ``broken`` fails."""

    def __init__(self, size: int, broken: int | None = None) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: Tensor) -> Pair:
        if self.broken is not None and (indices == self.broken).any():
            raise ValueError(f"record {self.broken}: not a number")
        return Pair(indices, indices**2)


def pairs(size: int) -> Pair:
    return Pair(torch.arange(size), torch.arange(size) ** 2)


def ids_of(loader: TensorLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


# One rank.


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        torch.manual_seed(torch.randint(1000, ()).item())
        loader = TensorLoader(pairs(50), 7, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return ids_of(loader)

    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    for key, batches in orders.items():
        assert order(*key) == batches
        assert sorted(i for batch in batches for i in batch) == list(range(50))
    # Also seed 1 in epoch 0 sees another order than seed 0 in epoch 1.
    assert len({str(batches) for batches in orders.values()}) == len(orders)


def test_epoch_is_read_when_the_first_batch_is_asked_for() -> None:
    expected = TensorLoader(pairs(20), 4, shuffle=True)
    expected.set_epoch(3)
    loader = TensorLoader(pairs(20), 4, shuffle=True)
    batches = iter(loader)
    loader.sampler.set_epoch(3)  # by way of Lightning's path
    assert [batch.ids.tolist() for batch in batches] == ids_of(expected)


def test_iterating_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    list(TensorLoader(pairs(20), 4, shuffle=True))
    list(WorkerLoader(Source(20), 4, num_workers=0, shuffle=True))
    draws_per_sample(trainer_at(0, 0), 4, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_shuffling_the_order_is_the_sources_own() -> None:
    loader = TensorLoader(pairs(7), 3)
    loader.set_epoch(5)
    assert ids_of(loader) == [[0, 1, 2], [3, 4, 5], [6]]


def test_kind_of_tuple_is_kept_and_rows_stay_together() -> None:
    for batch in TensorLoader(pairs(10), 4, shuffle=True):
        assert type(batch) is Pair
        assert torch.equal(batch.squares, batch.ids**2)
    for batch in TensorLoader((torch.arange(10), torch.arange(10) ** 2), 4, shuffle=True):
        assert type(batch) is tuple
        assert torch.equal(batch[1], batch[0] ** 2)
    for batch in TensorLoader(Source(10), 4, shuffle=True):
        assert type(batch) is Pair
        assert torch.equal(batch.squares, batch.ids**2)


@pytest.mark.parametrize(("size", "kept", "dropped"), [(10, [4, 4, 2], [4, 4]), (8, [4, 4], [4, 4]), (4, [4], [4])])
def test_drop_last_leaves_out_an_incomplete_batch_only(size: int, kept: list[int], dropped: list[int]) -> None:
    for drop_last, expected in ((False, kept), (True, dropped)):
        loader = TensorLoader(pairs(size), 4, shuffle=True, drop_last=drop_last)
        assert [len(batch.ids) for batch in loader] == expected
        assert len(loader) == len(expected)


def test_over_another_source_all_else_is_the_same() -> None:
    loader = TensorLoader(pairs(9), 4, shuffle=True, seed=3)
    other = loader.over(pairs(6))
    assert ids_of(other) == ids_of(TensorLoader(pairs(6), 4, shuffle=True, seed=3))
    assert len(loader) == 3, "the first is left as it was"
    with pytest.raises(ValueError, match="empty"):
        loader.over(pairs(0))


@pytest.mark.parametrize(("size", "sizes"), [(10, [4, 4]), (4, [4]), (3, [3])])
def test_full_batches_only(size: int, sizes: list[int]) -> None:
    loader = TensorLoader(pairs(size), 4)
    assert [len(batch.ids) for batch in loader.in_full_batches()] == sizes
    assert sum(map(len, ids_of(loader))) == size, "the first is left as it was"


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        TensorLoader(pairs(4), batch_size)


@pytest.mark.parametrize("source", [pairs(0), Source(0)])
def test_empty_source_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        TensorLoader(source, 2)


def test_tensors_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        TensorLoader((torch.zeros(3), torch.zeros(4)), 2)


def test_fewer_samples_than_one_batch_are_refused_where_the_last_is_dropped(be_rank: Ranks) -> None:
    with pytest.raises(ValueError, match=r"batch_size=5.*4 samples"):
        list(TensorLoader(pairs(4), 5, drop_last=True))
    assert ids_of(TensorLoader(pairs(4), 5)) == [[0, 1, 2, 3]]
    be_rank(0, 2)
    with pytest.raises(ValueError, match="batch_size=3 on 2 ranks"):
        list(TensorLoader(pairs(5), 3, drop_last=True))


def test_fewer_samples_than_ranks_are_refused(be_rank: Ranks) -> None:
    be_rank(1, 4)
    with pytest.raises(ValueError, match="3 samples for 4 ranks"):
        list(TensorLoader(pairs(3), 1))


# Several ranks.


def test_ranks_interleave_to_the_global_batches_of_one_rank(be_rank: Ranks) -> None:
    for size in (8, 9, 12, 17, 30):
        for drop_last in (False, True):
            be_rank(0, 1)
            whole = TensorLoader(pairs(size), 4, shuffle=True, drop_last=drop_last, seed=3)
            whole.set_epoch(2)
            expected = ids_of(whole)
            if len(expected) > 1 and len(expected[-1]) == 1:  # too few for two ranks: they join the batch before
                expected[-2:] = [expected[-2] + expected[-1]]
            parts = []
            for rank in range(2):
                be_rank(rank, 2)
                loader = TensorLoader(pairs(size), 2, shuffle=True, drop_last=drop_last, seed=3)
                loader.set_epoch(2)
                parts.append(ids_of(loader))
            assert parts[0] == [batch[0::2] for batch in expected]
            assert parts[1] == [batch[1::2] for batch in expected]


def test_any_ranks_go_through_every_sample_once_in_step_and_never_see_an_empty_batch(be_rank: Ranks) -> None:
    for size in range(1, 26):
        source = pairs(size)
        for world_size in range(1, min(size, 5) + 1):
            for batch_size in (1, 2, 3, 7, 30):
                for drop_last in (False, True):
                    if drop_last and size < batch_size * world_size:
                        continue
                    parts = []
                    for rank in range(world_size):
                        be_rank(rank, world_size)
                        loader = TensorLoader(source, batch_size, shuffle=True, drop_last=drop_last, seed=size)
                        parts.append(ids_of(loader))
                        assert len(parts[-1]) == len(loader)
                    case = f"{size} samples, {world_size} ranks, batches of {batch_size}, drop_last={drop_last}"
                    seen = sorted(i for part in parts for batch in part for i in batch)
                    assert len({len(part) for part in parts}) == 1, case
                    assert all(batch for part in parts for batch in part), case
                    assert len(set(seen)) == len(seen), case
                    if drop_last:
                        assert {len(batch) for part in parts for batch in part} == {batch_size}, case
                        assert len(seen) == size // (batch_size * world_size) * batch_size * world_size, case
                    else:
                        assert seen == list(range(size)), case
                        sizes = [[len(batch) for batch in part] for part in parts]
                        assert all(max(step) - min(step) <= 1 for step in zip(*sizes, strict=True)), case
                        assert max(map(max, sizes)) <= batch_size + 1, case


# Position in the epoch.


@pytest.mark.parametrize("size", [12, 14])
def test_resuming_at_any_position_gives_exactly_the_rest(size: int) -> None:
    def loader(epoch: int) -> TensorLoader:
        made = TensorLoader(pairs(size), 4, shuffle=True)
        made.set_epoch(epoch)
        return made

    expected, following = ids_of(loader(2)), ids_of(loader(3))
    for position in range(1, len(expected) + 1):
        begun = loader(2)
        batches = iter(begun)
        for _ in range(position):
            next(batches)
        state = begun.state_dict()
        resumed = loader(2)
        resumed.load_state_dict(state)
        if position == len(expected):  # the epoch is over
            assert state == loader(0).state_dict()
            resumed.set_epoch(3)
            assert ids_of(resumed) == following
        else:
            assert ids_of(resumed) == expected[position:]
            assert resumed.state_dict() == {"position": 0}
            resumed.set_epoch(3)
            assert ids_of(resumed) == following  # the epoch after it is whole


def test_position_of_a_resumed_epoch_counts_from_its_beginning() -> None:
    resumed = TensorLoader(pairs(20), 4)
    resumed.load_state_dict({"position": 2})
    next(iter(resumed))
    assert resumed.state_dict() == {"position": 3}


def test_an_abandoned_epoch_does_not_move_the_next() -> None:
    loader = TensorLoader(pairs(12), 4)
    next(iter(loader))
    assert ids_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


# Generators and draws.


def test_neighboring_keys_give_unrelated_streams() -> None:
    keys: list[tuple[int | str, ...]] = [(seed, epoch) for seed in range(12) for epoch in range(12)]
    keys += [(1, "a"), (1, "b"), ("1", "a"), (1, "a", 0), (1, 1, 1), (111,), ("1", 1)]
    draws = torch.stack([torch.rand(2000, generator=keyed_generator(*key)) for key in keys])
    correlation = torch.corrcoef(draws) - torch.eye(len(keys))
    assert correlation.abs().max() < 6 / 2000**0.5
    assert torch.equal(draws[5], torch.rand(2000, generator=keyed_generator(*keys[5])))
    assert (draws.mean(1) - 0.5).abs().max() < 0.04


def trainer_at(epoch: int, batches_before: int) -> Any:
    """What :func:`draws_per_sample` asks of a trainer that is about to train on a batch."""
    return SimpleNamespace(
        current_epoch=epoch,
        fit_loop=SimpleNamespace(batch_idx=batches_before - 1),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


@pytest.mark.parametrize("samples", [6, 7, 40, 41])
def test_draws_of_two_ranks_interleave_to_those_of_one(be_rank: Ranks, samples: int) -> None:
    whole = draws_per_sample(trainer_at(1, 5), samples, 3, seed=2)
    assert whole.shape == (samples, 3)
    assert ((whole >= 0) & (whole < 1)).all()
    for rank in range(2):
        be_rank(rank, 2)
        own = draws_per_sample(trainer_at(1, 5), len(range(rank, samples, 2)), 3, seed=2)
        assert torch.equal(own, whole[rank::2])


def test_draws_differ_between_samples_steps_epochs_and_seeds() -> None:
    rows = [
        row
        for seed in range(3)
        for epoch in range(3)
        for step in range(3)
        for row in draws_per_sample(trainer_at(epoch, step), 10, 3, seed=seed).tolist()
    ]
    assert len({tuple(row) for row in rows}) == len(rows) == 270
    assert len({value for row in rows for value in row}) > 0.99 * 810
    again = draws_per_sample(trainer_at(0, 1), 10, 3, seed=0)
    assert again.tolist() == rows[10:20]


class Recorder(LightningModule):
    """Trains on nothing and keeps the draws that came with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append((batch[0].tolist(), batch[1]))
        return self.weight * 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Draws(LightningDataModule):
    def train_dataloader(self) -> TensorLoader:
        return TensorLoader((torch.arange(20),), 4, shuffle=True, seed=7)

    def on_after_batch_transfer(self, batch: tuple[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        assert self.trainer is not None
        return batch[0], draws_per_sample(self.trainer, 4, 2, seed=7)


def test_in_a_real_run_each_batch_has_the_draws_of_its_place_also_after_resuming(tmp_path: Path) -> None:
    def run(**options: Any) -> Recorder:
        recorder = Recorder()
        checkpoint = options.pop("ckpt_path", None)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(recorder, Draws(), ckpt_path=checkpoint, weights_only=True)
        return recorder

    whole = run(enable_checkpointing=False).seen
    orders = []
    for epoch in range(2):
        loader = TensorLoader((torch.arange(20),), 4, shuffle=True, seed=7)
        loader.set_epoch(epoch)
        orders += [(batch[0].tolist(), epoch, i) for i, batch in enumerate(loader)]
    assert len(whole) == len(orders) == 10
    for (ids, draws), (order, epoch, step) in zip(whole, orders, strict=True):
        assert ids == order
        generator = keyed_generator(7, "augment", epoch, step)  # step: the batch's number in its epoch
        assert torch.equal(draws, torch.rand(4, 2, generator=generator))
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    run(callbacks=[callback])
    for step in (3, 5, 7):
        rest = run(enable_checkpointing=False, ckpt_path=tmp_path / f"step={step}.ckpt").seen
        assert [ids for ids, _ in rest] == [ids for ids, _ in whole[step:]]
        assert torch.equal(torch.stack([d for _, d in rest]), torch.stack([d for _, d in whole[step:]]))


# Workers.


def test_workers_form_the_same_batches_in_the_same_order() -> None:
    here, there = TensorLoader(Source(11), 3, shuffle=True), WorkerLoader(Source(11), 3, num_workers=2, shuffle=True)
    for loader in (here, there):
        loader.set_epoch(4)
    assert len(there) == len(here)
    for one, other in zip(here, there, strict=True):
        assert type(other) is Pair
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.squares, other.squares)
    assert there.state_dict() == {"position": 0}


def test_workers_resume_where_batches_were_handed_out_to() -> None:
    loader = WorkerLoader(Source(12), 2, num_workers=2, shuffle=True)
    expected = ids_of(loader)
    batches = iter(loader)
    next(batches)
    next(batches)
    resumed = WorkerLoader(Source(12), 2, num_workers=0, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    assert ids_of(resumed) == expected[2:]


def test_a_sources_error_comes_out_of_a_worker_as_it_is() -> None:
    loader = WorkerLoader(Source(6, broken=4), 2, num_workers=2)
    batches = iter(loader)
    assert next(batches).ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"^record 4: not a number$"):
        list(batches)


def batches_of_ten(batch_size: int) -> list[list[int]]:
    return [batch[0].tolist() for batch in TensorLoader((torch.arange(10),), batch_size, shuffle=True)]


def test_two_ranks_share_each_global_batch() -> None:
    for rank, batches in enumerate(on_two_ranks(batches_of_ten, 2)):
        assert batches == [batch[rank::2] for batch in batches_of_ten(4)]
