"""Adds to Lightning's checkpoint what a resumed run needs to equal an uninterrupted one bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from experiments.technique import Fingerprinted, Stateful


class ExactResume(Callback):
    """Saves and restores the random generators of every rank and the position within the epoch.

    The generators are Python's, NumPy's, PyTorch's and CUDA's. They are restored right before the first step, since
    building and preparing the model draw numbers of their own. The position is the one that Lightning keeps of a loader
    with a ``state_dict``. It is corrected when it is saved, since a loader does not know when ``limit_train_batches``
    ends an epoch, and handed to the loader here, since Lightning leaves that out where a schedule has asked for the
    number of steps.

    Data that changed since the checkpoint was saved are refused: on them no run could be repeated.

    Args:
        allow_changed_data: go on all the same.

    Raises:
        ValueError: the training data are others than the checkpoint's.
    """

    def __init__(self, allow_changed_data: bool = False) -> None:
        self.allow_changed_data = allow_changed_data
        self._states: list[dict[str, Any]] = []
        self._loaders: list[dict[str, Any]] = []
        self._fingerprints: list[int | None] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [generator_states()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            dist.all_gather_object(states, generator_states())
        checkpoint["generators"] = states
        checkpoint["fingerprints"] = self._fingerprints
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for state in _loader_states(checkpoint):
            if "position" in state:
                state["position"] = 0 if progress.is_last_batch else progress.current.ready
        checkpoint["epoch_ended"] = progress.is_last_batch

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._states = checkpoint.get("generators", [])
        self._fingerprints = checkpoint.get("fingerprints")
        self._loaders = _loader_states(checkpoint)
        if "position" in checkpoint:  # where older checkpoints have it
            self._loaders = [{"position": checkpoint["position"]} for _ in self._loaders]
            checkpoint["epoch_ended"] = checkpoint["position"] == 0
        if checkpoint.get("epoch_ended") and trainer.max_steps != -1 and "loops" in checkpoint:
            _complete_epoch(checkpoint["loops"]["fit_loop"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self._states) == trainer.world_size:  # on another number of ranks there is nothing to repeat
            restore_generators(self._states[trainer.global_rank])
        loaders = CombinedLoader(trainer.train_dataloader).flattened
        found = [loader.fingerprint() if isinstance(loader, Fingerprinted) else None for loader in loaders]
        if self._fingerprints not in (None, found) and not self.allow_changed_data:
            raise ValueError(
                "the training data differ from those that the checkpoint was saved with; use the same data, or "
                "--allow_changed_data true"
            )
        self._fingerprints = found
        stateful = [loader for loader in loaders if isinstance(loader, Stateful)]
        for loader, state in zip(stateful, self._loaders, strict=False):
            loader.load_state_dict(state)
        self._states, self._loaders = [], []


def _loader_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """What Lightning has saved of the training loaders."""
    states: list[dict[str, Any]] = (
        checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    )
    return states


def _complete_epoch(loop: dict[str, Any]) -> None:
    """Completes the epoch in the state of the fit loop, which was saved just before Lightning would do so itself.

    With ``max_steps``, Lightning would treat such a state as mid-epoch, find no batch left, and end the run there.
    """
    epochs = loop["epoch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        counts["completed"] = counts["processed"]
    batches = loop["epoch_loop.batch_progress"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # it adds one when it restarts


def generator_states() -> dict[str, Any]:
    """The generator states of this process, as plain tensors and numbers."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    states = {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Sets the generators of this process to ``states``."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
