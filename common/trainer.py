"""What Lightning has but does not declare."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def datamodule_of(trainer: Trainer) -> Any:
    """The data module of what runs; None where it was given loaders instead."""
    return trainer.datamodule  # type: ignore[attr-defined]
