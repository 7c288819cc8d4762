"""A model that is given another kind of batch than it takes is told so before its first step."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from common.trainer import datamodule_of
from experiments.arguments import Mistake


class FirstBatch(Callback):
    """Compares the first batch of each stage with the type that ``training_step`` (…) annotates its batch with.

    Raises:
        Mistake: the batch is of another type. A step without an annotation, or with Any, takes whatever comes.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._check(trainer, pl_module, "training_step", batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._check(trainer, pl_module, "validation_step", batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._check(trainer, pl_module, "test_step", batch)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._check(trainer, pl_module, "predict_step", batch)

    def _check(self, trainer: Trainer, pl_module: LightningModule, step: str, batch: object) -> None:
        if (wanted := batch_type(getattr(type(pl_module), step))) and not is_a(batch, wanted):
            data = type(datamodule_of(trainer)).__name__
            raise Mistake(
                f"data={data}: gives batches of type {type(batch).__name__}, and {type(pl_module).__name__} takes "
                f"{' or '.join(wanted)}; expected data that fit the model"
            )
        hook = {"training_step": "train"}.get(step, step.removesuffix("_step"))
        setattr(self, f"on_{hook}_batch_start", None)  # once: Lightning passes over what is not callable


def batch_type(step: Any) -> list[str]:
    """Names of the types that a step's batch is annotated with, its first argument; none where it takes anything."""
    arguments = list(inspect.signature(step).parameters.values())[1:]
    annotation = arguments[0].annotation if arguments else inspect.Parameter.empty
    if annotation is inspect.Parameter.empty:
        return []
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    names = [name.partition("[")[0].strip().rpartition(".")[2] for name in text.split("|")]
    return [] if "Any" in names or "object" in names else names


def is_a(batch: object, names: list[str]) -> bool:
    """Whether one of the types of ``batch`` has one of these names.

    By name, since a batch type that only annotates is often imported for type checkers alone.
    """
    return any(part.__name__ in names for part in type(batch).__mro__)
