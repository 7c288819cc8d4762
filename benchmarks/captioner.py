"""The captioner's training epoch against its floor, and its beam search.

    python -m benchmarks.captioner

The loop by hand trains the same network on the same scenes with the same optimizer and schedule; of a batch it forms
only what training reads. The beam search by hand keeps the same sentences of the same network, with none of the checks.
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

from benchmarks.floor import against_floor, command_line, device, now, training_seconds
from benchmarks.harness import interleaved, options, ratios, report, verdict
from experiments.run_folder import REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs" / "captioner" / "scenes.yaml")]
BEAM, IMAGES = 5, 64


def train_by_hand(initial: Any, table: Any, batch_size: int, captions: int, steps: int, epochs: int) -> float:
    """Seconds of an epoch of ``steps``: the median of ``epochs``, with one more before.

    Args:
        initial: the model to start from; it is not changed.
        table: the images (N, 3, H, W) and their captions, of which ``captions`` are drawn for each image.
    """
    on = device()
    model = deepcopy(initial).to(on).train()
    optimizer = model.optimizer(model.parameters())
    schedule = model.scheduler(optimizer)
    schedule.set_total_steps((epochs + 1) * steps)
    of_each = int(table.counts[0])  # every scene has as many
    seconds = []
    for _ in range(epochs + 1):
        start = now()
        for images in islice(torch.randperm(len(table.images)).split(batch_size), steps):
            drawn = torch.rand(len(images), of_each).argsort(1)[:, :captions].sort(1).values
            chosen = (table.starts[images][:, None] + drawn).flatten()
            owner = torch.arange(len(images)).repeat_interleave(captions).to(on)
            lengths = table.lengths[chosen]
            words = table.captions[chosen, : int(lengths.max())].to(on)
            pixels = table.images.index_select(0, images).to(on)
            pixels = pixels.to(torch.float, memory_format=torch.channels_last).div_(255)

            state, memory = (tuple(s.index_select(0, owner) for s in part) for part in model.read(pixels))
            heard = model.decoder(F.pad(words, (1, 0)), state, memory, lengths + 1)
            inside = torch.arange(words.shape[1] + 1) <= lengths[:, None]
            targets = F.pad(words, (0, 1))[inside.to(on)]
            loss = F.cross_entropy(model.decoder.to_words(heard.features[inside.to(on)]), targets)
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
    return lambda: train_by_hand(model, table, data.batch_size, data.captions_per_image, steps, epochs), steps


@torch.inference_mode()
def search_by_hand(model: Any, images: Tensor) -> Tensor:
    """The best sentences (I, T) of beams of :data:`BEAM`, by log p a step."""
    count, longest = len(images), model.longest
    state, memory = (tuple(s.repeat_interleave(BEAM, 0) for s in part) for part in model.read(images))
    offset = torch.arange(count, device=images.device)[:, None] * BEAM
    last = torch.zeros(count * BEAM, dtype=torch.long, device=images.device)
    words = last.new_zeros(count * BEAM, longest)
    total = torch.full((count, BEAM), -torch.inf, device=images.device)
    total[:, 0] = 0
    best, answer = torch.full((count,), -torch.inf, device=images.device), words[::BEAM]
    for t in range(longest):
        heard = model.decoder(last[:, None], state, memory)
        logits = model.decoder.to_words(heard.features[:, 0])
        logits[:, 1] = -torch.inf
        each = total[:, :, None] + logits.log_softmax(1).view(count, BEAM, -1)
        ended, which = (each[:, :, 0] / (t + 1)).max(1)
        better = ended > best
        best = torch.where(better, ended, best)
        answer = torch.where(better[:, None], words[offset[:, 0] + which], answer)
        each[:, :, 0] = -torch.inf
        total, place = each.flatten(1).topk(BEAM, 1)
        source = (offset + place // each.shape[2]).flatten()
        last = (place % each.shape[2]).flatten()
        words = words[source]
        words[:, t] = last
        state = tuple(s[source] for s in heard.state)
        if bool((best >= total[:, 0] / longest).all()):
            break
    better = total[:, 0] / (t + 1) > best
    return torch.where(better[:, None], words[offset[:, 0]], answer)


def searching() -> dict[str, Callable[[], float]]:
    """Seconds of captioning :data:`IMAGES` images, by the model and by hand."""
    with command_line(CONFIG) as cli:
        model, data = cli.model.to(device()).eval(), cli.datamodule
        data.setup("fit")
    images = (data.tables["train"].images[:IMAGES].float() / 255).to(device())

    @torch.inference_mode()
    def ours() -> float:
        start = now()
        model.decode(images, "beam", beam_size=BEAM)
        return now() - start

    def hand() -> float:
        start = now()
        search_by_hand(model, images)
        return now() - start

    assert torch.equal(model.decode(images, "beam", beam_size=BEAM)[:, 0], search_by_hand(model, images))
    return {"beam search": ours, "by hand": hand}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=1, help="timed in each round (default: 1)")
    parser.add_argument("--limit-batches", type=int, default=100, help="in an epoch (default: 100)")
    args = parser.parse_args()
    found = interleaved(searching(), 4 * args.repeats)
    report(f"captioner: beams of {BEAM} of {IMAGES} images", found, "by hand")
    print()
    hand, steps = by_hand(args.epochs, args.limit_batches)
    times = against_floor(lambda: training_seconds(CONFIG, args.epochs, args.limit_batches), hand, steps, args.repeats)
    report(f"captioner: {steps} training steps", times, "floor")
    worst = max(ratios(times, "floor")["train.py"], ratios(found, "by hand")["beam search"], key=median)
    return verdict(worst, args.check)


if __name__ == "__main__":
    raise SystemExit(main())
