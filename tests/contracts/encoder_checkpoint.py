"""A checkpoint of SimCLR as it comes out of a run, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_models.simclr import SimCLR


def prepare(folder: Path) -> None:
    """Writes ``encoder.ckpt`` to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    arguments = {"image_shape": [1, 8, 8], "encoder": "conv", "width": 4, "head_dim": 16, "out_dim": 8}
    content = {
        "state_dict": SimCLR(**arguments).state_dict(),  # type: ignore[arg-type]
        "hyper_parameters": {**arguments, "_class_path": "lit_models.simclr.SimCLR"},
    }
    torch.save(content, folder / "encoder.ckpt")
