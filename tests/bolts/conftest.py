"""What lightning-bolts computes, once a session; skipped where it cannot be installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.bolts.overlay import Theirs, Unreachable, computed, installed


@pytest.fixture(scope="session")
def bolts_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where ``theirs.pt`` and the checkpoints are."""
    folder = tmp_path_factory.mktemp("bolts")
    try:
        overlay = installed(folder / "overlay")
    except Unreachable as error:
        pytest.skip(f"lightning-bolts could not be installed: {error}")
    (folder / "made").mkdir()
    computed(overlay, folder / "made")
    yield folder / "made"
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="session")
def theirs(bolts_folder: Path) -> Theirs:
    return torch.load(bolts_folder / "theirs.pt", weights_only=True)
