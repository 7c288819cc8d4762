"""Augmented views on the CPU against torchvision, image by image, and kornia, by batches.

    python -m benchmarks.views

SimCLR's crop, flip, color jitter (with hue) and grayscale, of CIFAR-10-sized images of noise, or of CIFAR-10's own
where LIT_DATA has them. The ratios say how many times more views a second
:class:`datamodules.parts.augment.Augmentation` gives; ``--check`` is of torchvision's in one process. kornia is
optional: ``pip install kornia``.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.harness import interleaved, options, ratios, report, verdict
from datamodules.images import CIFAR10
from datamodules.parts.augment import LUMA, Augmentation

BATCH_SIZE = 512
WORKERS = 2


def torchvision_pipeline() -> Callable[[Any], Tensor]:
    return v2.Compose(
        [
            v2.RandomResizedCrop(32),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def kornia_pipeline() -> Callable[[Tensor], Tensor]:
    from kornia import augmentation as K

    return K.AugmentationSequential(
        K.RandomResizedCrop((32, 32)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(rgb_weights=torch.tensor(LUMA), p=0.2),
    )


class Views(Dataset):
    """One view of each image, held as PIL's."""

    def __init__(self, images: Tensor) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.pipeline = torchvision_pipeline()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.pipeline(self.images[index])


def timed(make: Callable[[], Any], views: int) -> Callable[[], float]:
    """A case of the seconds that a view takes."""

    def case() -> float:
        start = perf_counter()
        make()
        return (perf_counter() - start) / views

    return case


def read_images(count: int) -> Tensor:
    """(count, 3, 32, 32) uint8."""
    data = CIFAR10(limit=count)
    try:
        data.setup()
    except FileNotFoundError:
        return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return data.part("train").images


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--views", type=int, default=4 * BATCH_SIZE, help="in each round (default: 2048)")
    args = parser.parse_args()
    images = read_images(args.views)
    batches = images.split(BATCH_SIZE)
    augmentation = Augmentation()

    def ours() -> None:
        for batch in batches:
            augmentation(batch, torch.rand(len(batch), augmentation.num_draws))

    augmentation(images[:8], torch.rand(8, augmentation.num_draws))  # what torch loads at the first call
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    alone = Views(images)
    # Its workers start in the round that does not count.
    loader = DataLoader(alone, BATCH_SIZE // 4, num_workers=WORKERS, persistent_workers=True)
    cases = {
        "ours": timed(ours, len(images)),
        "torchvision": timed(lambda: [alone[i] for i in range(len(images))], len(images)),
        f"{WORKERS} workers": timed(lambda: sum(len(batch) for batch in loader), len(images)),
    }
    if find_spec("kornia"):
        kornia = kornia_pipeline()
        cases["kornia"] = timed(lambda: [kornia(batch.float() / 255) for batch in batches], len(images))
    times = interleaved(cases, args.repeats)
    report(f"a view of 32×32 pixels, batches of {BATCH_SIZE}", times, "ours")
    print("\nviews per second:", ", ".join(f"{name} {1 / median(seconds):,.0f}" for name, seconds in times.items()))

    start = process_time()
    ours()
    seconds = 1000 * (process_time() - start) / len(images)
    print(f"ours: {seconds:.4f} CPU seconds per 1000 views, at most {kilobytes / 1024:.0f} MB at once")
    return verdict(ratios(times, "ours")["torchvision"], args.check, at_least=True)


if __name__ == "__main__":
    raise SystemExit(main())
