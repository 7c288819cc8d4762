"""The probe's figures against scikit-learn and by hand, and that a training does not notice it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from common import decompositions
from datamodules.images import Digits
from datamodules.parts.image_sets import ImageBatch, Part
from experiments import representations
from experiments.callbacks import representation_probe
from experiments.callbacks.exact_resume import generator_states
from experiments.callbacks.representation_probe import (
    RepresentationProbe,
    collect,
    from_all_ranks,
    labeled_rows,
    undisturbed,
)
from experiments.cli import CLI, build
from experiments.representations import (
    accuracy,
    alignment,
    effective_rank,
    feature_std,
    fit_linear_probes,
    knn_predict,
    probe,
    standardize,
    uniformity,
)
from lit_models.vae import VAE
from tests.conftest import QUIET, REPOSITORY
from tests.contracts.test_ranks import one_and_two_ranks
from tests.contracts.test_resume import assert_equal, assert_same_run, resume, rows, run, state

SETTINGS: dict[str, Any] = {
    "model": {"init_args": {"hidden": [16], "test_samples": 2}},
    "data": {"init_args": {"batch_size": 32, "limit": 301, "val_fraction": 0.105}},  # 151 validate: odd, as is 301
    "trainer": {"max_epochs": 3},
    "figures": {"every_n_epochs": None},
}
METRICS = {
    *("knn_accuracy", "probe_accuracy", "probe_accuracy_1pct", "probe_accuracy_10pct"),
    *("uniformity", "effective_rank", "feature_std"),
    "alignment",
}


@pytest.fixture
def config(tmp_path: Path) -> list[str]:
    """The variational autoencoder of digits, made small."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    return ["-c", str(REPOSITORY / "configs/vae/digits.yaml"), "-c", str(file)]


def clusters(n: int = 240, dims: int = 6, classes: int = 4, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (n, dims) float32 of unequal spread around one center a class, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centers = torch.randn(classes, dims, generator=generator)
    features = centers[labels] + noise * torch.randn(n, dims, generator=generator)
    return features * torch.logspace(-1, 1, dims) + 3, labels


# ---- neighbors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (100, 0.1), (100, 0.02), (160, 1.0)])
@pytest.mark.parametrize("block", [1, 1000, 2**25])
def test_neighbors_vote_as_in_scikit_learn(
    k: int, temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representations, "BLOCK", block)
    features, labels = clusters(noise=1.5)
    golden = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(features[:160].numpy(), labels[:160].numpy())
    expected = torch.from_numpy(golden.predict(features[160:].numpy()))
    found = knn_predict(features[:160], labels[:160], features[160:], 4, k, temperature)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 1


def test_weights_and_not_only_counts_decide() -> None:
    angles = torch.tensor([0.05, 0.9, 0.9])
    bank = torch.stack([angles.cos(), angles.sin()], 1)
    query = torch.tensor([[5.0, 0.0]])
    labels = torch.tensor([1, 0, 0])
    assert knn_predict(bank, labels, query, 2, k=3, temperature=0.1).tolist() == [1]
    assert knn_predict(bank, labels, query, 2, k=3, temperature=10.0).tolist() == [0]
    assert knn_predict(bank, labels, query, 2, k=3, temperature=1e-4).tolist() == [1], "no overflow"
    assert knn_predict(bank, labels, query, 2, k=200, temperature=10.0).tolist() == [0], "more than there are"


# ---- the linear probe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "dims"), [(240, 6), (20, 30)])
def test_coefficients_are_those_of_scikit_learn(n: int, dims: int) -> None:
    features, labels = clusters(n, dims)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    (x,) = standardize(features)
    assert x.numpy() == pytest.approx(scaled, abs=1e-9)
    penalties = [1.0, 0.1, 0.01, 1e-3]
    for penalty, found in zip(penalties, fit_linear_probes(x, labels, 4, penalties, tolerance=1e-9), strict=True):
        golden = LogisticRegression(C=1 / (penalty * n), solver="newton-cg", tol=1e-9, max_iter=1000).fit(
            scaled, labels.numpy()
        )
        assert found.weight.T.numpy() == pytest.approx(golden.coef_, abs=1e-4)
        assert (found.bias - found.bias.mean()).numpy() == pytest.approx(golden.intercept_, abs=1e-4)
        assert torch.equal(found.predict(x), torch.from_numpy(golden.predict(scaled)))


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_default_tolerance_predicts_what_full_convergence_does(dtype: torch.dtype) -> None:
    features, labels = clusters(noise=2.0)
    (x,) = standardize(features)
    for quick, slow in zip(
        fit_linear_probes(x.to(dtype), labels, 4), fit_linear_probes(x, labels, 4, tolerance=1e-9), strict=True
    ):
        torch.testing.assert_close(quick.weight, slow.weight, atol=2e-3, rtol=2e-3)
        assert accuracy(quick.predict(x), slow.predict(x)) >= 0.99


def test_linear_probe_without_autograd_and_with_classes_that_do_not_occur() -> None:
    features, labels = clusters()
    with torch.inference_mode():
        (x,) = standardize(features)
        *_, fitted = fit_linear_probes(x[labels < 2], labels[labels < 2], 4)
        assert set(fitted.predict(x).tolist()) == {0, 1}


def test_constant_dimensions_are_no_features() -> None:
    features, labels = clusters()
    rounding = 1e-7 * labels[:, None].float()  # tells the classes apart
    x, y = standardize(torch.cat([features, 100 + 100 * rounding, torch.zeros(240, 1)], 1), torch.ones(3, 8))
    assert x[:, 6:].abs().max() == 0
    assert y[:, 6:].abs().max() == 0


def test_penalty_is_chosen_where_it_is_said_to_be() -> None:
    features, labels = clusters(120, 40, noise=2.5)
    train, select, evaluate = features[:40], features[40:80], features[80:]
    x, y, z = standardize(train, select, evaluate)
    fitted = list(fit_linear_probes(x, labels[:40], 4, [1.0, 1e-1, 1e-2, 1e-3, 1e-4]))
    chosen = max(fitted, key=lambda each: accuracy(each.predict(y), labels[40:80]))
    # Labels that another penalty gets all right: an evaluation that took part in the choice would show it.
    other = next(each for each in fitted if not torch.equal(each.predict(z), chosen.predict(z)))
    wanted = other.predict(z)
    found = probe(train, labels[:40], evaluate, wanted, select, labels[40:80], num_classes=4)["probe_accuracy"]
    assert found == accuracy(chosen.predict(z), wanted) < 1
    assert probe(train, labels[:40], evaluate, wanted, num_classes=4)["probe_accuracy"] == 1


# ---- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", [[1, 1, 1, 1], [8, 4, 2, 1], [3, 0, 0, 0], [1, 1e-3, 1e-3, 0]])
@pytest.mark.parametrize("transposed", [False, True])
def test_effective_rank_of_known_spectra(spectrum: list[float], transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 4, generator=generator)).Q for n in (50, 7))
    features = left @ torch.diag(torch.tensor(spectrum, dtype=torch.float)) @ right.T
    p = [s / sum(spectrum) for s in spectrum if s]
    expected = math.exp(-sum(q * math.log(q) for q in p))
    assert effective_rank(features.T if transposed else features) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("block", [1, 5, 2**25])
def test_uniformity_by_hand(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representations, "BLOCK", block)
    cross = torch.tensor([[3.0, 0], [0, 1], [-1, 0], [0, -0.1]])  # lengths do not count
    expected = math.log((2 * math.exp(-2 * 2) + math.exp(-2 * 4)) / 3)  # two at distance √2 and one at 2
    assert uniformity(cross) == pytest.approx(expected, abs=1e-6)
    features, _ = clusters(37)
    x = torch.nn.functional.normalize(features.double(), dim=1)
    pairs = [float((-2 * (a - b).square().sum()).exp()) for i, a in enumerate(x) for b in x[:i]]
    assert uniformity(features) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-6)
    assert math.isnan(uniformity(features[:1]))


def test_alignment_by_hand() -> None:
    a, b = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, -3]])
    assert alignment(a, b) == pytest.approx((0 + 4) / 2)
    assert alignment(a, b, alpha=1) == pytest.approx((0 + 2) / 2)


def test_healthy_and_collapsed_features() -> None:
    generator = torch.Generator().manual_seed(0)
    sphere = torch.randn(2000, 64, generator=generator)
    assert feature_std(sphere) == pytest.approx(1 / 8, rel=0.01)
    assert effective_rank(sphere) > 60
    assert uniformity(sphere) == pytest.approx(-4, abs=0.2)
    labels = torch.arange(200) % 10
    labels[:20] = 3
    point = torch.linspace(1, 2, 64)
    found = probe(point.expand(200, 64), labels, point.expand(50, 64), labels[:50])
    majority = float((labels[:50] == 3).double().mean())
    assert found["knn_accuracy"] == pytest.approx(float((labels[:50] == labels[0]).double().mean()))
    assert found["probe_accuracy"] == pytest.approx(majority)
    assert found["feature_std"] == pytest.approx(0, abs=1e-6)
    assert found["uniformity"] == pytest.approx(0, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(9, 4)) == 0


def test_features_that_are_not_finite_have_no_figures() -> None:
    features, labels = clusters()
    broken = features.clone()
    broken[3, 1] = float("nan")
    found = probe(features, labels, broken, labels, subsets={"1pct": torch.arange(10)})
    assert "probe_accuracy_1pct" in found
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("options", "match"), [({"k": 0}, "k=0"), ({"temperature": 0.0}, "temperature=0"), ({}, "0 training")]
)
def test_mistakes_of_the_function(options: dict[str, Any], match: str) -> None:
    features, labels = clusters()
    bank = features if options else features[:0]
    with pytest.raises(ValueError, match=match):
        probe(bank, labels[: len(bank)], features, labels, **options)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_shares_of_the_labels() -> None:
    data = Digits()
    rows, subsets = labeled_rows(data)
    labels = data.part("train").labels
    assert torch.equal(rows, torch.arange(len(labels)))
    assert {name: len(subset) for name, subset in subsets.items()} == {"1pct": 13, "10pct": 129}
    few, subsets = labeled_rows(data, most=100)
    assert len(few) == 100
    assert list(subsets) == ["1pct"], "10 % are more than these"
    assert torch.equal(few[subsets["1pct"]], data.labeled_subset(0.01))
    assert sorted(labels[few][subsets["1pct"]].unique().tolist()) == list(range(10))
    features, found = collect(lambda batch: batch.images.flatten(1), data, "train", few)
    assert torch.equal(found, labels[few])
    assert torch.equal(features, data.part("train").take(few).images.flatten(1) / 255)  # type: ignore[attr-defined]


class Unlabeled(Digits):
    def read(self) -> dict[str, Part]:
        parts = super().read()
        parts["val"] = parts["test"]
        return {name: ImageBatch(part.images, -torch.ones_like(part.labels)) for name, part in parts.items()}  # type: ignore[attr-defined]


class PartlyLabeled(Digits):
    """Every second training image has no label."""

    def read(self) -> dict[str, Part]:
        parts = super().read()
        part = parts["train"]
        labels = part.labels.clone()
        labels[::2] = -1
        return parts | {"train": ImageBatch(part.images, labels)}  # type: ignore[attr-defined]


class Mirrored(Digits):
    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        return batch, batch._replace(images=batch.images.flip(3) if self.batch_size == 32 else batch.images)


# ---- when, and with what, without a training -------------------------------------------------------------------------


def fake_trainer(**options: Any) -> Any:
    """A Trainer at the end of the third of ten epochs."""
    state = {"fn": "fit", "sanity_checking": False, "fast_dev_run": False, "last_batch": True} | options
    progress = SimpleNamespace(is_last_batch=state["last_batch"])
    return SimpleNamespace(
        sanity_checking=state["sanity_checking"],
        fast_dev_run=state["fast_dev_run"],
        state=SimpleNamespace(fn=state["fn"]),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        current_epoch=options.get("epoch", 2),
        max_epochs=10,
        global_step=30,
        max_steps=options.get("max_steps", -1),
        datamodule=options.get("data"),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        world_size=1,
    )


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        (3, {}, True),
        (3, {"epoch": 1}, False),
        (3, {"epoch": 9}, True),
        (0, {}, False),
        (0, {"epoch": 9}, True),
        (3, {"last_batch": False}, False),  # a validation within an epoch
        (2, {"max_steps": 30}, True),
        (2, {"max_steps": 30, "last_batch": False}, True),  # the run's last validation
        (2, {"max_steps": 31}, False),
        (2, {"fn": "validate"}, True),
        (3, {"sanity_checking": True}, False),
        (3, {"fast_dev_run": True}, False),
        (3, {"fast_dev_run": True, "fn": "validate"}, False),
    ],
)
def test_when_it_is_due(every: int, options: dict[str, Any], expected: bool) -> None:
    assert RepresentationProbe(every_n_epochs=every)._is_due(fake_trainer(**options)) == expected


@pytest.mark.parametrize("fast", [False, True])
def test_a_trial_run_tests_without_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    callback = RepresentationProbe()
    callback.works = True
    monkeypatch.setattr(callback, "_log", lambda trainer, module, stage: asked.append(stage))
    callback.on_test_epoch_end(fake_trainer(fast_dev_run=fast), LightningModule())
    assert asked == ([] if fast else ["test"])


def test_its_arguments_reach_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []

    def spy(*parts: Tensor, **options: Any) -> dict[str, float]:
        asked.append((len(parts[0]), options))
        return {}

    monkeypatch.setattr(representation_probe, "probe", spy)
    callback = RepresentationProbe(k=7, temperature=0.3, bank_size=100)
    callback.measure(fake_trainer(data=Digits()), VAE([1, 8, 8], network="mlp"), "val")
    ((bank, options),) = asked
    assert (bank, options["k"], options["temperature"], options["num_classes"]) == (100, 7, 0.3, 10)
    assert list(options["subsets"]) == ["1pct"], "10 % are more than the bank"


class RandomViews(Digits):
    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        return batch, batch._replace(images=batch.images + torch.rand_like(batch.images))


def test_the_views_are_the_same_each_time() -> None:
    model = VAE([1, 8, 8], network="mlp")
    trainer, callback = fake_trainer(data=RandomViews()), RepresentationProbe(bank_size=50)
    found = []
    for seed in (1, 2):  # the training has drawn more since
        torch.manual_seed(seed)
        found.append(callback.measure(trainer, model, "val")["alignment"])
    assert found[0] == found[1] > 0


class UnlabeledValidation(Digits):
    def read(self) -> dict[str, Part]:
        parts = super().read()
        part = parts["test"]
        return parts | {"val": ImageBatch(part.images, -torch.ones_like(part.labels))}  # type: ignore[attr-defined]


def test_no_labels_no_figures() -> None:
    _, labels = collect(lambda batch: batch.images.flatten(1), PartlyLabeled(), "train")
    assert 600 < len(labels) < 700
    assert bool((labels >= 0).all())
    trainer = fake_trainer(data=UnlabeledValidation())
    for part in ("val", "test"):
        assert RepresentationProbe().measure(trainer, VAE([1, 8, 8], network="mlp"), part) == {}


def test_figures_of_an_older_state_are_forgotten() -> None:
    trainer = fake_trainer()
    trainer.callback_metrics = {f"val/{name}": 1.0 for name in METRICS | {"loss"}}
    RepresentationProbe().on_validation_start(trainer, LightningModule())
    assert trainer.callback_metrics == {"val/loss": 1.0}


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize(("samples", "ranks"), [(7, 2), (8, 2), (7, 3), (9, 3)])
def test_features_of_all_ranks_are_in_order_each_once(samples: int, ranks: int, shape: tuple[int, ...]) -> None:
    everything = torch.arange(samples).view(-1, *[1 for _ in shape]).expand(-1, *shape)
    dealt = [everything[rank::ranks] for rank in range(ranks)]
    given: list[Tensor] = []  # what each rank hands in

    def from_rank(rank: int, answer: Tensor) -> Tensor:
        trainer: Any = SimpleNamespace(
            world_size=ranks, strategy=SimpleNamespace(all_gather=lambda rows: (given.append(rows), answer)[1])
        )
        return from_all_ranks(dealt[rank], samples, trainer)

    longest = -(-samples // ranks)
    for rank in range(ranks):
        from_rank(rank, torch.zeros(ranks, longest, *shape))
    assert {len(rows) for rows in given} == {longest}, "as all_gather expects"
    assert torch.equal(from_rank(0, torch.stack(given)), everything)


# ---- in a training ---------------------------------------------------------------------------------------------------


def start(config: list[str], *options: object) -> CLI:
    cli = build(["fit", *config, *map(str, options), *QUIET])
    cli.execute()
    return cli


def summary(cli: CLI) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(cli.folder.summary.read_text())
    return content


def probed(metrics: dict[str, Any], stage: str) -> set[str]:
    names = {name.partition("/")[2] for name in metrics if name.startswith(stage + "/")}
    return names & (METRICS)


@pytest.mark.slow
def test_a_run_logs_it_when_due_and_in_the_test(config: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def spy(*parts: Tensor, **options: Any) -> dict[str, float]:
        asked.append(tuple(len(part) for part in parts))
        return probe(*parts, **options)

    monkeypatch.setattr(representation_probe, "probe", spy)
    cli = start(config, "--trainer.max_epochs", 5, "--probe.every_n_epochs", 2)
    with cli.folder.metrics.open() as file:
        validations = [row for row in csv.DictReader(file) if row["val/loss"]]
    measured = [[name for name in METRICS if row[f"val/{name}"]] for row in validations]
    assert [len(names) for names in measured] == [0, 8, 0, 8, 8], "every second epoch and the last one"
    found = summary(cli)
    assert probed(found["last"], "val") == METRICS
    assert probed(found["test"], "test") == METRICS
    train, val, test = 301, 151, 359
    assert asked == [(train, train, val, val, val, val)] * 3 + [(train, train, test, test, val, val)], (
        "the test part is evaluated and chooses nothing"
    )
    # The best checkpoint's figures are its own: what an earlier epoch had is not carried on.
    best = torch.load(cli.folder.best_checkpoint() or "", weights_only=True)
    assert probed(found["best"], "val") == (METRICS if best["epoch"] in (1, 3, 4) else set())


@pytest.mark.slow
def test_figures_are_the_checkpoints_own(config: list[str]) -> None:
    """Also with averaged weights, which are put back right after the validation."""
    averaged = '{"class_path": "experiments.callbacks.averaged_weights.AveragedWeights", "init_args": {"decay": 0.95}}'
    options = ("--trainer.max_epochs", 2, "--trainer.callbacks+", averaged, "--best.monitor", "val/loss")
    cli = start(config, *options, "--best.mode", "min", "--probe.every_n_epochs", 1)
    found = {name: value for name, value in summary(cli)["best"].items() if name.startswith("val/")}
    assert probed(found, "val") == METRICS
    path = cli.folder.best_checkpoint()
    validation = build(["validate", *config, "--ckpt_path", str(path), *QUIET])
    validation.execute()
    again = {name: float(value) for name, value in validation.trainer.callback_metrics.items()}
    assert again == pytest.approx(found, rel=1e-6)


@pytest.mark.slow
def test_a_training_does_not_notice_it(config: list[str]) -> None:
    runs = [start(config, "--probe.every_n_epochs", every) for every in ("null", 1)]
    for kind in ("best_checkpoint", "newest"):
        without, with_probe = (
            state(cli.folder.best_checkpoint() if kind == "best_checkpoint" else cli.folder.recovery_checkpoints()[0])
            for cli in runs
        )
        assert_equal(with_probe, without, kind)
    assert not probed(summary(runs[0])["last"], "val")
    assert not probed(summary(runs[0])["test"], "test")
    others = [
        [{k: v for k, v in row.items() if k.split("/")[-1] not in METRICS} for row in rows(c.folder)] for c in runs
    ]
    assert others[0] == others[1]


class Noisy(VAE):
    """Whose encoder draws numbers, has a part that trains and one that does not, and breaks on demand."""

    def __init__(self, image_shape: list[int], broken: bool = False) -> None:
        super().__init__(image_shape, network="mlp", hidden=[8], latent_dim=4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.broken = broken

    def encode(self, images: Tensor, sample: bool = True, seed: int | None = None) -> Tensor:
        assert not any(part.training for part in self.modules())
        assert not torch.is_grad_enabled()
        if self.broken:
            raise RuntimeError("broken")
        return super().encode(images, True) + torch.from_numpy(np.random.rand(1)).float()  # noqa: NPY002


@pytest.mark.parametrize("broken", [False, True])
def test_modes_and_generators_are_put_back(broken: bool) -> None:
    model = Noisy([1, 8, 8], broken)
    model.encoder.train()
    model.decoder.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    before = generator_states()
    caught = False
    try:
        with undisturbed(model), torch.no_grad():
            model.encode(torch.rand(3, 1, 8, 8))
    except RuntimeError:
        caught = True
    assert caught == broken
    assert_equal(generator_states(), before)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert len(set(modes.values())) == 2


@pytest.mark.slow
def test_an_encoder_that_draws_changes_no_training(config: list[str]) -> None:
    noisy = {"class_path": f"{__name__}.Noisy", "init_args": {}}
    file = Path("noisy.yaml")
    settings = SETTINGS | {"model": noisy, "data": {"class_path": "datamodules.images.Digits"} | SETTINGS["data"]}
    file.write_text(yaml.safe_dump(settings | {"run": {"name": "vae/digits"}}))
    runs = [start(["-c", str(file)], "--probe.every_n_epochs", every) for every in ("null", 1)]
    without, with_probe = (state(cli.folder.recovery_checkpoints()[0]) for cli in runs)
    assert_equal(with_probe, without)


def test_it_can_choose_the_best_checkpoint(config: list[str], tmp_path: Path) -> None:
    monitor = ("--best.monitor", "val/knn_accuracy", "--best.mode", "max")
    cli = start(config, *monitor, "--trainer.max_epochs", 5, "--probe.every_n_epochs", 2)
    with cli.folder.metrics.open() as file:
        scores = [float(row["val/knn_accuracy"] or "nan") for row in csv.DictReader(file) if row["val/loss"]]
    chosen = int(np.nanargmax(scores))
    assert torch.load(cli.folder.best_checkpoint() or "", weights_only=True)["epoch"] == chosen
    assert summary(cli)["best"]["val/knn_accuracy"] == scores[chosen]
    assert summary(cli)["best"]["epoch"] == chosen


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(config: list[str], tmp_path: Path) -> None:
    """Killed before, between and after probes, of which one chooses the best checkpoint."""
    settings = {"probe": {"every_n_epochs": 2}, "best": {"monitor": "val/knn_accuracy", "mode": "max"}}
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump(settings))
    config = [*config, "-c", str(tmp_path / "probe.yaml")]
    whole = run(config, "whole")
    assert probed(summary(whole)["best"], "val") == METRICS
    for after in (3, 5):
        assert_same_run(resume(config, after), whole, f"killed after {after}")


@pytest.mark.slow
def test_two_ranks_equal_one(config: list[str]) -> None:
    one, two = one_and_two_ranks(config)
    assert probed(one["metrics"], "val") == METRICS
    names = [f"val/{name}" for name in METRICS]
    assert {name: two["metrics"][name] for name in names} == pytest.approx(
        {name: one["metrics"][name] for name in names}, abs=1e-5
    )


@pytest.mark.parametrize("same", [False, True])
def test_alignment_where_the_data_have_views(config: list[str], same: bool) -> None:
    options = ("--data", f"{__name__}.Mirrored", "--data.batch_size", 64 if same else 32, "--trainer.max_epochs", 1)
    cli = start(config, *options)
    found = summary(cli)
    assert probed(found["test"], "test") == METRICS
    assert (found["last"]["val/alignment"] > 1e-3) != same


def test_images_without_labels_are_left_out(config: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    def spy(*parts: Tensor, **options: Any) -> dict[str, float]:
        asked.append(parts[1])
        return probe(*parts, **options)

    monkeypatch.setattr(representation_probe, "probe", spy)
    start(config, "--data", f"{__name__}.PartlyLabeled", "--trainer.max_epochs", 1, "--data.limit", "null")
    assert 600 < len(asked[0]) < 700
    assert bool((asked[0] >= 0).all())


def test_mixed_precision(config: list[str]) -> None:
    cli = start(config, "--trainer.max_epochs", 1, "--trainer.precision", "bf16-mixed")
    assert probed(found := summary(cli)["last"], "val") == METRICS
    assert all(math.isfinite(found[f"val/{name}"]) for name in METRICS)


class WithoutEncode(VAE):
    """Not ``delattr(VAE, "encode")``: that VAE once passed for a technique with ``encode`` is remembered."""

    encode = illustrate = None  # type: ignore[assignment]


@pytest.mark.parametrize("lacks", ["labels", "encode"])
def test_off_where_there_is_nothing_to_probe(lacks: str, config: list[str], mistake: Callable[..., str]) -> None:
    options: tuple[object, ...] = ("--trainer.max_epochs", 1, "--probe.every_n_epochs", 1)
    options += ("--data", f"{__name__}.Unlabeled") if lacks == "labels" else ("--model", f"{__name__}.WithoutEncode")
    cli = start(config, *options)
    assert not probed(summary(cli)["last"], "val")
    assert not probed(summary(cli)["test"], "test")
    by_probe = ("--best.monitor", "val/probe_accuracy", "--best.mode", "max")
    if lacks == "encode":
        assert "best.monitor=val/probe_accuracy" in mistake("fit", *config, *options, *QUIET, *by_probe)


def test_without_labels_the_loss_chooses_which_one_line_says_and_a_resumed_run_too(
    config: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--data", f"{__name__}.Unlabeled", "--best.monitor", "val/knn_accuracy", "--best.mode", "max"]
    options += ["--trainer.max_epochs", "2", "--probe.every_n_epochs", "1"]
    with caplog.at_level("INFO"):
        cli = start(config, *options)
    said = [record.getMessage() for record in caplog.records if "probe" in record.getMessage()]
    assert said == [
        "no representation probe: the data have no labels; best.monitor=val/knn_accuracy becomes val/loss, with "
        "mode=min"
    ]
    found = summary(cli)
    assert found["monitor"] == "val/loss"
    losses = [float(row["val/loss"]) for row in rows(cli.folder) if row.get("val/loss")]
    assert found["best"]["val/loss"] == min(losses)
    assert cli.folder.best_checkpoint() is not None
    longer = [*options[:-3], "4", "--probe.every_n_epochs", "1", "--ckpt_path", "last", "--run.id", cli.folder.id]
    resumed = start(config, *longer)
    best: Any = resumed.trainer.checkpoint_callbacks[0]
    losses = [float(row["val/loss"]) for row in rows(cli.folder) if row.get("val/loss")]
    assert len(losses) == 4
    assert (best.monitor, best.mode, float(best.best_model_score)) == ("val/loss", "min", min(losses))


@pytest.mark.parametrize(
    ("memory", "most", "reason"),
    [
        (
            100_000,
            8192,
            "301 features of 32 numbers need 0.1 MB, expected at most half of 0.1 MB; a smaller",
        ),
        (2**40, 31, "a linear probe of 301 rows of 32 numbers: needs the eigenvectors of 32×32 products, about 0.0 MB"),
    ],
)
def test_too_large_to_probe_does_not_end_the_training(
    memory: int, most: int, reason: str, config: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representation_probe, "memory_limit", lambda: memory)
    monkeypatch.setattr(decompositions, "MOST", most)
    options = ("--best.monitor", "val/knn_accuracy", "--best.mode", "max", "--trainer.max_epochs", 2)
    with pytest.warns(UserWarning, match="no representation probe") as caught:
        cli = start(config, *options, "--model.latent_dim", 32, "--probe.every_n_epochs", 1)
    (line,) = [str(each.message) for each in caught if "no representation probe" in str(each.message)]
    assert line.startswith(f"no representation probe: {reason}")
    assert line.endswith("; best.monitor=val/knn_accuracy becomes val/loss, with mode=min")
    assert summary(cli)["monitor"] == "val/loss"
    assert "val/loss" in summary(cli)["best"]
    assert not probed(summary(cli)["last"], "val")


def test_where_only_the_training_has_labels_the_loss_chooses_too(config: list[str]) -> None:
    options = ("--data", f"{__name__}.UnlabeledValidation", "--best.monitor", "val/knn_accuracy", "--best.mode", "max")
    with pytest.warns(UserWarning, match="no labels; best.monitor=val/knn_accuracy becomes val/loss, with mode=min"):
        cli = start(config, *options, "--trainer.max_epochs", 1, "--probe.every_n_epochs", 1)
    assert summary(cli)["monitor"] == "val/loss"
    assert cli.folder.best_checkpoint() is not None


def test_fewer_features_than_dimensions_are_fitted_in_their_span(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(40, 3000, noise=4.0)
    (x,) = standardize(features)
    assert {len(p.weight) for p in fit_linear_probes(x, labels, 4)} == {3000}
    monkeypatch.setattr(torch.linalg, "eigh", refuse_more_than(40, torch.linalg.eigh))
    for found in fit_linear_probes(x.float(), labels, 4, [0.1, 1e-3], tolerance=1e-9):
        assert found.weight.dtype == torch.double
        golden = LogisticRegression(C=1 / (0.1 * 40), solver="newton-cg", tol=1e-9, max_iter=1000)
        golden.fit(x.numpy(), labels.numpy())
        assert found.weight.T.numpy() == pytest.approx(golden.coef_, abs=1e-4)
        break
    assert next(iter(fit_linear_probes(torch.zeros(5, 9), labels[:5], 4))).weight.abs().max() == 0


def refuse_more_than(most: int, decompose: Any) -> Any:
    def watched(matrix: Tensor) -> Any:
        assert len(matrix) <= most
        return decompose(matrix)

    return watched


def test_what_is_too_large_on_both_sides_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompositions, "MOST", 20)
    for count, dims in ((21, 30), (30, 21)):
        features, labels = clusters(count, dims)
        with pytest.raises(ValueError, match=f"a linear probe of {count} rows of {dims} numbers: needs"):
            list(fit_linear_probes(features, labels, 4))


def test_off_without_images_and_where_weights_are_spread() -> None:
    callback = RepresentationProbe()
    model = VAE([1, 8, 8], network="mlp")
    trainer: Any = SimpleNamespace(datamodule=object(), strategy=None, checkpoint_callbacks=[])
    callback.setup(trainer, model, "fit")
    assert not callback.works
    trainer.datamodule = Digits()
    callback.setup(trainer, model, "fit")
    assert callback.works
    callback.setup(trainer, LightningModule(), "fit")
    assert not callback.works
    trainer.strategy = FSDPStrategy()
    with pytest.warns(UserWarning, match="no representation probe"):
        callback.setup(trainer, model, "fit")
    assert not callback.works


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("k", 0, "probe.k=0: expected at least 1"),
        ("temperature", 0, "probe.temperature=0"),
        ("temperature", -0.1, "probe.temperature=-0.1"),
        ("temperature", ".nan", "probe.temperature=nan"),
        ("every_n_epochs", -1, "probe.every_n_epochs=-1: expected 0 or more"),
        ("bank_size", 0, "probe.bank_size=0: expected at least 1"),
    ],
)
def test_mistakes(option: str, value: object, expected: str, config: list[str], mistake: Callable[..., str]) -> None:
    assert expected in mistake("fit", *config, f"--probe.{option}", value, *QUIET)


def test_a_monitor_that_nobody_logs_is_still_a_mistake(config: list[str], mistake: Callable[..., str]) -> None:
    assert "val/knn" in mistake("fit", *config, "--best.monitor", "val/knn", "--trainer.max_epochs", 1, *QUIET)
