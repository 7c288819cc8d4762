"""Restoring whole pictures: with which network, in how many parts, and what a file of the result is called.

Which network, unless one is chosen:

    ====================================  =============================================  ========
    restored picture                      network                                        patience
    ====================================  =============================================  ========
    up to 256 × 256 pixels                "narrow": 4 levels of 32 channels, 16 inputs        500
    larger                                "paper": 5 levels of 128 channels, 32 inputs       1000
    a side of less than 17 or 33 pixels   as many of these levels as fit
    ====================================  =============================================  ========
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of
from common.full_depth import FullDepth, suffix_like, write_like
from common.memory import gigabytes, memory_limit
from common.progress import Meter
from datamodules.degradations import Task
from datamodules.restoration import Opened, part
from lit_models.networks.skip_network import SkipNetwork
from lit_models.scores.moving_variance import MovingVariance

Region = list[int]
"""left, top, width and height, in pixels of what was measured"""

NETWORKS: dict[str, dict[str, Any]] = {
    "narrow": {"down": [32] * 4, "up": [32] * 4, "skip": [4] * 4, "input_channels": 16, "patience": 500},
    "paper": {"down": [128] * 5, "up": [128] * 5, "skip": [4] * 5, "input_channels": 32, "patience": 1000},
}
NARROW_PIXELS = 256 * 256
TILE = 512
"""side of the parts of a picture that does not fit into memory as a whole, in restored pixels"""


def network_for(shape: Sequence[int], name: str | None = None) -> dict[str, Any]:
    """Arguments of a network that suits a picture of ``shape`` (C, H, W), by the table above.

    Args:
        name: one of :data:`NETWORKS`; by default the picture's size chooses.
    """
    if name is not None:
        one_of(NETWORKS, network=name)
    chosen = NETWORKS[name or ("narrow" if shape[1] * shape[2] <= NARROW_PIXELS else "paper")]
    levels = max(1, min(len(chosen["down"]), int(math.log2(max(2, min(shape[1:]) - 1)))))
    return chosen | {part: chosen[part][:levels] for part in ("down", "up", "skip")}


def memory_needed(shape: Sequence[int], network: dict[str, Any], copies: int = 1) -> int:
    """Bytes that fitting a picture of ``shape`` (C, H, W) takes at its peak, in float32; within about a quarter.

    That is mostly what the network's layers keep for the way back.
    """
    pixels = shape[1] * shape[2]
    down, up, skip = network["down"], network["up"], network["skip"]
    kept = float(3 * network["input_channels"])  # of each pixel
    above = network["input_channels"]
    for level, (d, u, k) in enumerate(zip(down, up, skip, strict=True)):
        below = up[level + 1] if level + 1 < len(up) else d
        fine = above + 2 * k + below + 3 * (k + below) + 4 * u
        kept += (fine + 5 * d / 4) / 4**level
        above = d
    pictures = 25 * shape[0]  # outputs, means, frames, their gradients
    return int(4 * copies * pixels * (pictures + 1.45 * kept)) + 2**27


class Plan(NamedTuple):
    """How a picture is restored."""

    opened: Opened
    task: Task
    shape: list[int]
    """(C, H, W) of the restored picture"""
    settings: dict[str, Any]
    """of the network and its training"""
    regions: list[Region | None]
    """the parts; [None] is all of it at once"""
    why: str
    """there are parts, in words"""


class Fitted(NamedTuple):
    """A picture, or a part of it, to which networks have been fitted."""

    image: Tensor
    """(C, h, w)"""
    ending: str
    """how the fit ended, in words"""


def plan_for(
    opened: Opened, task: Task, options: dict[str, Any], tile: int | None = None, network: str | None = None
) -> Plan:
    """The network and the parts for a picture.

    Args:
        options: what is chosen; with the ``down``, ``up`` or ``skip`` of a network it is that one.
        tile: side of the parts in restored pixels; by default the picture is restored as a whole if it fits into
            memory, and else in parts of :data:`TILE`. 0 forbids parts.
        network: one of :data:`NETWORKS`.

    Raises:
        ValueError: not even a part fits into memory; the parts are too small; there is no such network.
    """
    _, height, width = opened.image.shape
    shape, limit = task.restored_shape(opened.image.shape), memory_limit()
    settings = ({} if {"down", "up", "skip"} & set(options) else network_for(shape, network)) | options
    plan = Plan(opened, task, shape, settings, [None], "")

    def needed(*size: int) -> int:
        return memory_needed((shape[0], *size), NETWORKS["paper"] | settings, settings.get("copies", 1))

    numbers = f"{shape[2]}×{shape[1]} pixels need about {gigabytes(needed(*shape[1:]))} of memory"
    numbers += f", and there are {gigabytes(limit)}"
    fits = needed(*shape[1:]) < 0.9 * limit
    if tile == 0 and not fits:
        raise ValueError(f"{opened.name}: {numbers}; expected a tile of {TILE} or so, or a smaller network")
    if tile == 0 or (tile is None and fits):
        return plan
    at_least(64, "or 0 for none", tile=tile)
    side, factor = tile or TILE, shape[1] // height
    if needed(side, side) > 0.9 * limit:
        raise ValueError(f"tile={side}: {gigabytes(limit)} of memory are too little for parts of that size")
    if len(regions := tiles(height, width, side // factor)) == 1:
        return plan
    why = f"{len(regions)} parts of {side}×{side}, which overlap{'' if tile else f', since {numbers}'}"
    return plan._replace(regions=[*regions], why=why)


def carry_out(
    plan: Plan, fit: Callable[[Plan, Region | None], Fitted], iterations: int, meter: Meter
) -> tuple[Tensor, str]:
    """The restored picture (C, H, W), and how its fit ended, in words.

    A part of which every pixel is known without noise is as it was.

    Args:
        fit: networks to a part, or all, of what was measured; it advances the meter.
        iterations: at most, for each part.
    """
    parts, endings = [], []
    opened = plan.opened
    known = plan.task.mask(opened.image.shape, torch.Generator(), True) if plan.task.leaves_known else None
    for place, region in enumerate(plan.regions, 1):
        left = meter.total - meter.done
        named = f"{opened.name}, part {place} of {len(plan.regions)}" if region else opened.name
        meter.advance(0, named)
        if region and known is not None and bool(part(known, region).all()):
            parts.append((region, part(opened.image, region)))
        else:
            done = fit(plan, region)
            parts.append((region or [], done.image))
            endings.append(done.ending)
        meter.skip(meter.total - meter.done - (left - iterations))
    told = endings[0] if len(endings) == 1 else f"{len(plan.regions)} parts; " + ", ".join(dict.fromkeys(endings))
    if plan.regions == [None]:
        return parts[0][1], told
    whole = put_together(plan.shape, parts, plan.shape[1] // opened.image.shape[1])
    if known is not None:  # to the last bit
        whole = plan.task.put_back(whole[None], opened.image[None], known[None])[0]
    return whole, told


def tiles(height: int, width: int, side: int) -> list[Region]:
    """Squares that cover a picture, all of one size, with an overlap of at least an eighth of their sides."""

    def starts(length: int) -> list[int]:
        least = side // 8
        count = 1 if length <= side else math.ceil((length - least) / (side - least))
        return [round(place * (length - side) / max(1, count - 1)) for place in range(count)] if count > 1 else [0]

    return [[left, top, min(side, width), min(side, height)] for top in starts(height) for left in starts(width)]


def put_together(shape: Sequence[int], parts: Sequence[tuple[Region, Tensor]], factor: int = 1) -> Tensor:
    """(C, H, W) of parts (C, h, w): where they overlap, each fades out towards its border."""
    total, weights = torch.zeros(*shape), torch.zeros(1, *shape[1:])
    for (left, top, _, _), image in parts:
        rows, columns = (_fading(side, side // 8) for side in image.shape[1:])
        weight = rows[:, None] * columns
        place = (..., slice(factor * top, factor * top + len(rows)), slice(factor * left, factor * left + len(columns)))
        total[place] += weight * image
        weights[place] += weight
    return total / weights.clamp_min(1e-12)


def _fading(side: int, overlap: int) -> Tensor:
    """(side,): 1 in the middle, and less and less over ``overlap`` pixels at the ends."""
    distance = torch.arange(side) + 1
    ends = torch.minimum(distance, side + 1 - distance)
    return (ends / (overlap + 1)).clamp(max=1)


class Watch(Callback):
    """Tells a meter of each iteration, and shows each epoch's picture to ``show``."""

    def __init__(self, meter: Meter, show: Callable[[Tensor], None] | None = None) -> None:
        self.meter, self.show = meter, show

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meter.skip(trainer.global_step)  # of a state from which it goes on

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.meter.advance()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.show is not None:
            restored: Any = pl_module.restored
            self.show(restored[0].detach().float().cpu())


def seconds_per_iteration(plan: Plan) -> float:
    """How long an iteration takes on this machine, from two of them, on a part or all of the picture."""
    channels, height, width = plan.shape
    if region := plan.regions[0]:
        factor = height // plan.opened.image.shape[1]
        width, height = factor * region[2], factor * region[3]
    chosen = NETWORKS["paper"] | plan.settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        levels = (chosen[part] for part in ("down", "up", "skip"))
        network = SkipNetwork(1, chosen["input_channels"], channels, *levels).to(device)
        z = torch.rand(1, chosen["input_channels"], height, width, device=device)
        for _ in range(2):  # the first one is slower
            begun = time.perf_counter()
            network(z).mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
    copies: int = plan.settings.get("copies", 1)
    return copies * (time.perf_counter() - begun)


def ending(stop: MovingVariance, iterations: int) -> str:
    """How a fit of so many iterations at most ended, in words."""
    steps = int(stop.steps)
    if bool(stop.stopped().all()):
        return f"stopped at iteration {steps:,} of {iterations:,}: no lower variance for {stop.patience:,}"
    if steps < iterations:
        return f"ended at iteration {steps:,} of {iterations:,}: its time was up"
    return f"all {iterations:,} iterations"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without what Lightning says of devices, workers and itself."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def free_file(folder: Path, stem: str, suffix: str) -> Path:
    """``stem_restored.png`` in a folder, with a number where there is one: never the name of another file."""
    number = 1
    while (file := folder / f"{stem}_restored{'' if number == 1 else f'-{number}'}{suffix}").exists():
        number += 1
    return file


def save(
    image: Tensor, original: FullDepth, name: str, file: Path | None, out: str | Path | None, lossless: bool
) -> Path:
    """Writes a restored picture (C, H, W) in the likeness of its original, never over a file; returns its path.

    Args:
        name, file: of the original; None if it is no file.
        out: a folder, which there is or whose name has no ending; a file; or None for beside the original.
        lossless: whether its type must keep every number.
    """
    target = target_of(out, file, name, suffix_like(original, file, lossless))
    if lost := write_like(original, image.detach().float().cpu().numpy(), target):
        rank_zero_info(f"{target}: {lost}")
    return target


def target_of(out: str | Path | None, file: Path | None, name: str, suffix: str) -> Path:
    """A path that is free, see :func:`save`."""
    if out is None:
        return free_file(file.parent if file else Path(), name, suffix)
    path = Path(out).expanduser()
    if path.is_dir() or not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        return free_file(path, name, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    given, number = path, 1
    while path.exists():
        number += 1
        path = given.with_stem(f"{given.stem}-{number}")
    return path
