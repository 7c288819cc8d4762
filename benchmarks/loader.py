"""TensorLoader against DataLoader over a TensorDataset.

    python -m benchmarks.loader

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
from datamodules.parts.loader import TensorLoader

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
    parser.add_argument("--samples", type=int, default=20_000, help="and a label for each (default: 20000)")
    parser.add_argument("--shape", type=int, nargs="+", default=[16], help="of a sample (default: 16)")
    parser.add_argument("--dtype", choices=("float32", "uint8"), default="float32", help="of a sample")
    args = parser.parse_args()
    samples = (255 * torch.rand(args.samples, *args.shape)).to(getattr(torch, args.dtype))
    tensors = samples, torch.randint(10, (args.samples,))
    cases = {
        "DataLoader": batch_seconds(DataLoader(TensorDataset(*tensors), BATCH_SIZE, shuffle=True), epochs=1),
        "TensorLoader": batch_seconds(TensorLoader(tensors, BATCH_SIZE, shuffle=True), epochs=10),
    }
    times = interleaved(cases, args.repeats)
    title = f"a batch of {BATCH_SIZE} shuffled samples of {tuple(samples.shape[1:])} {args.dtype}"
    report(title, times, "TensorLoader")
    print("\nbatches per second:", ", ".join(f"{name} {1 / median(seconds):,.0f}" for name, seconds in times.items()))
    return verdict(ratios(times, "TensorLoader")["DataLoader"], args.check, at_least=True)


if __name__ == "__main__":
    raise SystemExit(main())
