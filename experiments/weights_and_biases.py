"""The Weights & Biases logger of a run: online if logged in, else into the run's folder."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from experiments.run_folder import RunFolder, is_first_process


def wandb_mode() -> str:
    """``WANDB_MODE`` if it is set; else online if the user is logged in (an API key is known), or else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline"}.get(mode, mode)
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"


def wandb_logger(
    folder: RunFolder, config: dict[str, Any], project: str, job_type: str, tags: list[str]
) -> WandbLogger | None:
    """A logger that groups by technique and data set and keeps one W&B run across restarts; None if disabled.

    Only the first rank reports.

    Raises:
        ValueError: ``WANDB_MODE`` is not one of W&B's modes.
    """
    mode = wandb_mode()
    if mode == "disabled" or not is_first_process():
        return None
    if mode not in ("online", "offline", "shared"):
        raise ValueError(f"WANDB_MODE={mode!r}: expected 'online', 'offline' or 'disabled'")
    import wandb

    folder.path.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        name=folder.id,
        id=folder.id,
        dir=str(folder.path),
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        group=folder.name,
        job_type=job_type,
        tags=[*folder.name.split("/"), *tags],
        config=config,
        settings=wandb.Settings(silent=True),  # the report at the end says where everything is
    )
    return WandbLogger(experiment=run, log_model=mode == "online")
