"""What a technique and data from outside are told, given and asked for."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.text import TextBatch
from experiments.cli import CLI, build
from experiments.facts import attributes_of, shared_facts
from experiments.technique import Encodes, mismatch, size_of, unit_of
from tests.conftest import QUIET, REPOSITORY

SHORT = ["--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"]


class Voice(NamedTuple):
    """Sounds and who makes them."""

    sounds: Tensor
    speakers: Tensor


class Voices(LightningDataModule):
    """A data set with a fact that this project has never heard of; it is no annotation, just an attribute."""

    def __init__(self, speakers: int = 5) -> None:
        super().__init__()
        self.num_speakers = speakers

    def batches(self) -> list[Any]:
        return [Voice(torch.randn(8, 4), torch.arange(8) % self.num_speakers)] * 3

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches(), batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


class DictVoices(Voices):
    def batches(self) -> list[Any]:
        return [batch._asdict() for batch in super().batches()]


class Recognizer(LightningModule):
    def __init__(self, num_speakers: int, hidden: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Linear(hidden, num_speakers))

    def training_step(self, batch: Voice, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.layers(batch.sounds), batch.speakers)

    def validation_step(self, batch: Voice, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def test_step(self, batch: Voice, batch_idx: int) -> None:
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OfDicts(Recognizer):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(Voice(**batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        super().test_step(batch, batch_idx)


def options(model: type, data: type) -> list[str]:
    return ["--model", f"{__name__}.{model.__name__}", "--data", f"{__name__}.{data.__name__}"]


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_a_new_fact_reaches_the_model_without_an_edit_anywhere(fit: Callable[..., CLI]) -> None:
    cli = fit(*options(Recognizer, Voices), "--data.speakers", 6, *SHORT)
    assert cli.model.hparams.num_speakers == 6
    assert cli.model.layers[1].out_features == 6
    assert "num_speakers" not in cli.folder.config.read_text(), "it is no setting: the data say it"


def test_a_resumed_run_takes_the_fact_from_the_data_again(fit: Callable[..., CLI]) -> None:
    whole = fit(*options(Recognizer, Voices), *SHORT)
    again = fit(*options(Recognizer, Voices), *SHORT, "--ckpt_path", "last")
    assert again.folder.id == whole.folder.id
    assert again.model.hparams.num_speakers == 5


class Silent(LightningDataModule):
    """Data without the fact."""


def test_a_required_argument_that_nobody_gives_is_named(mistake: Callable[..., str]) -> None:
    line = mistake("fit", *options(Recognizer, Silent))
    assert line.startswith("model.num_speakers: ")
    assert f"{__name__}.Recognizer" in line
    assert "Namespace" not in line
    assert len(line) < 250


def test_facts_are_what_instances_have() -> None:
    assert "num_speakers" in attributes_of(Voices)
    assert "num_speakers" in attributes_of(DictVoices), "from the class that it derives from"
    assert shared_facts(Recognizer, Voices) == {"num_speakers"}
    assert not attributes_of(LightningDataModule)


@pytest.mark.parametrize(
    "pair",
    [
        ("lit_models.vqa.VQA", "datamodules.easy_vqa.EasyVQA", {"vocab", "answers", "question_types", "image_shape"}),
        ("lit_models.char_lm.CharLM", "datamodules.text.CharText", {"vocab"}),
        ("lit_models.simclr.SimCLR", "datamodules.contrastive_views.ContrastiveViews", {"image_shape"}),
        ("lit_models.deep_image_prior.DeepImagePrior", "datamodules.restoration.Restoration", {"num_images", "copies"}),
    ],
)
def test_the_facts_of_the_techniques(pair: tuple[str, str, set[str]]) -> None:
    def found(path: str) -> type:
        module, _, name = path.rpartition(".")
        return getattr(__import__(module, fromlist=[name]), name)  # type: ignore[no-any-return]

    assert shared_facts(found(pair[0]), found(pair[1])) >= pair[2]


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "data", "given", "wanted"),
    [
        ("simclr/digits", ["--data", "datamodules.images.Digits"], "ImageBatch", "ViewBatch"),
        ("vae/digits", ["--data", "datamodules.contrastive_views.ContrastiveViews"], "ViewBatch", "ImageBatch"),
        ("metric_learning/digits", ["--data", "datamodules.images.Digits"], "ImageBatch", "ExampleBatch"),
        ("char_lm/python_stdlib", ["--data", "datamodules.sequences.TextLines"], "SequenceBatch", "TextBatch"),
    ],
)
def test_data_of_another_kind_are_refused_in_one_line(
    config: str, data: list[str], given: str, wanted: str, mistake: Callable[..., str]
) -> None:
    if "ContrastiveViews" in data[1]:
        data = [*data, "--data.source", "datamodules.images.Digits"]
    line = mistake("fit", "-c", REPOSITORY / f"configs/{config}.yaml", *data, *SHORT, *QUIET)
    assert given in line
    assert wanted in line


def test_a_dict_batch_is_counted_by_its_rows(fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("experiments.callbacks.training_metrics.time.perf_counter", lambda: float(next(clock)))
    cli = fit(*options(OfDicts, DictVoices), *SHORT, "--trainer.log_every_n_steps", 1)
    with cli.folder.metrics.open() as file:
        speeds = [float(row["perf/samples_per_second"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert speeds == [8.0, 8.0], "8 rows a step, and a second by this clock"


def test_sizes_and_units() -> None:
    rows = torch.zeros(7, 3)
    assert size_of(rows) == size_of([rows, 1]) == size_of({"x": rows, "y": 1}) == size_of(Voice(rows, rows)) == 7
    assert size_of((({"x": [rows]},), 3)) == 7
    assert unit_of(rows) == "samples"
    text = TextBatch(torch.zeros(4, 10), torch.zeros(4, 10), torch.zeros(4))
    assert (size_of(text), unit_of(text)) == (40, "characters")


def test_a_character_model_says_characters(fit: Callable[..., CLI]) -> None:
    small = ["--model.hidden", 8, "--data.limit", 20_000, "--data.batch_size", 4, "--data.seq_len", 16]
    off = ["--figures.every_n_epochs", "null", "--trainer.limit_test_batches", 1]
    cli = fit("-c", REPOSITORY / "configs/char_lm/python_stdlib.yaml", *small, *off, *SHORT)
    assert "perf/characters_per_second" in cli.folder.metrics.read_text().splitlines()[0].split(",")
    summary = json.loads(cli.folder.summary.read_text())
    assert summary["characters_per_second"] > 0
    assert "samples_per_second" not in summary


# ---- offers ----------------------------------------------------------------------------------------------------------


class Tokens(Recognizer):
    """``encode`` means something else here."""

    def encode(self, images: Tensor, vocabulary: list[str]) -> Tensor:
        raise AssertionError


def test_a_method_of_the_same_name_is_no_offer_unless_it_can_be_called_like_it() -> None:
    assert mismatch(Tokens(2), Encodes) == "Tokens.encode takes (images, vocabulary); expected (images)"


class TokensOfImages(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor, vocabulary: list[str]) -> Tensor:
        raise AssertionError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.weight.sum())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_an_encode_of_something_else_is_said_before_the_first_step_and_not_probed(fit: Callable[..., CLI]) -> None:
    model = ["--model", f"{__name__}.TokensOfImages", "--data", "datamodules.images.Digits"]
    with pytest.warns(UserWarning, match="no representation probe: TokensOfImages.encode takes"):
        fit(*model, *SHORT, "--probe.every_n_epochs", 1)


# ---- the command line from Python ------------------------------------------------------------------------------------


@pytest.fixture
def untouched() -> Iterator[None]:
    argv, text = list(sys.argv), LightningDataModule.__str__
    yield
    assert sys.argv == argv
    assert LightningDataModule.__str__ is text


@pytest.mark.usefixtures("untouched")
def test_build_leaves_the_process_as_it_was() -> None:
    cli = build(["fit", *options(Recognizer, Voices), *QUIET])
    assert isinstance(cli.model, Recognizer)


def test_the_manifest_has_the_command_that_was_given(fit: Callable[..., CLI]) -> None:
    cli = fit(*options(Recognizer, Voices), *SHORT)
    command = json.loads(cli.folder.manifest.read_text())["starts"][0]["command"]
    assert " train.py fit " in command
    assert f"--model {__name__}.Recognizer" in command
