"""MoCo: the queue, the key encoder, and the order in which things happen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.contrastive_views import ViewBatch
from experiments.cli import CLI
from lit_models.moco import KeyQueue, MoCo, momentum_at
from lit_models.networks.batch_norm import split_batch_norm
from lit_models.simclr import pairwise_logits
from tests.conftest import REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs/moco/digits.yaml")]
SMALL = ["-c", str(REPOSITORY / "tests/contracts/shrink/moco/digits.yaml")]


def make(**options: Any) -> MoCo:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"encoder": "conv", "width": 4, "out_dim": 6, "queue_size": 16, "bn_splits": 2}
    return MoCo(**{"image_shape": [1, 8, 8], **defaults, **options})


def batch(count: int = 8, seed: int = 0) -> ViewBatch:
    generator = torch.Generator().manual_seed(seed)
    views = torch.rand(2, count, 1, 8, 8, generator=generator)
    images = (views[0] * 255).to(torch.uint8)
    return ViewBatch(images=images, labels=torch.arange(count), views=views, small=views[:0])


class FakeTrainer:
    """What training_step and follow read of a Trainer."""

    current_epoch, global_step, estimated_stepping_batches = 0, 0, 10


def step(model: MoCo, data: ViewBatch, index: int = 0) -> dict[str, Tensor]:
    model._trainer = FakeTrainer()  # type: ignore[assignment]
    return model.training_step(data, index)


# The queue.


@pytest.mark.parametrize(("size", "batches"), [(10, [4, 4, 4, 4]), (7, [3, 3, 3, 2, 5]), (5, [8, 3, 12]), (6, [6, 6])])
def test_the_queue_holds_the_newest_keys_whatever_the_batch_size(size: int, batches: list[int]) -> None:
    queue, all_keys = KeyQueue(size, 2), torch.zeros(0, 2)
    for i, count in enumerate(batches):
        keys = torch.randn(count, 2)
        queue.enqueue(keys, i)
        all_keys = torch.cat([all_keys, keys])
        newest = all_keys[-size:]
        held = queue.keys[: min(size, len(all_keys))]
        assert sorted(held.tolist()) == sorted(newest.tolist())
        there = queue.logits(torch.ones(1, 2), 1.0).isfinite()
        assert int(there.sum()) == len(newest), "what is no key yet does not count"
    for place, key in enumerate(queue.keys.tolist()):  # each where its number among all keys says
        assert all_keys[torch.arange(len(all_keys)) % size == place][-1].tolist() == key


def test_the_age_of_the_keys() -> None:
    queue = KeyQueue(6, 2)
    assert float(queue.age(0)) == 0
    queue.enqueue(torch.zeros(2, 2), 0)
    queue.enqueue(torch.zeros(2, 2), 1)
    assert float(queue.age(3)) == pytest.approx((3 + 3 + 2 + 2) / 4)


def test_the_first_step_has_no_negatives_and_the_second_those_of_the_first() -> None:
    model = make(queue_size=32)
    assert float(step(model, batch())["loss"].detach()) == 0
    keys = model.queue.keys[:8].clone()
    q, k = F.normalize(torch.randn(3, 6), dim=1), F.normalize(torch.randn(3, 6), dim=1)
    logits = model.logits(q, k)
    assert torch.equal(logits.isfinite().sum(1), torch.full((3,), 9))
    torch.testing.assert_close(logits[:, 1:9], q @ keys.T / model.temperature)


def test_the_loss_is_equation_1_over_the_queue_from_before() -> None:
    model = make()
    step(model, batch(seed=1))
    queue = model.queue.keys.clone()[:8]
    data = batch(seed=2)
    q, k = F.normalize(model.query(data.views[0]), dim=1), model.keys(data.views[1], 1)[0]
    terms = []
    for query, key in zip(q, k, strict=True):
        positive = torch.exp(query @ key / 0.2)
        terms.append(-torch.log(positive / (positive + sum(torch.exp(query @ old / 0.2) for old in queue))))
    assert float(step(model, data, 1)["loss"].detach()) == pytest.approx(float(torch.stack(terms).mean()), abs=1e-5)


def test_no_half_of_a_symmetric_step_meets_its_own_keys() -> None:
    model = make(symmetric=True)
    seen = []
    logits = model.logits

    def watched(q: Tensor, k: Tensor) -> Tensor:
        seen.append(model.queue.keys.clone())
        return logits(q, k)

    model.logits = watched  # type: ignore[method-assign]
    step(model, batch())
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert int(model.queue.enqueued) == 16, "both views' keys are enqueued"
    first, second = F.normalize(model.keys(batch().views[0], 0)[1], dim=1), model.queue.keys[8:]
    torch.testing.assert_close(second, first)


def test_gradients_reach_the_query_encoder_alone() -> None:
    model = make()
    step(model, batch(seed=1))
    step(model, batch(seed=2))["loss"].backward()
    assert all(p.grad is not None for p in model.query.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.key.parameters())


# The key encoder.


def test_the_key_encoder_begins_as_a_copy_and_follows_with_its_head() -> None:
    model = make()
    for (name, q), (_, k) in zip(model.query.named_parameters(), model.key.named_parameters(), strict=True):
        assert torch.equal(q, k), name
        assert q is not k
    with torch.no_grad():
        for p in model.query.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.key.parameters()]
    model.follow(0.9)
    for old, k, q in zip(before, model.key.parameters(), model.query.parameters(), strict=True):
        torch.testing.assert_close(k, 0.9 * old + 0.1 * q)


def test_the_momentum_is_constant_or_rises_to_one() -> None:
    assert momentum_at(7, 10, 0.99, False) == 0.99
    assert momentum_at(0, 10, 0.99, True) == pytest.approx(0.99)
    assert momentum_at(5, 10, 0.99, True) == pytest.approx(0.995)
    assert momentum_at(10, 10, 0.99, True) == 1
    assert momentum_at(2, 10, 0.9, True) == pytest.approx(1 - 0.1 * (math.cos(math.pi * 0.2) + 1) / 2)


def test_shuffled_keys_come_back_in_order() -> None:
    model = make()
    model.key = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))  # of each image by itself
    views = batch().views[0]
    own, everyone = model.keys(views, 3)
    torch.testing.assert_close(own, F.normalize(model.key(views), dim=1))
    assert torch.equal(own, everyone)


def test_keys_are_normalized_in_other_groups_than_queries() -> None:
    model = make(bn_splits=4)
    model._trainer = FakeTrainer()  # type: ignore[assignment]
    views = batch().views[0]
    k, _ = model.keys(views, 0)
    assert not torch.allclose(k, F.normalize(model.query(views), dim=1), atol=1e-3), "the same groups would leak"
    again, _ = model.keys(views, 0)
    other, _ = model.keys(views, 1)
    assert torch.equal(k, again)
    assert not torch.allclose(k, other, atol=1e-4), "each step has groups of its own"
    whole = make(bn_splits=1)
    whole._trainer = FakeTrainer()  # type: ignore[assignment]
    torch.testing.assert_close(whole.keys(views, 0)[0], F.normalize(whole.query(views), dim=1))


# In a run.


def test_the_queue_and_the_key_encoder_are_in_the_checkpoint(fit: Callable[..., CLI]) -> None:
    cli = fit(*CONFIG, *SMALL, "--model.queue_size", "24", "--trainer.max_steps", "4", "--test_after_fit", "false")
    saved = torch.load(cli.folder.recovery_checkpoints()[0], weights_only=True)["state_dict"]
    assert int(saved["queue.enqueued"]) == 4 * 8
    assert torch.allclose(saved["queue.keys"].norm(dim=1), torch.ones(24), atol=1e-5)
    for name in cli.model.query.state_dict():
        assert f"key.{name}" in saved
    # moved away from where it began, and behind the query
    assert not torch.equal(saved["key.head.0.weight"], saved["query.head.0.weight"])


@pytest.mark.slow
def test_the_key_encoder_follows_once_an_optimizer_step(
    fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = []
    monkeypatch.setattr(MoCo, "follow", lambda self, momentum: followed.append((self.global_step, momentum)))
    fit(
        *CONFIG,
        *SMALL,
        "--trainer.max_steps",
        "3",
        "--trainer.accumulate_grad_batches",
        "2",
        "--test_after_fit",
        "false",
    )
    assert followed == [(step, 0.9) for step in (0, 1, 2)]
    followed.clear()
    fit(*CONFIG, *SMALL, "--trainer.max_steps", "2", "--model.momentum_schedule", "cosine", "--test_after_fit", "false")
    assert followed == [(0, pytest.approx(0.9)), (1, pytest.approx(0.95))]


def test_the_key_encoder_moves_in_a_run(fit: Callable[..., CLI]) -> None:
    cli = fit(*CONFIG, *SMALL, "--trainer.max_steps", "2", "--test_after_fit", "false")
    torch.manual_seed(0)
    for (name, q), (_, k) in zip(cli.model.query.named_parameters(), cli.model.key.named_parameters(), strict=True):
        assert not torch.equal(q, k), name
    still = fit(*CONFIG, *SMALL, "--trainer.max_steps", "2", "--model.momentum", "1.0", "--test_after_fit", "false")
    moved = [
        not torch.equal(a, b) for a, b in zip(cli.model.key.parameters(), still.model.key.parameters(), strict=True)
    ]
    assert all(moved)


def test_logits_are_in_full_precision_under_autocast() -> None:
    model = make()
    step(model, batch())
    q = F.normalize(torch.randn(3, 6), dim=1)
    expected = model.logits(q, q)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.logits(q, q)
        ours, _ = pairwise_logits(torch.stack([q, q]), 0.1)
    assert found.dtype == torch.float
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, pairwise_logits(torch.stack([q, q]), 0.1)[0])


def test_an_encoder_whose_norms_cannot_be_split_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="bn_splits=2: 1 of this encoder is a BatchNorm2d, which cannot be split"):
        split_batch_norm(network, 2)


@pytest.mark.slow
def test_what_cannot_be_is_refused(mistake: Callable[..., str]) -> None:
    too_long = mistake("fit", *CONFIG, *SMALL, "--model.queue_size", "201")
    assert too_long.startswith("queue_size=201: expected at most the 200 training images")
    few = mistake("fit", *CONFIG, *SMALL, "--model.queue_size", "50", "--data.label_fraction", "0.1")
    assert few.startswith("queue_size=50: expected at most the 20 training images")
    for options, found in (
        (["--data.views", "3"], "views=3, small_views=0"),
        (["--data.small_views", "1", "--data.small_size", "6"], "views=2, small_views=1"),
    ):
        assert mistake("fit", *CONFIG, *SMALL, *options) == f"{found}: MoCo expects 2 and 0, a query and a key"
    endless = ("--model.momentum_schedule", "cosine", "--trainer.max_epochs", "-1", "--model.scheduler", "null")
    assert mistake("fit", *CONFIG, *SMALL, *endless).startswith("momentum_schedule='cosine': needs trainer.max_epochs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 0}, "queue_size=0: expected at least 1"),
        ({"momentum": 1.1}, r"momentum=1.1: expected a number in \[0, 1\]"),
        ({"momentum_schedule": "linear"}, "momentum_schedule='linear': expected 'constant' or 'cosine'"),
        ({"temperature": 0}, "temperature=0: expected more than 0"),
        ({"bn_splits": 0}, "bn_splits=0: expected at least 1"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
