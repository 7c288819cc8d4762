"""Waves of two kinds, of different lengths."""

from pathlib import Path

import numpy as np


def prepare(folder: Path) -> None:
    """Writes ``series.npz``: eighty series of two channels, in units of their own."""
    draw = np.random.default_rng(0)
    arrays = {}
    for number in range(80):
        time = np.arange(draw.integers(8, 15))[:, None]
        phase = draw.uniform(0, 6, 2)
        wave = np.sin(0.7 * time + phase) if number % 2 else np.sign(np.sin(0.7 * time + phase))
        arrays[f"series_{number:02}"] = [300, 0.02] * wave + [5000, 0.1]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "series.npz", labels=["square", "wave"] * 40, **arrays)
