"""SimCLR, MoCo, AE and VAE against lightning-bolts 0.7.0, and against their floor.

    python -m benchmarks.against_bolts

Each run is a process of its own, in turn; its second epoch of ``--steps`` is timed, and its peak memory read:

- ours: ``train.py fit`` as users get it, without W&B, progress bar, validation and checkpoints;
- bolts: its module, transforms, data module and Lightning 1.9 (bolts_side.py), with our network in it;
- floor: the network, loss and optimizer by hand, on tensors that are ready, and what a bare Trainer adds.

CIFAR-10 in batches of 256 through a ResNet-18 of width 16; MNIST in batches of 256 through the networks of
configs/autoencoder/mnist.yaml and configs/vae/mnist.yaml. Losses, optimizers and augmentations are those of bolts.

Needs: both data sets under LIT_DATA; lightning-bolts in a folder of its own (``--overlay`` or LIT_BOLTS):

    pip install --no-deps --target FOLDER lightning-bolts==0.7.0 pytorch-lightning==1.9.5 torchmetrics==1.4.3 \
        "setuptools<81" tensorboard
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from benchmarks.floor import bare_hand_seconds, bare_trainer_seconds, command_line, device, now, training_seconds
from benchmarks.harness import interleaved, options, ratios, report
from experiments.run_folder import REPOSITORY
from lit_models.parts.contrastive import cross_entropy_of_positives, unit
from lit_models.simclr import nt_xent

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}
PIXELS, DIMS = 784, 50
TECHNIQUES: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "simclr": (
        "simclr/cifar10_narrow",
        20,
        {"head_dim": 128, "head_norm": True, "optimizer": ADAM | {"init_args": {"lr": 1e-3, "weight_decay": 1e-6}}},
        {"augmentation": {"scale": [0.08, 1.0]}},
    ),
    "moco": (
        "moco/cifar10",
        20,
        {"width": 16, "head_layers": 2, "bn_splits": 1, "momentum": 0.999, "temperature": 0.07},
        {"batch_size": 256, "augmentation": {"scale": [0.2, 1.0], "blur": 0.5}},
    ),
    "autoencoder": ("autoencoder/mnist", 180, {"optimizer": ADAM, "scheduler": None}, {"batch_size": 256}),
    "vae": (
        "vae/mnist",
        180,
        {
            "likelihood": "gaussian",
            "sigma": 0.5**0.5,
            "beta": 0.1 * PIXELS / DIMS,
            "binarize": False,
            "optimizer": ADAM,
            "scheduler": None,
        },
        {"batch_size": 256},
    ),
}
"""configuration, steps that are timed, and what is set in its model and data to do as bolts does"""
MOST = {"simclr": 1.0, "moco": 1.0, "autoencoder": 0.67, "vae": 0.67}
"""of bolts' time, with ``--check``"""
NEITHER = ["--probe.every_n_epochs", "null", "--best.monitor", "val/loss", "--best.mode", "min"]


def arguments(technique: str, folder: Path) -> list[str]:
    """Of ``train.py fit``."""
    config, _, model, data = TECHNIQUES[technique]
    overlay = folder / f"{technique}.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"init_args": model}, "data": {"init_args": data}}))
    return ["-c", str(REPOSITORY / "configs" / f"{config}.yaml"), "-c", str(overlay), *NEITHER]


def loss_by_hand(technique: str, model: Any) -> Callable[[Tensor], Tensor]:
    """The loss of images (B, C, H, W), where both views are the image."""

    def simclr(images: Tensor) -> Tensor:
        z = model.head(model.encoder(torch.cat([images, images])))
        return nt_xent(z.unflatten(0, (2, -1)), model.temperature)

    def moco(images: Tensor) -> Tensor:
        q = unit(model.query(images))
        with torch.no_grad():
            k = unit(model.key(images))
        logits = model.logits(q, k)
        loss = cross_entropy_of_positives(logits, model.zeros(logits))
        model.queue.enqueue(k, 0)
        return loss

    def autoencoder(images: Tensor) -> Tensor:
        return F.mse_loss(model(images), images)

    def vae(images: Tensor) -> Tensor:
        mean, log_var = model.encoder(images).chunk(2, 1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
        return (F.mse_loss(model.decoder(z), images, reduction="sum") + model.beta * kl) / len(images)

    return {"simclr": simclr, "moco": moco, "autoencoder": autoencoder, "vae": vae}[technique]


def floor_seconds(technique: str, config: list[str], steps: int) -> float:
    with command_line([*config, "--trainer.max_steps", str(2 * steps)]) as cli:
        model, data = cli.model.to(device()).train(), cli.datamodule
        data.prepare_data()
        data.setup("fit")
        images = data.part("train").images[: 10 * data.batch_size].to(device())
        ready = images.to(torch.float, memory_format=torch.channels_last) / 255  # as our data modules give them
    batches = ready.split(data.batch_size)
    loss_of = loss_by_hand(technique, model)
    optimizer = model.optimizer([p for p in model.parameters() if p.requires_grad])
    schedule = model.scheduler(optimizer) if model.scheduler else None
    if schedule is not None:
        schedule.set_total_steps(2 * steps)
    for _ in range(2):  # the first is for warming up
        start = now()
        for step in range(steps):
            loss = loss_of(batches[step % len(batches)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if technique == "moco":
                model.follow(model.momentum)
            if schedule is not None:
                schedule.step()
        seconds = now() - start
    return seconds + steps * (bare_trainer_seconds() - bare_hand_seconds())


def one_run(case: str, technique: str, steps: int) -> None:
    """What a process does for ``ours`` or ``floor``: prints seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        config = arguments(technique, Path(folder))
        if case == "ours":
            seconds = training_seconds(config, epochs=1, limit_batches=steps)
        else:
            seconds = floor_seconds(technique, config, steps)
    own, worker = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "megabytes": own, "worker": worker}))


def measured(command: list[str], environment: dict[str, str], memory: list[tuple[float, float]]) -> float:
    """Seconds that a process prints; its memory is kept."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    memory.append((found["megabytes"], found["worker"]))
    return float(found["seconds"])


def images_file(folder: Path) -> Path:
    """CIFAR-10's training images (N, 32, 32, 3), as torchvision's data set has them."""
    with tempfile.TemporaryDirectory() as scratch, command_line(arguments("simclr", Path(scratch))) as cli:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        images = cli.datamodule.part("train").images.permute(0, 2, 3, 1).contiguous().numpy()
    file = folder / "cifar10.npy"
    np.save(file, images)
    return file


def compare(technique: str, steps: int, workers: int, overlay: str, data: Path, repeats: int) -> tuple[float, float]:
    """Prints the comparison; returns the median ratios of ours to bolts' time and to the floor."""
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", "bolts", "floor")}
    own = dict(os.environ)
    theirs = own | {"PYTHONPATH": os.pathsep.join([overlay, str(REPOSITORY)])}
    run = [technique, str(steps)]
    cases = {
        "ours": lambda: measured(["benchmarks.against_bolts", "--run", "ours", *run], own, memory["ours"]),
        "bolts": lambda: measured(["benchmarks.bolts_side", *run, str(workers), str(data)], theirs, memory["bolts"]),
        "floor": lambda: measured(["benchmarks.against_bolts", "--run", "floor", *run], own, memory["floor"]),
    }
    times = interleaved(cases, repeats, warmup=0)
    report(f"{technique}: {steps} steps, {workers} workers for bolts", times, "floor")
    to_bolts = ratios(times, "bolts")["ours"]
    print(f"\nours over bolts: {median(to_bolts):.3f} ({min(to_bolts):.3f} – {max(to_bolts):.3f})")
    for name in ("ours", "bolts"):
        process, worker = (median(each) for each in zip(*memory[name], strict=True))
        workers_too = f", and {worker:,.0f} MB of each worker, with what it shares" if name == "bolts" else ""
        print(f"peak memory, {name}: {process:,.0f} MB{workers_too}")
    print()
    return median(to_bolts), median(ratios(times, "floor")["ours"])


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--techniques", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES))
    parser.add_argument("--steps", type=int, help="that are timed (default: 20 for CIFAR-10, 180 for MNIST)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load bolts' images (default: 2)")
    parser.add_argument("--overlay", default=os.environ.get("LIT_BOLTS"), help="folder of lightning-bolts")
    parser.add_argument(
        "--run", nargs=3, metavar=("CASE", "TECHNIQUE", "STEPS"), help="one run, as the rounds start it"
    )
    args = parser.parse_args()
    if args.run:
        case, technique, steps = args.run
        one_run(case, technique, int(steps))
        return 0
    if not args.overlay:
        parser.error("--overlay: expected the folder of lightning-bolts, see the top of this file")
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        contrastive = {"simclr", "moco"} & {*args.techniques}
        pictures = images_file(Path(folder)) if contrastive else Path(folder)
        mnist = Path(os.environ.get("LIT_DATA", REPOSITORY / "data"))
        for technique in args.techniques:
            data = pictures if technique in contrastive else mnist
            steps = args.steps or TECHNIQUES[technique][1]
            to_bolts, to_floor = compare(technique, steps, args.workers, args.overlay, data, args.repeats)
            if args.check is not None and (to_floor > args.check or to_bolts > MOST[technique]):
                print(f"expected at most {args.check} of the floor and {MOST[technique]} of bolts: MISSED\n")
                status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
