"""Principal components by the cheaper side, against scikit-learn's."""

from __future__ import annotations

import re

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from common import decompositions
from lit_models.scores import pca
from lit_models.scores.pca import find_components


@pytest.mark.parametrize(("count", "dims", "most"), [(50, 12, 8192), (13, 40, 8192), (13, 40, 20)])
def test_components_are_those_of_scikit_learn(
    count: int, dims: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca, "MOST", most)
    monkeypatch.setattr(decompositions, "MOST", most)
    generator = torch.Generator().manual_seed(0)
    samples = 0.5 + torch.randn(count, dims, generator=generator) * torch.logspace(0, -1, dims)
    golden = PCA(5).fit(samples.double().numpy())
    mean, components = torch.empty(dims), torch.empty(5, dims)
    find_components(samples.view(count, 2, -1).split(4), mean, components)
    assert mean.numpy() == pytest.approx(golden.mean_, abs=1e-5)
    for found, expected in zip(components, golden.components_, strict=True):
        assert abs(float(found.double() @ torch.from_numpy(expected))) == pytest.approx(1, abs=1e-5)
        assert float(found.norm()) == pytest.approx(1, abs=1e-5)


def test_few_samples_have_few_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "MOST", 20)
    mean, components = torch.empty(40), torch.empty(5, 40)
    find_components([torch.eye(3, 40)], mean, components)
    assert torch.allclose(components.norm(dim=1), torch.tensor([1.0, 1, 0, 0, 0]), atol=1e-5)


def test_many_large_samples_are_refused_before_they_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pca, decompositions):
        monkeypatch.setattr(module, "MOST", 20)
    read: list[Tensor] = []

    def samples() -> object:
        for _ in range(100):
            read.append(torch.zeros(10, 40))
            yield read[-1]

    expected = "principal components of 30 rows of 40 numbers: needs the eigenvectors of 30×30 products, about"
    with pytest.raises(ValueError, match=re.escape(expected)):
        find_components(samples(), torch.empty(40), torch.empty(5, 40))  # type: ignore[arg-type]
    assert len(read) == 3
