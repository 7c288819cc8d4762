"""Metric learning: its losses and scores against others' and against formulas, its collapse, and its use."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import roc_auc_score
from torch import Tensor

from datamodules.labelled_pairs import ExampleBatch
from experiments.cli import CLI, build
from lit_models.metric_learning import MetricLearning, SiameseLoss, pairs_of
from lit_models.scores.retrieval import bootstrap_interval, nearest_of, retrieval_scores, verification
from tests.conftest import NO_PROBE, REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs/metric_learning/digits.yaml")]
SMALL = ["-c", str(REPOSITORY / "tests/contracts/shrink/metric_learning/digits.yaml"), *NO_PROBE]
NO_DISTANCE = ["--model.distance", "null"]


def make(**options: Any) -> MetricLearning:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"encoder": "conv", "width": 4, "out_dim": 6}
    return MetricLearning(**{"image_shape": [1, 8, 8], "num_classes": 5, **defaults, **options})


def examples(count: int = 12, group: int = 1, seed: int = 0) -> ExampleBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, group, 1, 8, 8, generator=generator)
    same = torch.tensor([[True, False][: group - 1]]).repeat(count, 1)
    return ExampleBatch(images, torch.arange(count)[:, None] % 4 + torch.zeros(1, group).long(), same)


class FakeTrainer:
    """What training_step reads of a Trainer."""

    current_epoch, global_step = 0, 0


def loss_of(model: MetricLearning, batch: ExampleBatch, index: int = 0) -> float:
    model._trainer = FakeTrainer()  # type: ignore[assignment]
    return float(model.training_step(batch, index)["loss"].detach())


# Losses.


def embedded(model: MetricLearning, batch: ExampleBatch) -> Tensor:
    with torch.no_grad():
        return model.embed(batch.images.flatten(0, 1))


def test_the_siamese_loss_is_equation_4() -> None:
    z, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 0, 2])
    loss = SiameseLoss(margin=2.0, distance=LpDistance(normalize_embeddings=False))
    positives, negatives = [], []
    for i in range(6):
        for j in range(6):
            d = (z[i] - z[j]).norm()
            if i != j and labels[i] == labels[j]:
                positives.append(d**2 / 2)
            elif labels[i] != labels[j] and d < 2:
                negatives.append((2 - d) ** 2 / 2)
    expected = torch.stack(positives).mean() + torch.stack(negatives).mean()
    torch.testing.assert_close(loss(z, labels), expected)


def test_a_similarity_and_a_squared_distance_have_no_siamese_margin() -> None:
    with pytest.raises(ValueError, match="distance=CosineSimilarity of power 1: expected a distance of power 1"):
        SiameseLoss(distance=CosineSimilarity())
    with pytest.raises(ValueError, match="distance=LpDistance of power 2: expected a distance of power 1"):
        SiameseLoss(distance=LpDistance(power=2))


@pytest.mark.parametrize(
    ("distance", "power"),
    [(None, 2), ({"name": "LpDistance", "power": 2}, 2), ({"name": "LpDistance"}, 1)],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_triplets_of_a_batch(normalize: bool, distance: dict[str, Any] | None, power: int) -> None:
    """FaceNet's equation 3 is of squared distances."""
    loss = {"name": "TripletMarginLoss", "margin": 0.5}
    model, batch = make(loss=loss, normalize=normalize, distance=distance), examples()
    z, labels = embedded(model, batch), batch.labels[:, 0]
    assert torch.allclose(z.norm(dim=1), torch.ones(12)) == normalize
    terms = []
    for a in range(12):
        for p in range(12):
            for n in range(12):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    near, far = (float((z[a] - z[other]).norm()) for other in (p, n))
                    terms.append(max(0.0, near**power - far**power + 0.5))
    active = [term for term in terms if term > 0]
    assert loss_of(model, batch) == pytest.approx(sum(active) / len(active), rel=1e-4)


def test_what_is_reported_is_a_plain_distance() -> None:
    model, (one, other) = make().eval(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        a, b = model.embed(torch.stack([one, other]))
    assert model.loss.distance.power == 2
    assert model.distance(one, other) == pytest.approx(float((a - b).norm()), rel=1e-4)
    assert model.nearest(one, [other]) == [(0, pytest.approx(float((a - b).norm()), rel=1e-4))]


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("semihard", lambda p, n: p < n <= p + 0.2),
        ("hard", lambda p, n: n <= p),
    ],
)
def test_mined_triplets(kind: str, chosen: Callable[[float, float], bool]) -> None:
    miner = {"name": "TripletMarginMiner", "margin": 0.2, "type_of_triplets": kind}
    model, batch = make(loss={"name": "TripletMarginLoss", "margin": 0.3}, miner=miner), examples()
    z, labels = embedded(model, batch), batch.labels[:, 0]
    terms = []
    for a in range(12):
        for p in range(12):
            for n in range(12):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    near, far = (float((z[a] - z[other]).norm()) ** 2 for other in (p, n))
                    if chosen(near, far):
                        terms.append(max(0.0, near - far + 0.3))
    assert terms
    active = [term for term in terms if term > 0]
    assert loss_of(model, batch) == pytest.approx(sum(active) / len(active), rel=1e-3)


def test_the_batch_hard_miner_takes_the_hardest() -> None:
    model = make(loss={"name": "TripletMarginLoss", "margin": 5.0}, miner={"name": "BatchHardMiner"}, normalize=False)
    batch = examples()
    z, labels = embedded(model, batch), batch.labels[:, 0]
    d, alike = torch.cdist(z, z) ** 2, labels[:, None] == labels
    hardest = d.masked_fill(~alike, 0).amax(1) - d.masked_fill(alike, torch.inf).amin(1) + 5
    assert loss_of(model, batch) == pytest.approx(float(hardest.mean()), rel=1e-4)


def test_a_drawing_miner_repeats_itself_and_disturbs_nothing() -> None:
    options: dict[str, Any] = {"miner": {"name": "DistanceWeightedMiner"}, "distance": {"name": "LpDistance"}}
    model, batch = make(out_dim=8, **options), examples(40)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = loss_of(model, batch)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(4)
    assert loss_of(model, batch) == first
    assert loss_of(model, batch, 1) != first


def test_supcon_takes_all_positives_into_the_softmax() -> None:
    model, batch = make(loss={"name": "SupConLoss", "temperature": 0.3}), examples()
    z, labels = embedded(model, batch), batch.labels[:, 0]
    logits = (z @ z.T / 0.3).fill_diagonal_(-torch.inf)
    log_p, alike = logits.log_softmax(1), (labels[:, None] == labels).fill_diagonal_(False)
    expected = -(log_p.masked_fill(~alike, 0).sum(1) / alike.sum(1)).mean()
    assert loss_of(model, batch) == pytest.approx(float(expected), rel=1e-5)


def test_an_anchor_without_a_positive_is_no_nan() -> None:
    model = make(loss={"name": "SupConLoss", "temperature": 0.1}, distance={"name": "CosineSimilarity"})
    batch = examples()
    batch.labels[0] = 9
    assert 0 < loss_of(model, batch) < 100
    batch.labels[:, 0] = torch.arange(12)
    assert loss_of(model, batch) == 0


def test_classification_is_the_cross_entropy_of_a_linear_layer() -> None:
    model = make(loss={"name": "ClassificationLoss"}, normalize=False)
    batch = examples()
    logits = model.loss.classifier(embedded(model, batch))
    expected = torch.nn.functional.cross_entropy(logits, batch.labels[:, 0])
    assert loss_of(model, batch) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert logits.shape == (12, 5)


def test_losses_with_weights_know_the_classes() -> None:
    model = make(loss={"name": "ProxyAnchorLoss"})
    assert model.loss.proxies.shape == (5, 6)


def test_explicit_groups() -> None:
    a1, p, a2, n = (rows.tolist() for rows in pairs_of(torch.tensor([[True, False], [False, True]])))
    assert (a1, p) == ([0, 3], [1, 5])
    assert (a2, n) == ([0, 3], [2, 4])
    model, batch = make(loss={"name": "TripletMarginLoss", "margin": 0.5}), examples(6, 3)
    z = embedded(model, batch).view(6, 3, 6)
    terms = [max(0.0, float((a - p).square().sum() - (a - n).square().sum()) + 0.5) for a, p, n in z]
    active = [term for term in terms if term > 0]
    assert loss_of(model, batch) == pytest.approx(sum(active) / len(active), rel=1e-4)


@pytest.mark.parametrize(
    ("distance", "normalize", "unit"),
    [
        ({"name": "LpDistance"}, False, False),
        ({"name": "LpDistance", "normalize_embeddings": True}, False, True),
        ({"name": "DotProductSimilarity"}, False, False),
        ({"name": "DotProductSimilarity"}, True, True),
        ({"name": "CosineSimilarity"}, False, True),
    ],
)
def test_a_distance_is_of_unit_vectors_where_something_says_so(
    distance: dict[str, Any], normalize: bool, unit: bool
) -> None:
    model, batch = make(loss={"name": "ContrastiveLoss"}, distance=distance, normalize=normalize), examples()
    z = embedded(model, batch)
    of_units = torch.nn.functional.normalize(z, dim=1) if unit else z
    products = of_units @ of_units.T
    expected = torch.cdist(of_units, of_units) if distance["name"] == "LpDistance" else products
    torch.testing.assert_close(model.loss.distance(z), expected, atol=1e-3, rtol=1e-3)


# Scores.


def some_embeddings(count: int = 120) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (count,), generator=generator) ** 2 // 3  # classes of different sizes
    centers = torch.randn(9, 4, generator=generator)
    return centers[labels] + torch.randn(count, 4, generator=generator), labels


def test_retrieval_scores_are_those_of_pytorch_metric_learning() -> None:
    z, labels = some_embeddings()
    found = {name: float(values.mean()) for name, values in retrieval_scores(z, labels).items()}
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False), batch_size=50),
    )
    expected = calculator.get_accuracy(z, labels)
    assert found["recall_at_1"] == pytest.approx(expected["precision_at_1"])
    assert found["r_precision"] == pytest.approx(expected["r_precision"])
    assert found["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"])


def test_recall_at_k_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_models.scores.retrieval.BLOCK", 700)  # several blocks
    z, labels = some_embeddings()
    scores = retrieval_scores(z, labels, ks=(1, 3))
    for k in (1, 3):
        hits = []
        for i in range(len(z)):
            order = [j for j in (z - z[i]).norm(dim=1).argsort().tolist() if j != i]
            hits.append(any(labels[j] == labels[i] for j in order[:k]))
        assert scores[f"recall_at_{k}"].tolist() == [float(hit) for hit in hits]


def test_an_image_alone_in_its_class_is_no_query() -> None:
    z, labels = some_embeddings(30)
    labels[4] = 99
    several = labels.unique(return_counts=True)[1]
    count = int(several[several > 1].sum())
    assert count < 30
    assert all(len(values) == count for values in retrieval_scores(z, labels).values())


def test_verification_is_the_roc_of_all_pairs() -> None:
    z, labels = some_embeddings()
    first, second = torch.triu_indices(120, 120, 1)
    apart, alike = (z[first] - z[second]).norm(dim=1), labels[first] == labels[second]
    pairs = verification(z, labels)
    assert float(pairs.positives.sum()) == float(alike.sum())
    assert float(pairs.negatives.sum()) == float((~alike).sum())
    assert pairs.auc() == pytest.approx(roc_auc_score(alike, -apart), abs=1e-3)
    best = max(
        (float((apart[alike] < t).double().mean() + (apart[~alike] >= t).double().mean()) / 2)
        for t in torch.linspace(0, float(apart.max()), 3000)
    )
    assert pairs.accuracy(pairs.best_threshold()) == pytest.approx(best, abs=2e-3)
    assert pairs.accuracy(0.0) == pytest.approx(0.5)
    assert pairs.accuracy(1e9) == pytest.approx(0.5)


def test_no_pair_is_too_far_apart_to_be_counted() -> None:
    """Of two clusters opposite to each other, whose distance is the bound and may be rounded to more."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) // 40
    for _ in range(20):
        direction = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
        pairs = verification(direction * (1 - 2 * labels[:, None]), labels)
        assert int(pairs.negatives.sum()) == 1600
        assert int(pairs.positives.sum()) == 2 * 40 * 39 // 2
        assert pairs.negative_distance == pytest.approx(2, rel=1e-5)
        assert pairs.positive_distance < 1e-2
        assert pairs.auc() == 1


def test_scores_of_classes_with_one_image_each() -> None:
    z, labels = torch.randn(5, 3), torch.arange(5)
    assert all(len(values) == 0 for values in retrieval_scores(z, labels).values())
    assert all(value != value for value in bootstrap_interval(torch.zeros(0)))
    assert (pairs := verification(z, labels)).best_threshold() != pairs.best_threshold()


def test_counts_are_integers() -> None:
    """Sums of floats raise on a GPU where the trainer is to be deterministic."""
    pairs = verification(*some_embeddings())
    assert not pairs.positives.is_floating_point()
    assert not pairs.negatives.is_floating_point()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_are_deterministic_on_a_gpu() -> None:
    z, labels = some_embeddings()
    torch.use_deterministic_algorithms(True)
    try:
        pairs = verification(z.cuda(), labels.cuda())
        scores = retrieval_scores(z.cuda(), labels.cuda())
    finally:
        torch.use_deterministic_algorithms(False)
    assert pairs.auc() == pytest.approx(verification(z, labels).auc(), abs=1e-4)
    assert pairs.accuracy(pairs.best_threshold()) > 0.5
    assert float(scores["map_at_r"].mean()) == pytest.approx(float(retrieval_scores(z, labels)["map_at_r"].mean()))


def test_the_bootstrap_interval() -> None:
    values = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.8).float()
    low, high = bootstrap_interval(values)
    mean, error = float(values.mean()), float(values.std()) / 20
    assert low == pytest.approx(mean - 1.96 * error, abs=0.003)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.003)
    assert bootstrap_interval(values) == (low, high)


def test_the_nearest_of_a_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_models.scores.retrieval.BLOCK", 100)
    z, _ = some_embeddings()
    gallery = z[50:80]
    expected = [int((gallery - query).norm(dim=1).argmin()) for query in z]
    assert nearest_of(z, gallery).tolist() == expected


# The module.


@pytest.fixture
def scores_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """``scores_of(model, batch, stage)`` is what an evaluation of one batch logs."""
    monkeypatch.setattr(MetricLearning, "global_step", 7)

    def evaluate(model: MetricLearning, batch: ExampleBatch, stage: str = "val") -> dict[str, float]:
        logged: dict[str, float] = {}
        monkeypatch.setattr(model, "log_dict", logged.update)
        with torch.no_grad():
            model._collect(batch, 1)
            model._log_scores(stage)
        return logged

    return evaluate


TRIPLET, SIAMESE = {"name": "TripletMarginLoss", "margin": 0.2}, {"name": "SiameseLoss", "margin": 1.0}


@pytest.mark.parametrize("loss", [TRIPLET, SIAMESE])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3])
def test_a_collapse_is_warned_of_with_the_step(
    loss: dict[str, Any], size: float, scores_of: Callable[..., dict[str, float]]
) -> None:
    model, batch = make(normalize=False, loss=loss), examples(16)
    torch.nn.init.zeros_(model.head[0].bias)  # type: ignore[index]
    with warnings.catch_warnings(action="error"):
        assert scores_of(model, batch)["val/negative_distance"] > 0.01
    with torch.no_grad():
        model.head[0].weight *= size  # type: ignore[index]
    with pytest.warns(UserWarning, match=r"collapse: all images are embedded in nearly one point \(step 7"):
        found = scores_of(model, batch)["val/negative_distance"]
    assert 0 <= found < 2e-3


def test_a_collapse_away_from_the_origin(scores_of: Callable[..., dict[str, float]]) -> None:
    for normalize in (True, False):
        model, batch = make(normalize=normalize), examples(16)
        torch.nn.init.constant_(model.head[0].bias, 1e3)  # type: ignore[index]
        with pytest.warns(UserWarning, match="collapse"):
            scores_of(model, batch)


def test_a_small_scale_is_no_collapse_where_angles_are_compared(scores_of: Callable[..., dict[str, float]]) -> None:
    for distance in ({"name": "CosineSimilarity"}, {"name": "LpDistance", "normalize_embeddings": True}):
        model, batch = make(normalize=False, loss=TRIPLET, distance=distance), examples(16)
        torch.nn.init.zeros_(model.head[0].bias)  # type: ignore[index]
        with torch.no_grad():
            model.head[0].weight *= 1e-3  # type: ignore[index]
        with warnings.catch_warnings(action="error"):
            scores_of(model, batch)


def test_a_model_that_was_never_validated_has_no_accuracy(scores_of: Callable[..., dict[str, float]]) -> None:
    model, batch = make(), examples(16)
    assert "test/verification_auc" in (never := scores_of(model, batch, "test"))
    assert "test/verification_accuracy" not in never
    scores_of(model, batch)
    assert "test/verification_accuracy" in scores_of(model, batch, "test")


def test_embeddings_of_any_length_are_searched_by_angle_too(scores_of: Callable[..., dict[str, float]]) -> None:
    batch = examples(40)
    found, unit = (scores_of(make(normalize=normalize), batch, "test") for normalize in (False, True))
    for name in ("recall_at_1", "recall_at_10", "r_precision", "map_at_r"):
        assert found[f"test/cosine_{name}"] == pytest.approx(unit[f"test/{name}"])
    assert found["test/map_at_r"] != pytest.approx(found["test/cosine_map_at_r"])
    assert not any("cosine" in name for name in unit)


def test_many_classes_in_a_short_format(scores_of: Callable[..., dict[str, float]]) -> None:
    model, batch = make().to(torch.bfloat16), examples(16)
    batch = batch._replace(images=batch.images.bfloat16(), labels=batch.labels + 996)  # of which bfloat16 has half
    with torch.no_grad():
        model._collect(batch, 1)
        z, labels = model._collected()
        assert torch.equal(z, model.embed(batch.images[:, 0]))
    assert z.dtype == torch.float
    assert torch.equal(labels, batch.labels[:, 0])


@pytest.mark.slow
def test_queries_and_gallery_are_embedded_in_one_precision(
    fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, ended = MetricLearning.embed, MetricLearning.on_test_epoch_end
    precisions: list[bool] = []

    def recorded(self: MetricLearning, images: Tensor) -> Tensor:
        precisions.append(torch.is_autocast_enabled("cpu"))
        return embed(self, images)

    def last(self: MetricLearning) -> None:
        precisions.clear()
        ended(self)
        assert precisions, "the training images are the gallery"
        assert all(precisions), "as the queries of test_step are"

    monkeypatch.setattr(MetricLearning, "embed", recorded)
    monkeypatch.setattr(MetricLearning, "on_test_epoch_end", last)
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    cli = fit(*CONFIG, *SMALL, *few, "--trainer.precision", "bf16-mixed")
    assert "test/precision_at_1_in_training" in cli.trainer.callback_metrics


@pytest.mark.slow
def test_the_threshold_is_chosen_on_validation_and_kept(fit: Callable[..., CLI]) -> None:
    cli = fit(*CONFIG, *SMALL, "--trainer.max_epochs", "2")
    saved = torch.load(str(cli.folder.best_checkpoint()), weights_only=True)["state_dict"]["threshold"]
    assert 0 < float(saved) < 2
    assert torch.equal(saved, cli.model.threshold), "a test changes it not"
    loaded = MetricLearning.load_from_checkpoint(str(cli.folder.best_checkpoint()), weights_only=True)
    zero, other = torch.zeros(8, 8), torch.rand(8, 8)
    assert loaded.alike(zero, zero)
    assert loaded.alike(zero, other) == (loaded.distance(zero, other) < float(saved))


@pytest.mark.slow
def test_digits_are_told_apart(fit: Callable[..., CLI]) -> None:
    options = ("--model.width", "16", "--trainer.max_epochs", "6", "--figures.every_n_epochs", "0")
    cli = fit(*CONFIG, *options, *NO_PROBE)
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert metrics["test/recall_at_1"] > 0.9
    assert metrics["test/recall_at_1_low"] < metrics["test/recall_at_1"] < metrics["test/recall_at_1_high"]
    assert metrics["test/precision_at_1_in_training"] > 0.9
    assert metrics["test/verification_auc"] > 0.95
    assert metrics["test/positive_distance"] < metrics["test/negative_distance"] - 0.3
    figures = {file.name for file in (cli.folder.figures / "test").iterdir()}
    assert figures == {"neighbors.png", "map.png", "distances.png", "hardest_pairs.png"}


def test_unseen_classes_have_no_probe_and_no_gallery(fit: Callable[..., CLI]) -> None:
    probe = ("--probe.every_n_epochs", "1")
    cli = fit(*CONFIG, *SMALL, "--data.unseen_classes", "[3, 4]", "--trainer.max_epochs", "1", *probe)
    metrics = cli.trainer.callback_metrics
    assert "test/recall_at_1" in metrics
    assert "test/knn_accuracy" not in metrics
    assert "test/precision_at_1_in_training" not in metrics


def test_frozen_batch_norm_stays_as_it_is() -> None:
    for frozen in (True, False):
        model = make(freeze_batch_norm=frozen).train()
        before = [buffer.clone() for name, buffer in model.encoder.named_buffers() if "running" in name]
        model.embed(torch.rand(8, 1, 8, 8))
        after = [buffer for name, buffer in model.encoder.named_buffers() if "running" in name]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == frozen


def test_what_encode_gives() -> None:
    images = torch.rand(3, 1, 8, 8)
    model = make().eval()
    assert torch.equal(model.encode(images), model.encoder(images))
    model = make(representation="embedding").eval()
    assert torch.equal(model.encode(images), model.embed(images))
    model = make(out_dim=None, normalize=False).eval()
    assert torch.equal(model.embed(images), model.encoder(images))


def test_use_from_python() -> None:
    model = make()
    images = [torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    assert model.embedding(images[0]).shape == (6,)
    assert model.distance(images[0], images[0]) == 0
    assert model.distance(images[0], images[1]) == pytest.approx(model.distance(images[1], images[0]))
    found = model.nearest(images[2], images, k=3)
    assert found[0] == (2, 0.0)
    assert [distance for _, distance in found] == sorted(distance for _, distance in found)
    assert found[1][1] == pytest.approx(model.distance(images[2], images[found[1][0]]))
    assert len(model.nearest(images[0], images, k=50)) == 6
    assert model.training, "the mode is as before"
    with pytest.raises(ValueError, match=r"gallery=\[\]: expected at least one image"):
        model.nearest(images[0], [])
    with pytest.raises(ValueError, match="k=0: expected at least 1"):
        model.nearest(images[0], images, k=0)
    with pytest.raises(ValueError, match="expected a model that was validated"):
        model.alike(images[0], images[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_dim": 0}, "out_dim=0: expected at least 1, or null for the encoder's own features"),
        ({"representation": "h"}, "representation='h': expected 'encoder' or 'embedding'"),
        ({"loss": {"name": "TripletMargin"}}, "loss.name='TripletMargin': .* did you mean 'TripletMarginLoss'?"),
        ({"loss": {}}, "loss.name=None: expected a class of pytorch_metric_learning.losses"),
        ({"loss": {"name": "TripletMarginLoss", "m": 1}}, "loss.m: TripletMarginLoss has no such argument; .*margin"),
        ({"miner": {"name": "HardMiner"}}, "miner.name='HardMiner': .* did you mean"),
        ({"distance": {"name": "Euclid"}}, "distance.name='Euclid'"),
        ({"reducer": {"name": "Mean"}}, "reducer.name='Mean'"),
        ({"miner": {"name": "DistanceWeightedMiner"}, "distance": {"name": "DotProductSimilarity"}}, "miner={"),
        ({"miner": {"name": "DistanceWeightedMiner"}}, "miner={.*power"),
        ({"loss": SIAMESE, "distance": {"name": "CosineSimilarity"}}, "expected a distance of power 1"),
        *(
            (
                {"loss": {"name": "ClassificationLoss"}, argument: {"name": name}},
                f"{argument}={{.*expected null with Cl",
            )
            for argument, name in (
                ("miner", "BatchHardMiner"),
                ("distance", "LpDistance"),
                ("reducer", "MeanReducer"),
            )
        ),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_explicit_groups_have_no_miner(mistake: Callable[..., str]) -> None:
    options = ["--data.samples_per_class", "null", "--data.groups", "triplets"]
    miner = ["--model.miner", "{name: BatchHardMiner}"]
    message = mistake("fit", *CONFIG, *SMALL, *options, *miner)
    assert message == "miner=BatchHardMiner: expected null, because data.groups says what is compared"
    message = mistake("fit", *CONFIG, *SMALL, *options, *NO_DISTANCE, "--model.loss", "{name: ClassificationLoss}")
    assert message.startswith("loss.name='ClassificationLoss': expected a loss of pairs or triplets")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["TripletMarginLoss", "SupConLoss", "NTXentLoss", "MultiSimilarityLoss"])
@pytest.mark.parametrize("in_a_file", [True, False])
def test_pairs_are_for_losses_of_single_pairs(
    loss: str, in_a_file: bool, mistake: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "pairs.csv").write_text("anchor,other,same\n0,1,1\n0,2,0\n")
    options = ["--data.samples_per_class", "null", "--data.groups", tmp_path / "pairs.csv" if in_a_file else "pairs"]
    message = mistake("fit", *CONFIG, *SMALL, *options, "--model.loss", f"{{name: {loss}}}", *NO_DISTANCE)
    expected = "expected 'SiameseLoss' or 'ContrastiveLoss', because data.groups are pairs"
    assert message == f"loss.name={loss!r}: {expected}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "loss"),
    [
        ("pairs", "SiameseLoss"),
        ("pairs", "ContrastiveLoss"),
        ("triplets", "TripletMarginLoss"),
        ("triplets", "SiameseLoss"),
    ],
)
def test_explicit_groups_train(groups: str, loss: str, fit: Callable[..., CLI]) -> None:
    options = ["--data.samples_per_class", "null", "--data.groups", groups, "--model.loss", f"{{name: {loss}}}"]
    cli = fit(*CONFIG, *SMALL, *options, *NO_DISTANCE, "--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1")
    with cli.folder.metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 3
    assert min(losses) > 0.01


def test_a_checkpoint_knows_its_loss(fit: Callable[..., CLI]) -> None:
    loss = ["--model.loss", "{name: ClassificationLoss}", "--model.normalize", "false", *NO_DISTANCE]
    cli = fit(*CONFIG, *SMALL, *loss, "--trainer.max_steps", "2", "--test_after_fit", "false")
    checkpoint = str(cli.folder.recovery_checkpoints()[0])
    loaded = MetricLearning.load_from_checkpoint(checkpoint, weights_only=True)
    assert torch.equal(loaded.loss.classifier.weight, cli.model.loss.classifier.weight)
    other = build(["test", "--ckpt_path", checkpoint, "--model.representation", "embedding"])
    other.execute()
    assert other.model.encode(torch.rand(2, 1, 8, 8)).shape == (2, 8)
