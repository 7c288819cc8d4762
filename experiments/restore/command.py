"""Restores damaged pictures of one's own with the deep image prior; nothing has to be configured.

    python train.py restore scan.png                      noise of an unknown deviation: scan_restored.png beside it
    python train.py restore scan.png --mask mask.png      what is black in the mask is filled in
    python train.py restore scan.png --factor 4           four times as large
    python train.py restore scan.png --task jpeg          the blocks of JPEG
    python train.py restore scan.png --kernel shake.png   a blur by which a point of light became this
    python train.py restore album                         every picture of a folder, to album_restored/

A picture keeps its size, bits, alpha, profile and the type of its file. (JPEG is written with a quality of 95; where
something is filled in it becomes PNG, so that the rest stays as it is.) Nothing is written over. Each is a `fit` with a
run folder as always, in runs/deep_image_prior/restore/, where preview.png shows how far it is. The same command again
goes on with what was stopped, and leaves out what a folder has already. What is too big for the memory is restored in
overlapping parts. Any --model., --data. or --trainer. option of `fit` may follow, such as --trainer.precision
bf16-mixed. Nothing is sent to Weights & Biases unless WANDB_MODE says so.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from common.files import existing, write_whole
from common.full_depth import suffix_like
from common.progress import Meter, in_words
from datamodules.degradations import TASKS, Denoise, Task, estimated_noise, task_asked_for
from datamodules.restoration import images_of, open_images
from experiments.arguments import ArgumentParser, Mistake
from experiments.callbacks.graceful_stop import Stopped
from experiments.cli import build
from experiments.mistakes import mistake_in
from experiments.predictions import png_of
from experiments.run_folder import RunFolder, RunOptions, runs_root
from lit_models.parts.restoring import (
    NETWORKS,
    Fitted,
    Plan,
    Region,
    Watch,
    carry_out,
    ending,
    plan_for,
    quiet_lightning,
    save,
    seconds_per_iteration,
)

NAME = "deep_image_prior/restore"
OF_FIT = ("--model.", "--data.", "--trainer.", "--run.")
"""beginnings of the options that are handed on"""
ALWAYS = [
    *("--model", "lit_models.deep_image_prior.DeepImagePrior", "--data", "datamodules.restoration.Restoration"),
    *("--data.degraded", "true", "--run.name", NAME, "--test_after_fit", "false", "--figures.every_n_epochs", "null"),
    *("--probe.every_n_epochs", "null", "--trainer.enable_progress_bar", "false", "--trainer.devices", "1"),
    *("--trainer.enable_model_summary", "false", "--trainer.limit_val_batches", "0", "--ckpt_path", "last"),
    # Of a state one is enough, now and then, and none of what is finished.
    *("--checkpoint.every_n_epochs", "0", "--checkpoint.train_time_interval", "00:10:00", "--checkpoint.keep", "1"),
]


PART = "restored.npy"
"""in the folder of a part's run, until the picture is whole"""


@dataclass(frozen=True)
class Order:
    """A picture, and where its restoration goes."""

    picture: str
    out: Path | None = None
    """a file or a folder; None is beside the picture"""
    stem: str | None = None
    """the name in the folder ``out``, without the ending, of a picture of a folder"""


def main(args: list[str]) -> int:
    """Restores; returns 128 and the signal's number if it was stopped.

    Raises:
        Mistake: an argument or a picture is wrong.
    """
    os.environ.setdefault("WANDB_MODE", "disabled")  # somebody's own pictures stay at home
    of_fit, own = split(args)
    options = parser().parse_intermixed_args(own)
    try:
        Restoring(options, of_fit).run()
    except Stopped as stop:
        print(f"{stop}: stopped; the same command goes on where it was", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except Mistake:
        raise
    except Exception as error:
        line = mistake_in(error, while_building=True)
        if line is None or os.environ.get("LIT_TRACEBACK"):
            raise
        raise Mistake(line) from error
    return 0


def parser() -> ArgumentParser:
    made = ArgumentParser("restore", __doc__)
    made.add_argument("pictures", nargs="+", metavar="PICTURE", help="a file or a folder")
    made.add_argument("--task", choices=list(TASKS), help="default: what the other options say, or denoise")
    made.add_argument("--sigma", type=float, help="deviation of the noise, of 255 (default: unknown)")
    made.add_argument("--factor", type=int, help="how many times larger")
    made.add_argument("--mask", help="a picture that is black where the pixels are unknown")
    made.add_argument("--invert_mask", action="store_true", default=None, help="it is white there instead")
    made.add_argument("--kernel", help="a picture of what became of a point of light")
    made.add_argument("-o", "--out", metavar="OUT", help="a file or a folder (default: beside the picture)")
    made.add_argument("--iterations", type=int, default=3000, help="at most (default: 3000)")
    made.add_argument("--time", type=seconds, metavar="10m", help="at most, for each picture: 90s, 10m, 2h")
    made.add_argument("--tile", type=int, help="side of the parts (default: none, unless memory is too little)")
    made.add_argument("--network", choices=list(NETWORKS), help="default: narrow up to 256 × 256 pixels")
    made.add_argument("--seed", type=int, default=0)
    return made


def seconds(text: str) -> float:
    """``90s``, ``10m`` or ``2h`` as seconds."""
    if not (match := re.fullmatch(r"(\d+\.?\d*)([smh]?)", text)) or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text}: expected a time such as 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def split(args: list[str]) -> tuple[list[str], list[str]]:
    """The options that are handed to ``fit``, as ``--name=value``, and the others."""
    of_fit: list[str] = []
    own: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg.startswith(OF_FIT):
            of_fit.append(arg if "=" in arg else f"{arg}={next(rest, '')}")
        else:
            own.append(arg)
    return of_fit, own


class Restoring:
    """The pictures of one command, one after another.

    Args:
        options: of the command line.
        of_fit: options that are handed on.
    """

    def __init__(self, options: argparse.Namespace, of_fit: list[str]) -> None:
        if options.iterations < 1:
            raise Mistake(f"--iterations={options.iterations}: expected at least 1")
        self.options, self.of_fit = options, of_fit
        self.runs = runs_root(RunOptions()) / NAME
        self.said = False  # where the preview is
        names = ("sigma", "factor", "mask", "invert_mask", "kernel")
        self.arguments: dict[str, Any]
        self.kind, self.arguments = task_asked_for(options.task, **{name: getattr(options, name) for name in names})
        self.task: Task = self.kind(**self.arguments)
        told = dict(each.removeprefix("--model.").split("=", 1) for each in of_fit if each.startswith("--model."))
        self.chosen = {name: yaml.safe_load(value) for name, value in told.items() if "." not in name}

    def run(self) -> None:
        orders, left_out = self.orders()
        if left_out:
            print(f"{left_out} of {left_out + len(orders)} are restored already")
        plans = [self.plan(order) for order in orders]
        total = self.options.iterations * sum(len(plan.regions) for plan in plans)
        shapes = [plan.opened.image.shape for plan in plans]
        del plans  # of a folder of photographs, only one is in memory at a time
        with Meter(total, "restoring", print) as meter:
            for place, order in enumerate(orders):
                plan = self.plan(order)
                if plan.opened.image.shape != shapes[place]:
                    raise Mistake(f"{order.picture}: has changed")
                self.restore(order, plan, meter)

    def orders(self) -> tuple[list[Order], int]:
        """The pictures that are to be restored, and how many of folders have been."""
        orders: list[Order] = []
        left_out = 0
        out = self.options.out
        for name in self.options.pictures:
            if not existing(name).is_dir():
                orders.append(Order(name, None if out is None else Path(out)))
                continue
            folder = existing(name).resolve()
            target = Path(out) if out is not None else folder.with_name(f"{folder.name}_restored")
            if target.resolve().is_relative_to(folder):
                raise Mistake(f"--out={target}: expected a folder outside of {name}, whose pictures are restored")
            files = images_of(folder)
            twins = Counter(file.stem for file in files)
            for file in files:
                stem = file.stem if twins[file.stem] == 1 else file.name
                if any(each.stem == stem for each in target.glob("*")):
                    left_out += 1
                else:
                    orders.append(Order(str(file), target, stem))
        if out is not None and Path(out).suffix and len(orders) > 1 and not Path(out).is_dir():
            raise Mistake(f"--out={out}: expected a folder for {len(orders)} pictures")
        return orders, left_out

    def plan(self, order: Order) -> Plan:
        [opened] = open_images(order.picture, None)
        return plan_for(opened, self.task, self.chosen, self.options.tile, self.options.network)

    def restore(self, order: Order, plan: Plan, meter: Meter) -> None:
        """Restores one picture, and writes it."""
        opened, run_id = plan.opened, self.run_id(plan)
        folder = RunFolder(self.runs / run_id)
        print(self.described(plan))
        if not self.said:
            print(f"preview, as it comes: {folder.path}/preview.png")
            self.said = True
        preview = Preview(folder.path / "preview.png", plan)
        image, ended = carry_out(plan, partial(self.fit, run_id, preview, meter), self.options.iterations, meter)
        out = order.out
        if out is not None and order.stem is not None:
            out = out / f"{order.stem}{suffix_like(opened.original, opened.file, self.task.leaves_known)}"
        target = save(image, opened.original, opened.name, opened.file, out, self.task.leaves_known)
        for file in [*self.runs.glob(f"{run_id}*/checkpoints/*.ckpt"), *self.runs.glob(f"{run_id}-part-*/{PART}")]:
            file.unlink()  # of a picture that is finished, nothing needs to be gone on with
        print(f"{target}: {ended}")

    def described(self, plan: Plan) -> str:
        """What is done to a picture, and how long it may take, in a line."""
        image, original, iterations = plan.opened.image, plan.opened.original, self.options.iterations
        told = [f"{image.shape[2]}×{image.shape[1]} {'gray' if len(image) == 1 else 'RGB'}, {original.bits} bits"]
        if tuple(plan.shape[1:]) != image.shape[1:]:
            told.append(f"becomes {plan.shape[2]}×{plan.shape[1]}")
        if original.lost:
            told.append(original.lost)
        if original.alpha is not None:
            told.append("alpha is copied")
        if self.kind is Denoise and self.task.sigma is None:
            told.append(
                f"noise of about {255 * float(estimated_noise(image[None], torch.ones(1, 1, 1, 1))):.0f} of 255"
            )
        if remark := self.task.remark(self.task.mask(image.shape, torch.Generator(), True)):
            told.append(remark)
        if plan.why:
            told.append(plan.why)
        most = iterations * len(plan.regions) * seconds_per_iteration(plan)
        if self.options.time is not None:
            most = min(most, self.options.time)
        told.append(f"at most {iterations:,} iterations, about {in_words(most)}")
        return f"{plan.opened.file or plan.opened.name}: {'; '.join(told)}"

    def run_id(self, plan: Plan) -> str:
        """A name by which the same command finds what it has begun: of the picture, and all that is done to it."""
        told = hashlib.sha256(plan.opened.image.numpy().tobytes())
        for value in (self.kind.__name__, self.arguments, plan.settings, plan.regions, self.of_fit, self.options.seed):
            told.update(repr(value).encode())
        for name in ("mask", "kernel"):
            if value := self.arguments.get(name):
                told.update(existing(value).read_bytes())
        told.update(repr(self.options.iterations).encode())
        return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', plan.opened.name)[:40]}-{told.hexdigest()[:8]}"

    def fit(self, run_id: str, preview: Preview, meter: Meter, plan: Plan, region: Region | None) -> Fitted:
        """Fits networks to a part, or all, of a picture, as ``train.py fit`` would; parts that were are remembered."""
        iterations = self.options.iterations
        if region is not None:
            run_id = f"{run_id}-part-{plan.regions.index(region) + 1:03}"
        kept = self.runs / run_id / PART
        if region is not None and kept.is_file():
            image = torch.from_numpy(np.load(kept, allow_pickle=False))
            preview.show(region, image)
            return Fitted(image, "some of which were finished before")
        with quiet_lightning():
            cli = build(["fit", *self.command(plan, region), "--run.id", run_id, *self.of_fit])
            cli.keep_quiet()
            watch = Watch(meter, partial(preview.show, region))
            cli.trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]  # before those that stop
            cli.execute()
        model: Any = cli.model
        image = model.with_known(cli.datamodule.source)[0].detach().float().cpu()
        preview.show(region, image)
        if region is not None:
            content = io.BytesIO()
            np.save(content, image.numpy())
            write_whole(kept, [content.getvalue()])
        return Fitted(image, ending(model.stop, iterations))

    def command(self, plan: Plan, region: Region | None) -> list[str]:
        """The options of ``fit`` for a part, or all, of a picture."""
        iterations = self.options.iterations
        per_epoch = min(100, iterations)
        said = {
            "--data.image": str(plan.opened.file or plan.opened.name),
            "--data.task": f"{self.kind.__module__}.{self.kind.__name__}",
            **{f"--data.task.{name}": value for name, value in self.arguments.items()},
            "--data.iterations_per_epoch": per_epoch,
            "--data.region": region,
            "--seed_everything": self.options.seed,
            "--trainer.max_steps": iterations,
            "--trainer.max_epochs": math.ceil(iterations / per_epoch),
            **{f"--model.{name}": value for name, value in plan.settings.items() if name not in self.chosen},
        }
        if self.options.time is not None:
            minutes, rest = divmod(max(1, round(self.options.time / len(plan.regions))), 60)
            days, hours = divmod(minutes // 60, 24)
            said["--trainer.max_time"] = f"{days:02}:{hours:02}:{minutes % 60:02}:{rest:02}"
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
        return [*ALWAYS, *(part for each in texts.items() for part in each)]


class Preview:
    """A picture as far as it is restored, in a file that is renewed.

    Args:
        file: a PNG.
        plan: of the picture.
    """

    def __init__(self, file: Path, plan: Plan) -> None:
        self.file = file
        self.factor = plan.shape[1] // plan.opened.image.shape[1]
        self.canvas = F.interpolate(plan.opened.image[None], plan.shape[1:])[0]

    def show(self, region: Region | None, image: torch.Tensor) -> None:
        """Renews the file with an image (C, h, w) of a part, or all, of it."""
        left, top = (self.factor * place for place in (region or [0, 0])[:2])
        self.canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        write_whole(self.file, [png_of(self.canvas)])
