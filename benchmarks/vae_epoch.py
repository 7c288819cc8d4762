"""The VAE's MNIST epoch against its floor, and against a DataLoader's.

    python -m benchmarks.vae_epoch

The loop by hand trains the same network on whole tensors of the same images, binarized anew in each step, with the same
optimizer and schedule. The other loop is in the manner of pytorch/examples' VAE: torchvision's MNIST with ``ToTensor``
through a DataLoader with one worker, Adam as PyTorch has it by default, and the loss is read in each step. All else of
its step and its batch size are those of the loop by hand, and it takes as many batches as an epoch of ours has, though
its data set has the validation images too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.floor import against_floor, command_line, device, now, training_seconds
from benchmarks.harness import interleaved, options, ratios, report, verdict
from experiments.run_folder import REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs" / "vae" / "mnist.yaml")]


def negative_elbo(model: Any, images: Tensor) -> Tensor:
    x = torch.bernoulli(images)
    mean, log_var = model.encoder(x).chunk(2, 1)
    z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
    cross_entropy = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
    return (cross_entropy + kl) / len(x)


def train_by_hand(
    initial: Any, epoch: Callable[[], Iterator[Tensor]], steps: int, epochs: int, as_examples_do: bool = False
) -> float:
    """Seconds of an epoch of ``steps``: the median of ``epochs``, with one more before.

    Args:
        initial: the model to start from; it is not changed.
        epoch: the batches of images (B, 1, 28, 28) in 0..1 of one epoch, on the device.
        as_examples_do: Adam with its defaults, and the loss is read in each step.
    """
    model = deepcopy(initial).to(device()).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3) if as_examples_do else model.optimizer(parameters)
    schedule = model.scheduler(optimizer)
    schedule.set_total_steps((epochs + 1) * steps)
    seconds = []
    for _ in range(epochs + 1):
        start, total = now(), 0.0
        for images in islice(epoch(), steps):
            loss = negative_elbo(model, images)
            optimizer.zero_grad()
            loss.backward()
            if as_examples_do:
                total += loss.item()
            optimizer.step()
            schedule.step()
        seconds.append(now() - start)
    return median(seconds[1:])


def by_hand(epochs: int, limit_batches: int | None) -> tuple[Callable[[], float], Callable[[], float], int]:
    """The cases that train on whole tensors and from a DataLoader, and the steps of their epochs."""
    with command_line(CONFIG) as cli:
        model, data = cli.model, cli.datamodule
        data.prepare_data()
        images, batch_size = data.part("train").images, data.batch_size
    steps = len(images) // batch_size
    if limit_batches is not None:
        steps = min(steps, limit_batches)

    def whole_tensors() -> Iterator[Tensor]:
        for rows in torch.randperm(len(images)).split(batch_size):
            yield images[rows].to(device()).float().div_(255)

    dataset = datasets.MNIST(data.root, transform=transforms.ToTensor())
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=1, pin_memory=device().type != "cpu")

    def one_by_one() -> Iterator[Tensor]:
        return (batch.to(device()) for batch, _ in loader)

    return (
        lambda: train_by_hand(model, whole_tensors, steps, epochs),
        lambda: train_by_hand(model, one_by_one, steps, epochs, as_examples_do=True),
        steps,
    )


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="timed in each round (default: 3)")
    parser.add_argument("--limit-batches", type=int, help="in an epoch, for a quick run (default: all)")
    parser.add_argument(
        "--check-loader", type=float, metavar="LIMIT", help="the same for the ratio to the DataLoader's epoch"
    )
    args = parser.parse_args()
    hand, from_loader, steps = by_hand(args.epochs, args.limit_batches)

    def trainer() -> float:
        return training_seconds(CONFIG, args.epochs, args.limit_batches)

    times = against_floor(trainer, hand, steps, args.repeats)
    report(f"VAE, MNIST: a training epoch of {steps} steps", times, "floor")
    status = verdict(ratios(times, "floor")["train.py"], args.check)
    peers = interleaved({"train.py": trainer, "DataLoader": from_loader}, args.repeats)
    print()
    report("VAE, MNIST: the same against one image at a time", peers, "DataLoader")
    return max(status, verdict(ratios(peers, "DataLoader")["train.py"], args.check_loader))


if __name__ == "__main__":
    raise SystemExit(main())
