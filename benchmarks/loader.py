"""TensorLoader against DataLoader over a TensorDataset: python -m benchmarks.loader

The ratio says how many times more batches a second the TensorLoader gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import interleaved, options, ratios, report, verdict
from datamodules.loader import TensorLoader

BATCH_SIZE = 32


def batch_seconds(loader: Iterable[Any], epochs: int) -> Callable[[], float]:
    """A case that goes through the loader ``epochs`` times and returns the seconds of a batch."""

    def case() -> float:
        start = perf_counter()
        batches = sum(1 for _ in range(epochs) for _ in loader)
        return (perf_counter() - start) / batches

    return case


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, default=20_000, help="of 16 floats and a label (default: 20000)")
    args = parser.parse_args()
    tensors = torch.randn(args.samples, 16), torch.randint(10, (args.samples,))
    cases = {
        "DataLoader": batch_seconds(DataLoader(TensorDataset(*tensors), BATCH_SIZE, shuffle=True), epochs=1),
        "TensorLoader": batch_seconds(TensorLoader(tensors, BATCH_SIZE, shuffle=True), epochs=20),
    }
    times = interleaved(cases, args.repeats)
    report(f"one batch of {BATCH_SIZE} of {args.samples} shuffled samples", times, "TensorLoader")
    print("\nbatches per second:", ", ".join(f"{name} {1 / median(seconds):,.0f}" for name, seconds in times.items()))
    return verdict(ratios(times, "TensorLoader")["DataLoader"], args.check, at_least=True)


if __name__ == "__main__":
    raise SystemExit(main())
