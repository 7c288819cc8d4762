"""SimCLR or MoCo on CIFAR-10 against lightly's own parts, in time and in what is learned.

Run: python -m benchmarks.contrastive_vs_lightly --method simclr

The same narrow ResNet-18, batch, optimizer, schedule, number of steps and distribution of augmentations, three times:

- ours: ``train.py fit -c configs/simclr/cifar10_narrow.yaml``, with ``--method moco`` ``configs/moco/...``;
- lightly: its transform on single PIL images in two worker processes, its head, its loss and its momentum update, in a
  plain loop;
- floor: the network, loss and optimizer on views that are tensors already, with no augmentation at all.

Needs: pip install lightly; and CIFAR-10 under LIT_DATA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks.floor import EpochClock, bare_hand_seconds, bare_trainer_seconds, command_line, device, now
from benchmarks.harness import interleaved, options, ratios, report
from experiments.representations import knn_predict
from experiments.run_folder import REPOSITORY
from lit_models.simclr import nt_xent

Loss = Callable[[Tensor, Tensor], Tensor]  # of two views (B, C, H, W) of each image


class Pictures(Dataset):
    """PIL images, as a folder of them would give, each as lightly's transform makes views of it."""

    def __init__(self, images: Tensor, transform: Callable[[Any], list[Tensor]]) -> None:
        self.pictures = [to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.pictures[index])


def config(method: str) -> list[str]:
    return ["-c", str(REPOSITORY / "configs" / method / "cifar10_narrow.yaml")]


def built(method: str, steps: int, seed: int) -> tuple[Any, Any]:
    """Model and data of the configuration, as a run of so many steps begins."""
    with command_line([*config(method), "--trainer.max_steps", str(steps), "--seed_everything", str(seed)]) as cli:
        cli.datamodule.setup("fit")
        return cli.model, cli.datamodule


def knn(encode: Callable[[Tensor], Tensor], data: Any) -> float:
    """Accuracy of 200 neighbors on the validation part."""
    features = {}
    with torch.no_grad():
        for name in ("train", "val"):
            part = data.part(name)
            features[name] = torch.cat([encode(images.float() / 255) for images in part.images.split(500)])
    predicted = knn_predict(features["train"], data.part("train").labels, features["val"], data.num_classes)
    return float((predicted == data.part("val").labels).float().mean())


def ours(method: str, steps: int, seed: int, found: dict[str, list[float]]) -> float:
    limits = ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0", "--probe.every_n_epochs", "null"]
    limits += ["--best.monitor", "val/loss", "--best.mode", "min", "--trainer.max_epochs", "-1"]
    with command_line([*config(method), *limits, "--seed_everything", str(seed)]) as cli:
        cli.trainer.callbacks.append(clock := EpochClock())
        cli.execute()
    found["ours"].append(knn(cli.model.eval().encode, cli.datamodule))
    return sum(clock.seconds)


def by_hand(views: Iterator[list[Tensor]], network: nn.Module, loss: Loss, steps: int) -> float:
    network.to(device()).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    following = next(views)  # its workers have started
    start = now()
    for _ in range(steps):
        first, second = (view.to(device(), memory_format=torch.channels_last) for view in following)
        following = next(views)
        optimizer.zero_grad()
        loss(first, second).backward()
        optimizer.step()
        schedule.step()
    return now() - start


def simclr_loss(network: nn.Module, nt_xent: Loss) -> Loss:
    def loss(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent(*network(torch.cat([first, second])).chunk(2))

    return loss


def moco_loss(network: nn.Module, contrast: Loss, follow: Callable[[nn.Module, nn.Module, float], None]) -> Loss:
    key_network = deepcopy(network).requires_grad_(False)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        follow(network, key_network, 0.99)
        query = network(first)
        with torch.no_grad():
            key = key_network(second)
        return contrast(query, key)

    return loss


def lightly(method: str, steps: int, seed: int, found: dict[str, list[float]]) -> float:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead, SimCLRProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import SimCLRTransform

    model, data = built(method, steps, seed)
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}  # the encoder rescales by itself
    transform = SimCLRTransform(
        *(32, 0.8, 1.0, 0.4, 0.4, 0.4, 0.1), min_scale=0.2, random_gray_scale=0.2, gaussian_blur=0.0, normalize=plain
    )
    loader = DataLoader(
        Pictures(data.part("train").images, transform), data.batch_size, shuffle=True, drop_last=True, num_workers=2
    )

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    if method == "simclr":
        encoder = model.encoder
        network = nn.Sequential(encoder, SimCLRProjectionHead(encoder.out_dim, 256, 128, batch_norm=False))
        loss = simclr_loss(network, NTXentLoss(0.5))
    else:
        encoder = model.query.encoder
        network = nn.Sequential(encoder, MoCoProjectionHead(encoder.out_dim, encoder.out_dim, 128))
        loss = moco_loss(network, NTXentLoss(0.2, memory_bank_size=(4096, 128)), update_momentum)
    seconds = by_hand(endless(), network, loss, steps)
    found["lightly"].append(knn(encoder.eval(), data))
    return seconds


def floor(method: str, steps: int, seed: int) -> float:
    model, data = built(method, steps, seed)
    batches = (data.part("train").images[: 20 * data.batch_size].float() / 255).split(data.batch_size)

    def endless() -> Iterator[list[Tensor]]:
        while True:
            for images in batches:
                yield [images, images]

    network: nn.Module
    if method == "simclr":
        network = nn.Sequential(model.encoder, model.head)
        loss = simclr_loss(network, lambda first, second: nt_xent(torch.stack([first, second]), 0.5))
    else:
        network = model.query
        loss = moco_loss(network, queue_loss(), lerp)
    return by_hand(endless(), network, loss, steps) + steps * (bare_trainer_seconds() - bare_hand_seconds())


def queue_loss() -> Loss:
    """InfoNCE of τ = 0.2 against 4096 keys, of which each batch's replace the oldest."""
    queue = F.normalize(torch.randn(4096, 128, device=device()))
    place = 0

    def loss(query: Tensor, key: Tensor) -> Tensor:
        nonlocal place
        query, key = F.normalize(query), F.normalize(key)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.clone().T], 1) / 0.2
        queue[place : place + len(key)] = key
        place = (place + len(key)) % len(queue)
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))

    return loss


def lerp(network: nn.Module, key_network: nn.Module, momentum: float) -> None:
    torch._foreach_lerp_(list(key_network.parameters()), list(network.parameters()), 1 - momentum)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--method", choices=["simclr", "moco"], default="simclr", help="default: simclr")
    parser.add_argument("--steps", type=int, default=50, help="of each run (default: 50)")
    args = parser.parse_args()
    found: dict[str, list[float]] = {"ours": [], "lightly": []}
    seeds = {name: iter(range(args.repeats)) for name in ("ours", "lightly", "floor")}
    cases = {
        "ours": lambda: ours(args.method, args.steps, next(seeds["ours"]), found),
        "lightly": lambda: lightly(args.method, args.steps, next(seeds["lightly"]), found),
        "floor": lambda: floor(args.method, args.steps, next(seeds["floor"])),
    }
    times = interleaved(cases, args.repeats, warmup=0)
    images = built(args.method, 1, 0)[1].batch_size
    report(f"{args.method}, {args.steps} steps of {images} images", times, "floor")
    above = [
        (a - c) / (b - c) for a, b, c in zip(times["ours"], times["lightly"], times["floor"], strict=True) if b > c
    ]
    print(f"\ntime above the floor, ours over lightly's: {', '.join(f'{ratio:.2f}' for ratio in above)}")
    for name, accuracies in found.items():
        spread = f" ± {stdev(accuracies):.4f}" if len(accuracies) > 1 else ""
        print(f"kNN on the validation part, {name}: {mean(accuracies):.4f}{spread} (seeds 0 to {len(accuracies) - 1})")
    middle = sorted(ratios(times, "floor")["ours"])[args.repeats // 2]
    return 0 if args.check is None or middle <= args.check else 1


if __name__ == "__main__":
    raise SystemExit(main())
