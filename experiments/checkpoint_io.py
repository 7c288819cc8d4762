"""Checkpoints that are either complete or absent, and that are read as data, never as code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder and renames the file once it is completely on disk.

    If the process is killed while writing, or if the disk is full, earlier checkpoints stay untouched.

    Raises:
        OSError: the disk is full, or the file system failed in another way; names the file and the reason.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
            temporary.unlink(missing_ok=True)
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            free = os.statvfs(target.parent)
            left = free.f_bavail * free.f_frsize / 2**20
            raise OSError(
                f"{target}: could not be saved ({reason.splitlines()[0]}; {left:.0f} MiB free); "
                "earlier checkpoints are kept"
            ) from None
