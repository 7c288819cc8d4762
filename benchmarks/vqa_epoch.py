"""The easy-VQA training epoch against its floor.

    python -m benchmarks.vqa_epoch

The loop by hand trains the same network on the same images, augmented alike, with the same optimizer and schedule; of
a batch it forms only what training reads.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.floor import against_floor, command_line, device, now, training_seconds
from benchmarks.harness import options, ratios, report, verdict
from datamodules.easy_vqa import mirror_and_move
from experiments.run_folder import REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs" / "vqa" / "easy_vqa.yaml")]


def forward(
    model: Any, images: Tensor, questions: Tensor, lengths: Tensor, image_index: Tensor, question_index: Tensor
) -> Tensor:
    packed = pack_padded_sequence(model.embedding(questions), lengths, batch_first=True, enforce_sorted=False)
    state = model.lstm(packed)[1][0][-1]
    return model.classifier(model.fact(model.encoder(images), state, image_index, question_index))


def train_by_hand(initial: Any, table: Any, batch_size: int, steps: int, epochs: int) -> float:
    """Seconds of an epoch of ``steps``: the median of ``epochs``, with one more before.

    Args:
        initial: the model to start from; it is not changed.
        table: the images (N, 3, H, W), which of the questions are about which image, and their answers.
    """
    on = device()
    model = deepcopy(initial).to(on).train()
    optimizer = model.optimizer(model.parameters())
    schedule = model.scheduler(optimizer)
    schedule.set_total_steps((epochs + 1) * steps)
    seconds = []
    for _ in range(epochs + 1):
        start = now()
        for rows in islice(torch.randperm(len(table.images)).split(batch_size), steps):
            counts = table.counts[rows]
            image_index = torch.arange(len(rows)).repeat_interleave(counts)
            first = table.starts[rows] - (counts.cumsum(0) - counts)
            pairs = first[image_index] + torch.arange(len(image_index))
            asked, question_index = table.text[pairs].unique(return_inverse=True)
            lengths = table.lengths[asked]
            questions = table.tokens[asked, : int(lengths.max())].to(on)
            images = mirror_and_move(table.images.index_select(0, rows).to(on), torch.rand(len(rows), 3).to(on))
            images = images.to(torch.float, memory_format=torch.channels_last).div_(255)
            indices = image_index.to(on), question_index.to(on)

            loss = F.cross_entropy(forward(model, images, questions, lengths, *indices), table.answers[pairs].to(on))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds.append(now() - start)
    return median(seconds[1:])


def by_hand(epochs: int, limit_batches: int | None) -> tuple[Callable[[], float], int]:
    """The case that trains by hand, and the steps of its epoch."""
    with command_line(CONFIG) as cli:
        model, data = cli.model, cli.datamodule
        data.setup("fit")
    table = data.tables["train"]
    steps = len(table) // data.batch_size
    if limit_batches is not None:
        steps = min(steps, limit_batches)
    return lambda: train_by_hand(model, table, data.batch_size, steps, epochs), steps


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="timed in each round (default: 3)")
    parser.add_argument("--limit-batches", type=int, help="in an epoch, for a quick run (default: all)")
    args = parser.parse_args()
    hand, steps = by_hand(args.epochs, args.limit_batches)
    times = against_floor(lambda: training_seconds(CONFIG, args.epochs, args.limit_batches), hand, steps, args.repeats)
    report(f"easy-VQA: a training epoch of {steps} steps", times, "floor")
    return verdict(ratios(times, "floor")["train.py"], args.check)


if __name__ == "__main__":
    raise SystemExit(main())
