"""What the representation probe costs at its default interval, as a share of training.

    python -m benchmarks.probe_cost

A run of as many epochs as lie between two probes, each with its validation, as `train.py fit` makes it, without
figures; the probe runs after the last. Its time is taken inside of the run, and the rest of the run is what it is
compared with.
"""

from __future__ import annotations

from unittest.mock import patch

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.floor import command_line, now
from benchmarks.harness import Times, options, report, verdict
from experiments.callbacks.figures import Figures
from experiments.callbacks.representation_probe import RepresentationProbe
from experiments.run_folder import REPOSITORY

CONFIGS = ("vae/mnist", "vae/digits", "autoencoder/digits")


class Clock(Callback):
    """Seconds from the first epoch's start to the training's end."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds -= now()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += now()


def seconds(config: str, more: list[str]) -> tuple[float, float]:
    """Seconds of one probe, and of the training that lies between two."""
    measure, probes = RepresentationProbe.measure, []

    def timed(*args: object) -> dict[str, float]:
        start = now()
        figures = measure(*args)  # type: ignore[arg-type]
        probes.append(now() - start)
        return figures

    every = str(RepresentationProbe().every_n_epochs)
    arguments = ["-c", str(REPOSITORY / "configs" / f"{config}.yaml"), "--trainer.max_epochs", every, *more]
    with command_line(arguments) as cli, patch.object(RepresentationProbe, "measure", timed):
        callbacks = cli.trainer.callbacks
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, Figures)]
        callbacks.append(clock := Clock())
        cli.execute()
    (probe,) = probes
    return probe, clock.seconds - probe


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help=f"default: {' '.join(CONFIGS)}")
    parser.add_argument("--limit-batches", type=int, help="in an epoch, for a quick run (default: all)")
    args = parser.parse_args()
    limit = [] if args.limit_batches is None else ["--trainer.limit_train_batches", str(args.limit_batches)]
    status = 0
    for config in args.configs:
        rounds = [seconds(config, limit) for _ in range(args.repeats + 1)][1:]  # the first is for warming up
        times: Times = {"probe": [probe for probe, _ in rounds], "training": [training for _, training in rounds]}
        report(f"{config}: one probe, and the training between two", times, "training")
        status = max(status, verdict([probe / training for probe, training in rounds], args.check))
        print()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
