"""The command line: Lightning's own, with recorded runs and one-line error messages.

    train.py fit|validate|test|predict [-c FILE …] [--model.X …] [--data.X …] [--trainer.X …]

``configs/base.yaml`` is always loaded first; later files and options override it. The facts of a data set (such as its
vocabulary or number of classes) are passed to any model argument of the same name.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import warnings
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from experiments.adopting import adopt, are_others, other_arguments, own_facts, saved_facts
from experiments.arguments import run_command
from experiments.callbacks.checkpoints import RecoveryCheckpoint
from experiments.callbacks.empty_hooks import leave_out_empty_hooks
from experiments.callbacks.exact_resume import ExactResume
from experiments.callbacks.figures import Figures
from experiments.callbacks.first_batch import FirstBatch
from experiments.callbacks.global_batch import GlobalBatch
from experiments.callbacks.graceful_stop import GracefulStop, Stopped, requeue_job
from experiments.callbacks.representation_probe import BestProbedCheckpoint, RepresentationProbe
from experiments.callbacks.run_record import RunRecord
from experiments.callbacks.training_metrics import TrainingMetrics
from experiments.checkpoint_io import AtomicCheckpointIO
from experiments.compilation import compile_parts
from experiments.facts import classes_asked_for, shared_facts
from experiments.metrics_csv import MetricsCSV
from experiments.mistakes import Mistake, Parser, mistake_in
from experiments.named_classes import mend_parsing, refuse_lost_arguments
from experiments.precision import usable_precision
from experiments.predictions import Predictions, parts_asked_for
from experiments.resuming import RUN_ID, check_weights_file, locate, refuse_contradictions, with_own_config
from experiments.run_folder import REPOSITORY, RunFolder, RunOptions, folder_of_checkpoint, is_first_process
from experiments.transfer import start_from

BASE_CONFIG = REPOSITORY / "configs" / "base.yaml"


class CLI(LightningCLI):
    """LightningCLI with run folders, linked data facts, safe resuming, and a test at the end of ``fit``."""

    folder: RunFolder
    _is_quiet = False
    stop: GracefulStop | None = None  # where there is a state to save
    _fetching: Any = None  # arguments of a model that would fetch weights which a checkpoint replaces
    _are_others = False  # whether a checkpoint is used on other data than those of its run
    _adopted: list[str] | None = None  # the facts that the data took over from the checkpoint

    def __init__(self, args: list[str]) -> None:
        """Reads ``args``, the command line without the program's name, and makes model, data and trainer.

        Raises:
            Mistake: in the command line or a configuration file.
        """
        self.command_line = with_own_config(args)
        _check_yaml(self.command_line)
        mend_parsing()
        refuse_lost_arguments(args)
        model, data = classes_asked_for(self.command_line, BASE_CONFIG)
        self.facts = shared_facts(model, data) if model and data else set()
        if model and args[:1] == ["predict"]:
            self.command_line += own_facts(self.command_line, model, self.facts, BASE_CONFIG)
        # Building a parser takes a while: only the one that is asked for is built.
        known = LightningCLI.subcommands()
        asked = args[0] if args else ""
        self._subcommands = {asked: known[asked]} if asked in known else known
        options: dict[str, Any] = {"allow_abbrev": False}
        of_subcommand = {"default_config_files": [str(BASE_CONFIG)], **options}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs=options | dict.fromkeys(self._subcommands, of_subcommand),
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        self.config = parser.parse_args(self.command_line)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Whether fit tests the best checkpoint at the end."
        )
        parser.add_argument(
            "--allow_changed_data", type=bool, default=False, help="Whether to resume even if the data have changed."
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="A checkpoint of whose weights a new run takes what fits, by name, such as its encoder, or the words "
            "that both data have.",
        )
        parser.add_argument(
            "--part",
            type=Literal["train", "val", "test", "all"] | None,
            default=None,
            help="What predict looks at; by default the test part, or all of a new folder or text without parts.",
        )
        parser.add_argument(
            "--compile", type=bool, default=False, help="Whether to compile the networks with torch.compile."
        )
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="Precision of float32 matrix products; high means TF32 on GPUs that have it.",
        )
        parser.add_lightning_class_args(GlobalBatch, "batch")
        parser.add_lightning_class_args(BestProbedCheckpoint, "best")
        parser.add_lightning_class_args(RecoveryCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Figures, "figures")
        parser.add_lightning_class_args(RepresentationProbe, "probe")
        for fact in sorted(self.facts):
            # Not the attribute: which value the model gets is decided with all of the data at hand.
            of_data = partial(self._fact_of, fact)
            parser.link_arguments("data.setup", f"model.init_args.{fact}", of_data, apply_on="instantiate")

    def _fact_of(self, fact: str, setup: MethodType) -> Any:
        """What the model is told as ``fact``: what its checkpoint says, if there is one, else the data."""
        data = setup.__self__
        if self._adopted is None:  # before the first fact
            self._adopted = adopt(data, self._saved, Path(self.config[self.subcommand].ckpt_path or ""))
        return self._saved.get(fact, getattr(data, fact))

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return self._subcommands

    def _parse_ckpt_path(self) -> None:
        """Finds the run's folder and the checkpoint to start from.

        Lightning would silently let the checkpoint's hyperparameters override the command line.
        """
        config = self.config[self.config.subcommand]
        self.folder, checkpoint = locate(self.config.subcommand, config)
        config.ckpt_path = str(checkpoint) if checkpoint else None
        check_weights_file(config.init_from)
        self._saved = saved_facts(checkpoint, self.facts) if checkpoint else {}
        self._others: dict[str, Any] = {}  # the arguments by which the data are others than the run's
        if checkpoint:
            now = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))[
                self.config.subcommand
            ]
            refuse_contradictions(self.config.subcommand, config, now, checkpoint, self.facts)
            self._others = other_arguments(now["data"], checkpoint)

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; without fetching weights that those of a checkpoint replace."""
        config = self.config[self.subcommand]
        arguments = config.model.get("init_args", {})
        if config.ckpt_path is not None and arguments.get("pretrained"):
            self._fetching, arguments.pretrained = arguments, False
        super().instantiate_classes()

    def _look_at_the_data(self) -> None:
        """What a model says about other data than those of its run is kept apart from the run's own record."""
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint is None or self.subcommand == "fit":
            return
        if not (self._others or self._adopted or are_others(self.datamodule, Path(checkpoint))):
            return
        self._are_others = True
        if folder_of_checkpoint(Path(checkpoint)) is not None and not self._get(self.config, "run").id:
            self.folder = self.folder.on_other_data(_label(self._others))
        if is_first_process():
            how = ", ".join(f"{name}={value}" for name, value in self._others.items()) or "their content has changed"
            taken = f"; read with the checkpoint's {', '.join(self._adopted)}" if self._adopted else ""
            print(f"other data than those that the model was trained on ({how}){taken}; kept in {self.folder.path}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self._fetching is not None:  # the model is made: from here on as it was asked for, for the run's record
            self._fetching.pretrained = True
        self._look_at_the_data()
        config, options = self._get(self.config_init, "trainer"), self._get(self.config_init, "run")
        best, recovery, figures = (self._get(self.config_init, key) for key in ("best", "checkpoint", "figures"))
        batch, probe = self._get(self.config_init, "batch"), self._get(self.config_init, "probe")
        seed = self._get(self.config, "seed_everything")
        metrics = MetricsCSV(self.folder.metrics)
        resume = ExactResume(self._get(self.config, "allow_changed_data"))
        extra: list[Callback] = [FirstBatch(), TrainingMetrics(), resume]
        if not config.fast_dev_run:
            recovery.folder = self.folder.of or self.folder
            best.dirpath = str(recovery.folder.checkpoints)
            figures.folder = self.folder.figures
            command = ["train.py", *self.command_line]
            record = RunRecord(self.folder, self._rerunnable_config, command, seed, options.tags, best, metrics)
            extra.append(record)
        if config.enable_progress_bar is not False:
            from lightning.pytorch.callbacks import RichProgressBar

            extra.append(RichProgressBar(refresh_rate=20))
        loggers: Any = config.logger
        if loggers in (None, True):
            loggers = [metrics]
            if not config.fast_dev_run and (wandb := self._wandb(options)):
                loggers.append(wandb)
        # The probe is first, so that it sees averaged weights before their callback puts the others back.
        kwargs["callbacks"] = [probe, *(config.callbacks or []), *extra]
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        kwargs["precision"] = usable_precision(config.precision, self.model, str(config.accelerator))
        kwargs["default_root_dir"] = config.default_root_dir or str(self.folder.path)
        unchecked = config.enable_checkpointing is False or config.fast_dev_run
        wanted = [batch, figures]
        if not unchecked:
            self.stop = GracefulStop(recovery)
            wanted += [best, recovery, self.stop]
        trainer: Any = self._instantiate_trainer({**config, **kwargs, "logger": loggers}, wanted)
        leave_out_empty_hooks(trainer.callbacks)
        found: Trainer = trainer
        return found

    @cached_property
    def _rerunnable_config(self) -> str:
        """The complete configuration as YAML, without the parts that tie it to this one run."""
        config = self.config[self.subcommand].clone()
        config.ckpt_path = config.run.id = None
        text: str = self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True)
        return f"# python train.py {self.subcommand} -c THIS_FILE\n{text}"

    def _dump_config(self) -> None:
        """Lightning's own, for the hyperparameters of model and data, but that what was checked is not checked again.

        That takes longer than making both.
        """
        if not hasattr(self, "config_dump"):
            text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, skip_validation=True)
            self.config_dump = yaml.safe_load(text)[self.subcommand]

    def _wandb(self, options: RunOptions) -> Any:
        from experiments.weights_and_biases import wandb_logger

        config = yaml.safe_load(self._rerunnable_config)
        linked = {key: value for key, value in self.model.hparams.items() if key in self.facts}
        short = {key: value for key, value in linked.items() if len(str(value)) < 1000}
        config["model"]["init_args"] = config["model"].get("init_args", {}) | short
        return wandb_logger(self.folder, config, options.project, str(self.subcommand), options.tags)

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing yet: building the objects and running them are separate steps, see :meth:`execute`."""

    def keep_quiet(self) -> None:
        """From here on neither the size of a batch nor a table is printed: for commands with words of their own."""
        self._is_quiet = True
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GlobalBatch):
                callback.is_quiet = True

    def execute(self) -> None:
        """Runs the subcommand."""
        os.environ[RUN_ID] = self.folder.id  # for the processes that a strategy starts
        torch.set_float32_matmul_precision(self._get(self.config, "matmul_precision"))
        signals = self.stop.watching() if self.stop and self.subcommand == "fit" else nullcontext()
        try:
            with self.folder.locked(), signals:
                if (weights := self._get(self.config, "init_from")) and self._get(self.config, "ckpt_path") is None:
                    start_from(self.model, Path(weights), self.datamodule)
                if self._get(self.config, "compile"):
                    compile_parts(self.model, self.trainer.strategy.root_device)
                super()._run_subcommand(str(self.subcommand))
        finally:
            os.environ.pop(RUN_ID, None)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True  # a checkpoint is data, not code
        if "verbose" in kwargs:
            kwargs["verbose"] = False
        return kwargs

    def after_fit(self) -> None:
        best = self.folder.best_checkpoint()
        config = self._get(self.config, "trainer")
        tests = self._get(self.config, "test_after_fit") and not config.fast_dev_run and config.limit_test_batches != 0
        if tests and best and not self.trainer.interrupted:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        self._report()

    def after_validate(self) -> None:
        self._report()

    def after_test(self) -> None:
        self._report()

    def predict(self, **kwargs: Any) -> None:
        """Predicts, and writes what ``predict_step`` returned, beside the names of the samples, to the run's folder."""
        if self.trainer.world_size > 1:
            raise Mistake(
                f"trainer.devices={self.trainer.num_devices}: expected 1 for predict, which keeps predictions in order"
            )
        data: Any = self.datamodule
        what, parts = parts_asked_for(self._get(self.config, "part"), data, self._are_others)
        written = Predictions(self.folder.path / "predictions", what)
        self.trainer.callbacks.append(written)  # type: ignore[attr-defined]
        for part in parts or (None,):
            if part is not None:
                data.predict_dataloader = partial(data.plain_loader, part)
            self.trainer.predict(**kwargs | {"return_predictions": False})
            if part is not None:
                written.end_part(data.sample_names(part))
        of_what = f" of the {', '.join(parts)} part{'s' * (len(parts) > 1)}" if parts else ""
        print(f"{written.count} predictions{of_what}: {', '.join(map(str, written.write(data)))}")

    def _report(self) -> None:
        if not self._is_quiet and self.trainer.is_global_zero and not self._get(self.config, "trainer").fast_dev_run:
            from experiments.report import print_report

            print_report(self.folder, str(self.subcommand), dict(self.trainer.callback_metrics))


def _label(arguments: dict[str, Any]) -> str:
    """A short name for data by the arguments that chose them: of a file, a folder or a class."""
    name = next((value for value in arguments.values() if isinstance(value, str)), "data")
    is_class = re.fullmatch(r"(\w+\.)+[A-Z]\w*", name)
    return name.rpartition(".")[2] if is_class else Path(name).stem


def _check_yaml(args: list[str]) -> None:
    """Reports which configuration file is not valid YAML, which jsonargparse does not do."""
    for option, path in pairwise(args):
        if option in ("-c", "--config") and Path(path).is_file():
            try:
                yaml.safe_load(Path(path).read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise Mistake(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _hush_lightning() -> None:
    """Hides an advertisement and a deprecation warning of Lightning that users can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "litlogger" not in record.getMessage())
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def build(args: list[str]) -> CLI:
    """Makes model, data and trainer as ``train.py`` does for this command line; the result's ``execute`` runs them."""
    _hush_lightning()
    return CLI(args)


def main() -> None:
    """Called by ``train.py``. A user's mistake gives one line and exit status 2; LIT_TRACEBACK=1 shows the rest."""
    if run_command(sys.argv[1:]):
        return
    building = True
    try:
        cli = build(sys.argv[1:])
        building = False
        cli.execute()
    except Stopped as stop:
        saved = f"the state is saved in {stop.checkpoint}" if stop.checkpoint else "it had not yet taken its first step"
        print(f"{stop}: stopped; {saved}", file=sys.stderr)
        if stop.number == signal.SIGUSR1:
            if is_first_process():
                requeue_job()
            raise SystemExit(0) from None
        raise SystemExit(128 + stop.number) from None
    except Exception as error:
        line = mistake_in(error, building)
        if line is None or os.environ.get("LIT_TRACEBACK"):
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
