"""What it costs that runs resume to the bit.

    python -m benchmarks.exactness

An epoch of easy-VQA from its start to the start of the next, with its validation and its checkpoints: as `train.py fit`
runs it, and without what only serves going on after a fault (the generators and the position in the checkpoint, the
newest states, the atomic writes, the watch for signals). Both save the best checkpoint, and neither draws figures.
"""

from __future__ import annotations

from statistics import median

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.floor import command_line, now
from benchmarks.harness import interleaved, options, ratios, report, verdict
from benchmarks.vqa_epoch import CONFIG
from experiments.callbacks.checkpoints import RecoveryCheckpoint
from experiments.callbacks.exact_resume import ExactResume
from experiments.callbacks.figures import Figures
from experiments.callbacks.graceful_stop import GracefulStop


class WholeEpochs(Callback):
    """When each epoch starts, and the training ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(now())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(now())


def seconds(exact: bool, epochs: int, limit_batches: int | None) -> float:
    """Seconds of an epoch: the median of ``epochs``, with one more before."""
    limits = ["--trainer.max_epochs", str(epochs + 1)]
    if limit_batches is not None:
        limits += ["--trainer.limit_train_batches", str(limit_batches)]
        limits += ["--trainer.limit_val_batches", str(limit_batches)]
    with command_line([*CONFIG, *limits]) as cli:
        callbacks = cli.trainer.callbacks
        without: tuple[type[Callback], ...] = (Figures,)  # drawn in the last epoch whatever one asks
        if not exact:
            without += (ExactResume, RecoveryCheckpoint, GracefulStop)
            cli.stop = None
            cli.trainer.strategy.checkpoint_io = TorchCheckpointIO()
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, without)]
        callbacks.insert(0, clock := WholeEpochs())
        cli.execute()
    lengths = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return median(lengths[1:])


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="timed in each round (default: 3)")
    parser.add_argument("--limit-batches", type=int, help="in an epoch, for a quick run (default: all)")
    args = parser.parse_args()
    cases = {
        "exact": lambda: seconds(True, args.epochs, args.limit_batches),
        "without": lambda: seconds(False, args.epochs, args.limit_batches),
    }
    times = interleaved(cases, args.repeats)
    report("easy-VQA: an epoch with validation and checkpoints", times, "without")
    return verdict(ratios(times, "without")["exact"], args.check)


if __name__ == "__main__":
    raise SystemExit(main())
