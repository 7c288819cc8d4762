"""Sketch-RNN's training steps against their floor and against padding.

    python -m benchmarks.sketch_rnn_step

The loop by hand trains the same network on the sheep, with the same augmentation, optimizer and schedule; its batches
are those of our epoch, of sketches of similar length, formed before the clock starts. The padded loop is in the manner
of the public code: each batch is as long as the longest sketch of all, and the pen's loss counts every row. It, too,
has its batches ready.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floor import against_floor, command_line, device, now, training_seconds
from benchmarks.harness import interleaved, options, ratios, report, verdict
from datamodules.sketches import SketchBatch, drop_points, scale_randomly
from experiments.run_folder import REPOSITORY
from lit_models.networks.mixture_density import log_density

CONFIG = ["-c", str(REPOSITORY / "configs" / "sketch_rnn" / "sheep.yaml")]
START = (0.0, 0.0, 1.0, 0.0, 0.0)


def loss_of(model: Any, batch: SketchBatch, weight: float, longest: int, padded: bool) -> Tensor:
    """L_R + w · max(L_KL, floor); ``padded`` counts the pen in all rows, as the paper does."""
    strokes, lengths, _ = batch
    mean, log_var = model.posterior_of(strokes, lengths)
    z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).mean()
    start = strokes.new_tensor(START).expand(len(strokes), 1, 5)
    mixture, _ = model(torch.cat([start, strokes[:, :-1]], 1), z)
    place = torch.arange(strokes.shape[1], device=strokes.device)
    offsets = log_density(mixture, strokes[..., :2]) * (place < lengths[:, None])
    pen = (mixture.log_pen * strokes[..., 2:]).sum(2)
    pen = pen if padded else pen * (place <= lengths[:, None])
    reconstruction = -(offsets.sum() + pen.sum()) / (longest * len(strokes))
    return reconstruction + weight * kl.clamp_min(model.kl_floor)


def train_by_hand(initial: Any, data: Any, steps: int, epochs: int, padded: bool = False) -> float:
    """Seconds of an epoch of ``steps``: the median of ``epochs``, with one more before.

    Args:
        initial: the model to start from; it is not changed.
        data: the sketches, with their loader.
        padded: whether each batch is as long as the longest sketch.
    """
    on, longest = device(), data.longest
    model = deepcopy(initial).to(on).train()
    optimizer = model.optimizer(model.parameters())
    schedule = model.scheduler(optimizer)
    loader = data.train_dataloader()
    seconds, step = [], 0
    for epoch in range(epochs + 1):
        loader.set_epoch(epoch)
        batches = list(islice(loader, steps))
        if padded:
            batches = [pad(batch, longest + 1) for batch in batches]
        start = now()
        for batch in batches:
            ready = SketchBatch(*(part.to(on) for part in batch))
            stretched = scale_randomly(ready.strokes, torch.rand(len(ready.lengths), 2).to(on), data.random_scale)
            draws = torch.rand(len(ready.lengths), longest).to(on)
            ready = drop_points(ready._replace(strokes=stretched), draws, data.point_drop)
            weight = model.kl_weight - (model.kl_weight - model.kl_weight_start) * model.kl_decay**step
            loss = loss_of(model, ready, weight, longest, padded)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 1)
            optimizer.step()
            schedule.step()
            step += 1
        seconds.append(now() - start)
    return median(seconds[1:])


def pad(batch: SketchBatch, rows: int) -> SketchBatch:
    """The batch with so many rows of each sketch: those behind its end say that it has ended."""
    missing = rows - batch.strokes.shape[1]
    strokes = F.pad(batch.strokes, (0, 0, 0, missing))
    strokes[:, rows - missing :, 4] = 1
    return batch._replace(strokes=strokes)


def by_hand(epochs: int, limit_batches: int) -> tuple[Callable[[], float], Callable[[], float], int]:
    """The cases that train on batches as they are and on padded ones, and the steps of their epochs."""
    with command_line(CONFIG) as cli:
        model, data = cli.model, cli.datamodule
    steps = min(limit_batches, len(data.train_dataloader()))
    return (
        lambda: train_by_hand(model, data, steps, epochs),
        lambda: train_by_hand(model, data, steps, epochs, padded=True),
        steps,
    )


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=1, help="timed in each round (default: 1)")
    parser.add_argument("--limit-batches", type=int, default=24, help="in an epoch (default: 24)")
    parser.add_argument(
        "--check-padded", type=float, metavar="LIMIT", help="the same for the ratio to the padded loop's steps"
    )
    args = parser.parse_args()
    hand, padded, steps = by_hand(args.epochs, args.limit_batches)

    def trainer() -> float:
        return training_seconds(CONFIG, args.epochs, args.limit_batches)

    times = against_floor(trainer, hand, steps, args.repeats)
    report(f"sketch-RNN, sheep: {steps} training steps", times, "floor")
    status = verdict(ratios(times, "floor")["train.py"], args.check)
    peers = interleaved({"train.py": trainer, "padded": padded}, args.repeats)
    print()
    report("sketch-RNN, sheep: the same against batches padded to the longest sketch", peers, "padded")
    return max(status, verdict(ratios(peers, "padded")["train.py"], args.check_padded))


if __name__ == "__main__":
    raise SystemExit(main())
