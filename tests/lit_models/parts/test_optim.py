"""Schedules against their formulas and in a trainer's run, and what is optimized."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from datamodules.parts.loader import TensorLoader
from lit_models.parts.optim import WarmupCosine, configure_optimizers


def rates(schedule: WarmupCosine, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return seen


def sgd(*base: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in base])


@pytest.mark.parametrize(("warmup", "total"), [(0.1, 25), (0.0, 7), (0.5, 10), (0.01, 3)])
def test_warmup_cosine_is_its_formula(warmup: float, total: int) -> None:
    warm = math.ceil(warmup * total)
    for step, lrs in enumerate(rates(WarmupCosine(sgd(0.3, 2.0), warmup, total), total)):
        if step < warm:
            factor = (step + 1) / (warm + 1)
        else:
            factor = (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
        assert lrs == pytest.approx([0.3 * factor, 2.0 * factor])


def test_warmup_cosine_by_hand() -> None:
    seen = [lr for (lr,) in rates(WarmupCosine(sgd(1.0), 0.25, 8), 10)]
    assert seen[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert seen[5] == pytest.approx(0.5)  # halfway between steps 2 and 8
    assert seen == [*seen[:3], *sorted(seen[3:], reverse=True)]
    assert seen[8:] == pytest.approx([0, 0])  # at its end and after it


def test_total_steps_that_were_said_are_kept() -> None:
    told, untold = WarmupCosine(sgd(1.0), 0.5, 4), WarmupCosine(sgd(1.0), 0.5)
    for schedule in (told, untold):
        schedule.set_total_steps(10)
    assert (told.total_steps, untold.total_steps) == (4, 10)
    assert rates(untold, 10) == rates(WarmupCosine(sgd(1.0), 0.5, 10), 10)  # also at step 0


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 10])
def test_warmup_is_a_share(warmup: float) -> None:
    with pytest.raises(ValueError, match=f"warmup={warmup}"):
        WarmupCosine(sgd(1.0), warmup)


class Watched(LightningModule):
    """Notes the learning rate of each optimizer step."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.fixed = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.scheduler = scheduler
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.seen.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return self.weight * 1

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, lambda params: torch.optim.SGD(params, lr=0.5), self.scheduler)


def train(module: Watched, tmp_path: Path, **options: Any) -> Watched:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, TensorLoader((torch.zeros(12),), 2))
    return module


@pytest.mark.parametrize(
    ("options", "total"),
    [({"max_epochs": 2}, 12), ({"max_steps": 9}, 9), ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4)],
)
def test_the_schedule_is_as_long_as_the_trainers_run(options: Any, total: int, tmp_path: Path) -> None:
    module = train(Watched(lambda optimizer: WarmupCosine(optimizer, 0.2)), tmp_path, **options)
    expected = [lr for (lr,) in rates(WarmupCosine(sgd(0.5), 0.2, total), total)]
    assert module.seen == pytest.approx(expected)


def test_other_schedules_go_by_epochs(tmp_path: Path) -> None:
    module = train(Watched(lambda optimizer: StepLR(optimizer, 1, 0.1)), tmp_path, max_epochs=2)
    assert module.seen == pytest.approx([0.5] * 6 + [0.05] * 6)
    assert train(Watched(None), tmp_path, max_epochs=1).seen == [0.5] * 6


def test_only_what_needs_a_gradient_is_optimized() -> None:
    made = Watched(None).configure_optimizers()["optimizer"]
    assert [len(group["params"]) for group in made.param_groups] == [1]
    plateau = Watched(lambda optimizer: ReduceLROnPlateau(optimizer)).configure_optimizers()
    assert plateau["lr_scheduler"]["monitor"] == "val/loss"
