"""Text to image: the losses, the two networks' steps, and what is measured of the images."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from datamodules.captions import CaptionBatch, Captions, EasyVQACaptions, Scenes
from datamodules.parts.scene_grammar import ATTRIBUTES
from experiments.callbacks.global_batch import batch_size_of
from lit_models.captioner import Captioner
from lit_models.figures.text_to_image import exchanged, illustrate, marked
from lit_models.networks.attribute_classifier import AttributeClassifier, fit_classifier
from lit_models.networks.gan_networks import Discriminator, Generator
from lit_models.networks.joint_embedding import JointEmbedding, fit_joint_embedding
from lit_models.parts.optim import WarmupCosine
from lit_models.scores.generation import GenerationScores, agreeing, frechet_distance
from lit_models.text_to_image import (
    TextToImageGAN,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)


def scenes(**options: Any) -> Scenes:
    sizes = {"num_train": 24, "num_val": 8, "num_test": 8, "min_objects": 1, "max_objects": 1}
    return Scenes(**{"batch_size": 8, "captions_per_image": 1, **sizes, **options})


def make(data: Captions | None = None, **options: Any) -> TextToImageGAN:
    data = data or scenes()
    torch.manual_seed(0)
    small: dict[str, Any] = {"embedding_dim": 6, "text_dim": 8, "condition_dim": 4, "noise_dim": 5, "width": 2}
    return TextToImageGAN(
        data.vocab,
        data.attributes,
        data.image_shape,
        **{**small, "classifier_epochs": 1, "embedding_epochs": 1, **options},
    )


def lively(model: TextToImageGAN) -> TextToImageGAN:
    """With weights so large that other words and other noise give clearly other images."""
    torch.manual_seed(1)
    for module in [model.average.distribution, *model.average.body, *model.embedding.text.modules()]:
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.5)
    return model


def train(model: TextToImageGAN, data: Captions, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        **{**quiet, "enable_checkpointing": False, "limit_val_batches": 0, "max_epochs": 1, **options},
        callbacks=list(callbacks),
    )
    trainer.fit(model, datamodule=data)
    return trainer


def batch_of(data: Scenes, part: str = "train") -> CaptionBatch:
    data.setup()
    batch = next(iter(data.loader(part)))
    return batch._replace(images=batch.images.float() / 255)


# The formulas.


def test_losses_are_those_of_the_paper() -> None:
    real, wrong, fake = torch.randn(3, 5, dtype=torch.double)
    s_r, s_w, s_f = real.sigmoid(), wrong.sigmoid(), fake.sigmoid()
    expected = -(s_r.log() + ((1 - s_w).log() + (1 - s_f).log()) / 2)
    torch.testing.assert_close(discriminator_loss(real, wrong, fake), expected)
    torch.testing.assert_close(generator_loss(fake), -s_f.log())
    several = torch.stack([wrong, -wrong])
    mean = (discriminator_loss(real, wrong, fake) + discriminator_loss(real, -wrong, fake)) / 2
    torch.testing.assert_close(discriminator_loss(real, several, fake), mean)


def test_losses_are_finite_however_sure_the_discriminator_is() -> None:
    sure = torch.tensor([-1e4, 1e4])
    assert discriminator_loss(sure, sure, sure).isfinite().all()
    assert generator_loss(sure).isfinite().all()


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    weight = torch.randn(3, 4, 4)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    penalty = gradient_penalty((images * weight).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, (0.5 * weight.square().sum()).expand(2))


def test_conditioning_augmentation_spreads_the_sentence() -> None:
    torch.manual_seed(0)
    generator = Generator([3, 8, 8], text_dim=4, condition_dim=3, noise_dim=2, width=4).eval()
    mean, log_var = generator.condition(torch.randn(1, 4))
    z = torch.randn(2, 5)
    z[1, :2] = z[0, :2]  # the same z, another ε
    spread = generator(mean.expand(2, -1), log_var.expand(2, -1), z)
    assert not torch.allclose(spread[0], spread[1])
    narrow = generator(mean.expand(2, -1), torch.full((2, 3), -torch.inf), z)
    torch.testing.assert_close(narrow[0], narrow[1])


# The networks.


@pytest.mark.parametrize("side", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_square_of_a_power_of_two(side: int, channels: int) -> None:
    shape = [channels, side, side]
    generator = Generator(shape, text_dim=4, condition_dim=3, noise_dim=2, width=2)
    images = generator(*generator.condition(torch.randn(2, 4)), torch.randn(2, 5))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert Discriminator(shape, 4, 3, 2, spectral=False)(images, torch.randn(2, 4)).shape == (2,)


@pytest.mark.parametrize("shape", [[3, 4, 4], [3, 48, 48], [3, 64, 32], [3, 0, 0]])
def test_other_shapes_are_refused(shape: list[int]) -> None:
    for network in (Generator, Discriminator):
        with pytest.raises(ValueError, match=r"image_shape=.*expected a square of side 8"):
            network(shape, 4, 3, 2, False)


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator([3, 16, 16], 4, 3, 2, spectral=True)
    images, text = torch.rand(4, 3, 16, 16), torch.randn(4, 4)
    for _ in range(50):  # of the power iteration
        discriminator(images, text)
    layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert not [m for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, rel=1e-3)


# The step.


class Gradients(Callback):
    """What each optimizer sees, by parameter."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        of_it = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {name: p.grad.clone() for name, p in pl_module.named_parameters() if id(p) in of_it}
        self.seen.append(named)


@pytest.mark.parametrize(("r1_weight", "wrong_sentences"), [(0.0, 1), (10.0, 1), (0.0, 3)])
def test_each_loss_trains_its_own_network(r1_weight: float, wrong_sentences: int) -> None:
    """The gradients of one step against those of two passes, each of one loss on copies of both networks."""
    data = scenes(num_train=8)
    options: dict[str, Any] = {"r1_weight": r1_weight, "kl_weight": 0.3, "wrong_sentences": wrong_sentences}
    options["matching_weight"] = 0.2
    model = make(data, **options)
    watch = Gradients()
    steps: list[tuple[CaptionBatch, int]] = []
    copies: list[TextToImageGAN] = []
    original = model.training_step

    def spied(batch: CaptionBatch, batch_idx: int) -> Any:
        steps.append((batch, batch_idx))
        twins = [make(data, **options) for _ in range(2)]
        for twin in twins:
            twin.load_state_dict(model.state_dict())
        copies.extend(twins)
        return original(batch, batch_idx)

    model.training_step = spied  # type: ignore[method-assign]
    train(model, data, watch)

    batch, batch_idx = steps[0]
    x = (2 * batch.images - 1).requires_grad_()
    z = model.noise(len(x), model.seed, "noise", 0, batch_idx)
    for twin, part in zip(copies, ("discriminator", "generator"), strict=True):
        text = twin.embedding.text(batch.captions, batch.lengths)
        mean, log_var = twin.generator.condition(text)
        fake = twin.generator(mean, log_var, z)
        real = twin.discriminator(x, text)
        if part == "generator":
            loss = generator_loss(twin.discriminator(fake, text)).mean()
            posterior = Normal(mean, (0.5 * log_var).exp())
            loss = loss + 0.3 * kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
            loss = loss + 0.2 * twin.embedding.matching((fake + 1) / 2, text, torch.arange(len(text))).mean()
        else:
            shifted = [torch.cat([text[-i:], text[:-i]]) for i in range(1, wrong_sentences + 1)]
            wrong = torch.stack([twin.discriminator(x, other) for other in shifted])
            loss = discriminator_loss(real, wrong, twin.discriminator(fake.detach(), text)).mean()
            if r1_weight:
                loss = loss + r1_weight * gradient_penalty(twin.discriminator(x, text), x).mean()
        loss.backward()
        expected = {n: p.grad for n, p in twin.named_parameters() if n.startswith(part)}
        (found,) = [seen for seen in watch.seen if seen.keys() == expected.keys()]
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_batch_is_one_step_though_two_optimizers_move() -> None:
    data = scenes()
    model = make(data, scheduler=lambda optimizer: WarmupCosine(optimizer))
    before = deepcopy(model.state_dict())
    trainer = train(model, data)
    assert trainer.global_step == 3
    assert [o.state[o.param_groups[0]["params"][0]]["step"].item() for o in trainer.optimizers] == [3, 3]
    assert [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs] == [3, 3]
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0, 0], abs=1e-9)
    for network in ("generator", "discriminator", "average"):
        key = next(k for k, v in before.items() if k.startswith(network) and v.dim() > 1)
        assert not torch.equal(before[key], model.state_dict()[key]), network


def test_schedules_by_epochs_go_by_epochs() -> None:
    data = scenes()
    model = make(data, scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
    trainer = train(model, data, max_epochs=2)
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([5e-5, 5e-5])


def test_accumulation_waits_and_the_last_batch_of_an_epoch_does_not() -> None:
    data = scenes()  # three batches
    model = make(data, accumulate_grad_batches=2, scheduler=lambda optimizer: WarmupCosine(optimizer))
    moved: list[bool] = []
    weight = model.generator.body[0].weight

    class Watch(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            self.before = weight.detach().clone()

        def on_train_batch_end(self, *args: Any) -> None:
            moved.append(not torch.equal(self.before, weight))

    trainer = train(model, data, Watch())
    assert moved == [False, True, True]
    assert trainer.global_step == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9), "the schedule ends with the run"


@pytest.mark.parametrize(("options", "steps"), [({"max_epochs": 2}, 4), ({"max_epochs": 9, "max_steps": 3}, 3)])
def test_a_schedule_is_as_long_as_the_run_where_gradients_are_accumulated(options: dict[str, int], steps: int) -> None:
    data = scenes()  # three batches, of which the third is a step by itself
    model = make(data, accumulate_grad_batches=2, scheduler=lambda optimizer: WarmupCosine(optimizer))
    rates: list[float] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = train(model, data, Watch(), **options)
    assert trainer.global_step == steps
    expected = [1e-4 * (1 + math.cos(math.pi * step / steps)) for step in range(steps) for _ in range(2)]
    assert rates == pytest.approx(expected)
    assert batch_size_of(trainer)["global"] == 16


def test_gradients_are_clipped_by_network() -> None:
    data = scenes(num_train=8)
    model, norms = make(data, gradient_clip_norm=1e-3), []

    class Spied(torch.optim.Adam):
        def zero_grad(self, set_to_none: bool = True) -> None:
            norms.append(float(nn.utils.get_total_norm(p.grad for g in self.param_groups for p in g["params"])))
            super().zero_grad(set_to_none)

    model.optimizer = Spied
    train(model, data)
    assert norms == pytest.approx([1e-3, 1e-3], rel=0.01)


def test_the_average_follows_the_generator_and_its_statistics() -> None:
    data = scenes()
    model = make(data, ema_decay=0.9)
    expected = {k: v.double() for k, v in model.generator.state_dict().items()}

    class Follow(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            for key, value in model.generator.state_dict().items():
                expected[key] = 0.9 * expected[key] + 0.1 * value.double()

    train(model, data, Follow())
    for key, value in model.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6, msg=key)


def test_what_is_drawn_is_of_the_average() -> None:
    model = lively(make())
    before = model.generate("a red circle", seed=0)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(1)
    assert torch.equal(model.generate("a red circle", seed=0), before)
    with torch.no_grad():
        model.average.body[-2].bias.add_(1)
    assert not torch.allclose(model.generate("a red circle", seed=0), before)


def test_half_precision_with_one_scale_is_refused() -> None:
    data = scenes(num_train=8)

    class Says16(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            trainer.precision_plugin.precision = "16-mixed"  # type: ignore[misc]

    with pytest.raises(ValueError, match=r"trainer.precision='16-mixed': expected '32-true'"):
        train(make(data), data, Says16())


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"captions_per_image": None}, {}, "captions_per_image=None: expected 1"),
        ({"max_objects": 2}, {}, "several objects: expected one in each"),
        ({}, {"wrong_sentences": 8}, "wrong_sentences=8: expected less than the global batch of 8"),
        ({}, {"captioner": "no.ckpt"}, "captioner=no.ckpt: no such file"),
        ({}, {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, "scheduler ReduceLROnPlateau: expected one"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_training(
    data: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    source = scenes(**data)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        train(make(source, **options), source)


@pytest.mark.slow
def test_easy_vqa_has_no_sizes_and_is_trained_as_well() -> None:
    data = EasyVQACaptions(batch_size=8, captions_per_image=1)
    model = make(data)
    trainer = train(model, data, limit_train_batches=2, limit_val_batches=1)
    assert "val/attribute_accuracy" in trainer.callback_metrics
    row = [-1] * len(model.attributes)
    row[list(model.attributes).index("shape")] = model.attributes["shape"].index("rectangle")
    assert agreeing([["a black rectangle"]], torch.tensor([row]), model.attributes).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": {}, "captioner": "x.ckpt"}, "captioner=x.ckpt: expected data with attributes"),
        ({"width": 0}, "width=0: expected at least 1"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0: expected at least 0"),
        ({"kl_weight": math.nan}, "kl_weight=nan: expected at least 0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: expected a number in [0, 1)"),
        ({"gradient_clip_norm": 0.0}, "gradient_clip_norm=0.0: expected more than 0, or null for no limit"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0: expected at least 1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TextToImageGAN(**{"vocab": ["<pad>", "<unk>", "a"], "attributes": ATTRIBUTES, **options})


# The classifier.


@pytest.mark.slow
def test_the_classifier_learns_and_disturbs_nothing() -> None:
    data = scenes(num_train=600, num_val=200)
    data.setup()
    state = torch.get_rng_state()
    makers = []
    for _ in range(2):
        torch.manual_seed(len(makers))  # whatever its first weights are
        classifier = AttributeClassifier(data.image_shape, {name: len(v) for name, v in data.attributes.items()})
        torch.set_rng_state(state)
        fit_classifier(classifier, data.loader("train"), 8, torch.device("cpu"), batch_size=16)
        makers.append(classifier)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(makers[0].state_dict().values(), makers[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    batches = list(data.loader("val"))
    images = torch.cat([b.images for b in batches]).float() / 255
    truth = torch.cat([b.objects[:, 0, :4] for b in batches])
    logits, features = makers[0](images)
    right = torch.stack([of.argmax(1) for of in logits], 1) == truth
    assert features.shape == (200, 128)
    assert right[:, 1].float().mean() > 0.9, "colors"
    assert not any(p.requires_grad for p in makers[0].parameters())


@pytest.mark.slow
def test_the_embedding_learns_which_sentence_is_whose() -> None:
    data = scenes(num_train=600)
    data.setup()
    torch.manual_seed(0)
    embedding = JointEmbedding(len(data.vocab), 16, 32, data.image_shape)
    batch = data.tables["train"][torch.arange(32)]
    first = torch.searchsorted(batch.image_index, torch.arange(32))

    def nats() -> float:
        sentences = embedding.text(batch.captions[first], batch.lengths[first])
        return float(embedding.matching(batch.images.float() / 255, sentences, torch.arange(32)).mean())

    before, state = nats(), torch.get_rng_state()
    fit_joint_embedding(embedding, data.loader("train"), 4, torch.device("cpu"), batch_size=32)
    assert before == pytest.approx(math.log(32), rel=0.3)
    assert nats() < before - 1
    assert torch.equal(torch.get_rng_state(), state)
    assert embedding.trained
    assert not any(p.requires_grad for p in embedding.parameters())


def test_matching_is_the_cross_entropy_of_cosines() -> None:
    torch.manual_seed(0)
    embedding = JointEmbedding(5, 4, 6, [3, 16, 16])
    images, sentences = torch.rand(2, 3, 16, 16), torch.randn(4, 6)
    found = embedding.matching(images, sentences, torch.tensor([2, 0]))
    encoded = embedding.image(images)
    for row, own in enumerate((2, 0)):
        cosines = [torch.cosine_similarity(encoded[row], sentence, 0) for sentence in sentences]
        p = (10 * torch.stack(cosines)).exp()
        torch.testing.assert_close(found[row], -(p[own] / p.sum()).log())


def test_what_was_trained_before_is_kept(tmp_path: Path) -> None:
    data = scenes(num_train=8)
    model = make(data)
    trainer = train(model, data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = make(data)
    again.load_state_dict(torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"])
    marked = again.classifier.heads[0].bias, again.embedding.text.embedding.weight
    with torch.no_grad():
        for parameter in marked:
            parameter.fill_(7)
    train(again, data)
    assert all((parameter == 7).all() for parameter in marked)


# What is measured.


def scored(**changed: Tensor) -> dict[str, float]:
    """Two real images and three sentences, of attributes with two and three values."""
    torch.manual_seed(0)
    given = {
        "objects": torch.tensor([[0, 1], [1, 2]]),
        "judged_real": torch.tensor([[0, 1], [0, 2]]),
        "judged_fake": torch.tensor([[0, 1], [1, 1], [1, 2]]),
        "stated": torch.tensor([[0, 1], [0, -1], [1, -1]]),
        "image_index": torch.tensor([0, 0, 1]),
        "unseen": torch.tensor([False, True]),
        "real_features": torch.randn(2, 3),
        "fake_features": torch.randn(3, 3),
    }
    scores = GenerationScores({"shape": ["circle", "square"], "color": ["red", "green", "blue"]})
    scores.update(**{**given, **changed})
    return {name: float(value) for name, value in scores.compute().items()}


def test_accuracies_by_hand() -> None:
    found = scored()
    assert found["attribute_accuracy"] == pytest.approx(3 / 4)
    assert found["attribute_accuracy_shape"] == pytest.approx(2 / 3)
    assert found["attribute_accuracy_color"] == pytest.approx(1)
    assert found["all_attributes"] == pytest.approx(2 / 3)
    assert found["classifier_accuracy"] == pytest.approx(3 / 4)
    assert found["attribute_accuracy_seen"] == pytest.approx(2 / 3)
    assert found["attribute_accuracy_unseen"] == pytest.approx(1)
    assert found["gap_seen_unseen"] == pytest.approx(-1 / 3)
    assert found["harmonic_mean"] == pytest.approx(2 * (2 / 3) / (5 / 3))
    assert found["classifier_accuracy_unseen"] == pytest.approx(1 / 2)
    assert found["mode_coverage"] == pytest.approx(1)
    # Open: the second and third sentence's color, seen as green and blue; of their real images also green and blue.
    assert found["open_entropy_ratio"] == pytest.approx(1)


def test_one_image_again_and_again_is_noticed() -> None:
    found = scored(judged_fake=torch.tensor([[0, 1], [0, 1], [0, 1]]))
    assert found["mode_coverage"] == pytest.approx(1 / 2)
    assert found["open_entropy_ratio"] == pytest.approx(0)


def test_frechet_distance_of_shifted_and_stretched_features() -> None:
    torch.manual_seed(0)
    a = torch.randn(400, 3, dtype=torch.double)
    assert float(frechet_distance(a, a)) == pytest.approx(0, abs=1e-9)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
    assert float(frechet_distance(a, a + shift)) == pytest.approx(float(shift.square().sum()))
    stretched = 2 * (a - a.mean(0)) + a.mean(0)
    assert float(frechet_distance(a, stretched)) == pytest.approx(float(torch.cov(a.T).trace()))


def test_frechet_distance_is_scipys() -> None:
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    a, b = torch.randn(60, 5).double(), (torch.randn(80, 5) @ torch.randn(5, 5)).double()
    s, t = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + (s + t - 2 * sqrtm(s @ t).real).trace()
    assert float(frechet_distance(a, b)) == pytest.approx(expected, rel=1e-6)
    assert float(frechet_distance(b, a)) == pytest.approx(expected, rel=1e-6)


def test_the_captioner_is_asked_what_the_sentence_says() -> None:
    model = make()
    names = list(model.attributes)
    row = [-1] * len(names)
    row[names.index("shape")], row[names.index("color")] = 0, 0  # circle, red
    stated = torch.tensor([row, row])
    found = agreeing([["a red circle"], ["a blue circle at the top left"]], stated, model.attributes)
    assert sorted(found.tolist()) == [0, 1, 1, 1], "what only one of both says does not count"


# Use.


def test_generate() -> None:
    model = lively(make())
    one = model.generate("a red circle", n=3, seed=1)
    assert one.shape == (3, 3, 64, 64)
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    assert not torch.allclose(one[0], one[1], atol=0.01)
    torch.testing.assert_close(model.generate("a red circle", n=3, seed=1), one)
    both = model.generate(["a red circle", "a blue square"], n=3, seed=1)
    torch.testing.assert_close(both[0], one)
    assert not torch.allclose(both[0], both[1], atol=0.01)
    torch.testing.assert_close(both[1], model.generate("a blue square", n=3, seed=1))
    assert model.training, "the mode stays as it was"


def test_words_that_are_not_known_are_named() -> None:
    model = lively(make())
    with pytest.warns(UserWarning, match="an unknown word") as warned:
        strange = model.generate("a turquoise circel square", seed=0)
    assert [str(warning.message) for warning in warned] == [
        "text='a turquoise circel square': drawn without 'turquoise', an unknown word",
        "text='a turquoise circel square': drawn without 'circel', an unknown word; did you mean 'circle'?",
    ]
    torch.testing.assert_close(strange, model.generate("a square", seed=0))
    with pytest.raises(ValueError, match=r"text='zzz yyy': expected a sentence with at least one of the"):
        model.generate("zzz yyy")
    with pytest.raises(ValueError, match="text=''"):
        model.generate("")
    with pytest.raises(ValueError, match="n=0: expected at least 1"):
        model.generate("a red circle", n=0)


def test_interpolation_ends_at_both_sentences() -> None:
    model = lively(make())
    way = model.interpolate("a red circle", "a blue square", steps=5, seed=3)
    ends = model.generate(["a red circle", "a blue square"], seed=3)[:, 0]
    torch.testing.assert_close(way[[0, -1]], ends, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="steps=1: expected at least 2"):
        model.interpolate("a", "a", steps=1)


def test_a_captioner_judges_the_test(tmp_path: Path) -> None:
    data = scenes()
    arguments = {"vocab": data.vocab, "longest": 12, "channels": [2, 2], "hidden_dim": 4, "attributes": data.attributes}
    content = {
        "state_dict": Captioner(**arguments).state_dict(),  # type: ignore[arg-type]
        "hyper_parameters": {**arguments, "_class_path": "lit_models.captioner.Captioner"},
    }
    torch.save(content, tmp_path / "captioner.ckpt")
    model = make(data, captioner=str(tmp_path / "captioner.ckpt"))
    trainer = train(model, data, limit_val_batches=1)
    assert "val/attribute_accuracy" in trainer.callback_metrics
    assert not any("captioner" in name for name in trainer.callback_metrics), "not in validation"
    trainer.test(model, datamodule=data, verbose=False)
    assert "test/captioner_agreement" in trainer.callback_metrics
    assert not any("captioner" in name for name in model.state_dict())


def test_one_word_is_exchanged_at_a_time() -> None:
    attributes = {"shape": ["circle", "square"], "color": ["red", "blue"], "place": ["top left", "middle"]}
    found = exchanged("a red circle at the top left", attributes)
    assert found == [
        ["a red circle at the top left", "a red square at the top left"],
        ["a red circle at the top left", "a blue circle at the top left"],
        ["a red circle at the top left", "a red circle at the middle"],
    ]
    assert exchanged("a tiny one", attributes) == []
    assert marked(found[0]) == ["a red circle at the top left", "square"]


def test_figures() -> None:
    data = scenes()
    assert {"samples", "interpolation"} <= illustrate(make(data), batch_of(data, "val")).keys()


def test_predictions_name_what_is_seen() -> None:
    data = scenes()
    model = make(data)
    batch = batch_of(data, "test")
    found = model.predict_step(batch, 0)
    for name, values in model.attributes.items():
        assert set(found[f"{name}_seen"]) <= set(values)
    assert found["row"].tolist() == batch.image_ids[batch.image_index].tolist()
    assert found["image"].shape == (len(batch.captions), *model.image_shape)
    assert found["sentence"][0].split() == [data.vocab[i] for i in batch.captions[0, : batch.lengths[0]]]
