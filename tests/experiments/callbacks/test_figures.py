"""Pictures: whose they are, what they are drawn of, when they are written, and that they change nothing."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from datamodules.parts.loader import TensorLoader
from experiments.callbacks.figures import Figures, drawer_of
from lit_models.untrained import Untrained
from lit_models.vae import VAE
from tests.conftest import REPOSITORY

TECHNIQUES = sorted(
    path.stem
    for path in (REPOSITORY / "lit_models/figures").glob("*.py")
    if (REPOSITORY / "lit_models" / path.name).is_file() and path.stem != "__init__"
)


class Outsider(LightningModule):
    """A module from elsewhere, which draws itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.drawn: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def illustrate(self, batch: list[Tensor]) -> dict[str, Figure | Image.Image | str]:
        assert not torch.is_grad_enabled()
        torch.rand(3)
        self.drawn.append(batch)
        pixels = Image.new("RGB", (5, 7), "red")
        texts = {"plot.svg": "<svg/>", "drawing": "<svg/>", "words.txt": "$1 < 2\n"}
        return {"plot": Figure((2, 1)), "pixels": pixels, **texts}


class Derived(VAE):
    """Somebody's own variant of a technique."""


def run(folder: Path, figures: Figures, epochs: int = 2) -> tuple[Trainer, Outsider]:
    figures.folder = folder / "figures"
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[figures], default_root_dir=folder, **off)
    module = Outsider()
    numbers = torch.arange(6.0)[:, None]
    evaluated = TensorLoader((numbers,), 2)
    trainer.fit(module, TensorLoader((numbers,), 2), evaluated)
    trainer.test(module, evaluated, verbose=False)
    return trainer, module


def written(folder: Path) -> set[str]:
    return {file.relative_to(folder / "figures").as_posix() for file in (folder / "figures").rglob("*.*")}


def test_the_files_of_each_kind_and_moment(tmp_path: Path) -> None:
    _, module = run(tmp_path, Figures(every_n_epochs=1))
    moments = ("epoch_0001", "epoch_0002", "test")
    names = ("plot.png", "plot.svg", "pixels.png", "drawing.svg", "words.txt")
    assert written(tmp_path) == {f"{moment}/{name}" for moment in moments for name in names}
    assert (tmp_path / "figures/test/words.txt").read_text() == "$1 < 2\n"
    assert Image.open(tmp_path / "figures/test/plot.png").size == (220, 110)
    assert Image.open(tmp_path / "figures/test/pixels.png").size == (5, 7)
    assert [batch[0].flatten().tolist() for batch in module.drawn] == [[0.0, 1.0]] * 3, "the first batch each time"


@pytest.mark.parametrize(
    ("every", "moments"), [(2, {"epoch_0002", "test"}), (0, {"epoch_0003", "test"}), (None, set())]
)
def test_when_they_are_due(tmp_path: Path, every: int | None, moments: set[str]) -> None:
    figures = Figures(every_n_epochs=every)
    run(tmp_path, figures, epochs=3)
    expected = moments | ({"epoch_0003"} if every else set())  # the last one always
    assert {name.split("/")[0] for name in written(tmp_path)} == expected
    assert figures.batch is None, "no batch is kept for longer than its evaluation"


def test_they_leave_the_generator_and_the_training_alone(tmp_path: Path) -> None:
    found = []
    for every in (1, None):
        torch.manual_seed(0)
        _, module = run(tmp_path, Figures(every_n_epochs=every))
        found.append((torch.get_rng_state(), module.layer.weight))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_impossible_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"figures\.every_n_epochs=-1: expected 0 or more, or null for no figures"):
        Figures(every_n_epochs=-1)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_finds_its_file_by_its_name(technique: str) -> None:
    file = import_module(f"lit_models.{technique}")
    kinds = [kind for kind in vars(file).values() if isinstance(kind, type) and kind.__module__ == file.__name__]
    (made,) = [kind.__new__(kind) for kind in kinds if issubclass(kind, LightningModule)]
    draw: Any = drawer_of(made)
    assert draw.func is import_module(f"lit_models.figures.{technique}").illustrate
    assert draw.args == (made,)


def test_whose_pictures_a_module_has() -> None:
    shape = [1, 8, 8]
    outsider = Outsider()
    assert drawer_of(outsider) == outsider.illustrate
    derived: Any = drawer_of(Derived(shape, hidden=[4], latent_dim=2))
    assert derived.func is import_module("lit_models.figures.vae").illustrate
    assert drawer_of(Untrained(shape, representation="pixels")) is None
    assert drawer_of(LightningModule()) is None
