"""The pictures of a sequence autoencoder: lines for series, images for rows of images, and of every class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from datamodules.images import Digits
from datamodules.sequences import ImageRows, SequenceBatch
from lit_models.figures.seq_autoencoder import by_turns, drawer_of, row_pictures, series_pictures
from lit_models.seq_autoencoder import SequenceAutoencoder


def made(longest: int, dim: int, count: int, **options: Any) -> tuple[SequenceAutoencoder, SequenceBatch]:
    torch.manual_seed(0)
    facts: dict[str, Any] = {"longest": longest, "sequence_dim": dim, "code_dim": 4, "hidden": 8, "cell": "gru"}
    model = SequenceAutoencoder(**facts | options).eval()
    lengths = torch.full((count,), longest)
    return model, SequenceBatch(torch.randn(count, longest, dim), lengths, torch.arange(count) % 2)


@pytest.mark.parametrize(("longest", "dim", "count"), [(1000, 1, 400), (60, 12, 8), (1, 2, 1)])
def test_pictures_of_series_are_small_whatever_there_is(longest: int, dim: int, count: int) -> None:
    model, batch = made(longest, dim, count)
    pictures = series_pictures(model, batch)
    assert set(pictures) == {"reconstructions", "interpolations"}
    for figure in pictures.values():
        assert isinstance(figure, Figure)
        assert max(figure.get_size_inches() * 110) < 2000
        assert len(figure.axes) <= 12


def test_lines_are_in_the_units_of_the_data() -> None:
    scaling = {"shift": [1000.0, 0.0], "scale": [50.0, 1.0]}
    model, batch = made(20, 2, 3, scaling=scaling, channel_names=["load", "speed"])
    figure = series_pictures(model, batch)["reconstructions"]
    assert isinstance(figure, Figure)
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["load", "speed"]
    line, reconstruction = figure.axes[1].lines[:2]  # of the second series
    np.testing.assert_allclose(line.get_ydata(), 1000 + 50 * batch.values[1, :, 0], rtol=1e-6)
    own = model.reconstruct(1000 * np.array([1, 0]) + [50, 1] * batch.values[1].numpy())
    np.testing.assert_allclose(np.asarray(reconstruction.get_ydata()), own[:, 0], rtol=1e-5)


def test_what_is_drawn_as_images_are_images() -> None:
    model, _ = made(8, 8, 2)
    assert drawer_of(model) is series_pictures, "numbers between 0 and 1 are no image"
    data = ImageRows(Digits(), batch_size=4)
    model._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    assert drawer_of(model) is row_pictures
    pictures = row_pictures(model, next(data.sequences("val")))
    assert all(max(page.size) < 2000 for page in pictures.values())  # type: ignore[union-attr]


def test_pictures_are_of_every_class_although_they_are_in_order() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    assert labels[by_turns(labels, 6)].tolist() == [0, 1, 2, 0, 1, 2]
    assert by_turns(torch.full((10,), -1), 4).tolist() == [0, 3, 6, 9]
    assert by_turns(torch.tensor([-1]), 4).tolist() == [0]
