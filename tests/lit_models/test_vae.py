"""The VAE's mathematics against closed forms, and what a user does with a trained one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from common.randomness import coins_of_samples, normal_of_samples
from datamodules.parts.image_sets import ImageBatch
from experiments.cli import CLI
from lit_models.networks.image_coders import conv_decoder, conv_encoder
from lit_models.parts.latent import slerp
from lit_models.scores.vae import PosteriorScores, mutual_information
from lit_models.vae import VAE, gaussian_kl, importance_bound, kl_weight, log_likelihood, log_normal
from tests.contracts.test_ranks import one_and_two_ranks

SHAPE = [1, 8, 8]


def make(**options: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(**{"image_shape": SHAPE, "network": "mlp", "hidden": [16], "latent_dim": 3, **options})


def images(count: int = 6, shape: list[int] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def batch(count: int = 6) -> ImageBatch:
    return ImageBatch(images(count), torch.zeros(count, dtype=torch.long))


# ---- closed forms --------------------------------------------------------------------------------------------------


def test_normal_and_kl_against_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_var, z = torch.randn(3, 5, 4, dtype=torch.double).unbind()
    posterior = Normal(mean, (0.5 * log_var).exp())
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    assert torch.allclose(log_normal(z, mean, log_var), posterior.log_prob(z))
    assert torch.allclose(gaussian_kl(mean, log_var), kl_divergence(posterior, prior))


def test_bernoulli_likelihood() -> None:
    logits = torch.randn(2, *SHAPE, dtype=torch.double)
    x = (torch.rand(2, *SHAPE) > 0.5).double()
    expected = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(log_likelihood("bernoulli", logits, x, torch.zeros(())), expected)


def test_gaussian_likelihood_is_a_density_with_its_constant() -> None:
    mean, x = torch.rand(2, 2, *SHAPE, dtype=torch.double).unbind()
    scale = torch.tensor(math.log(0.05), dtype=torch.double)
    expected = Normal(mean, 0.05).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(log_likelihood("gaussian", mean, x, scale), expected)


@pytest.mark.parametrize("scale", [0.002, 0.05, 3.0])
def test_discretized_logistic_is_a_distribution_over_256_values(scale: float) -> None:
    values = (torch.arange(256, dtype=torch.double) / 255).view(256, 1, 1, 1)
    for mean in (-0.2, 0.0, 0.31, 1.0):
        log_p = log_likelihood(
            "discretized_logistic",
            torch.full_like(values, mean),
            values,
            torch.tensor(math.log(scale), dtype=torch.double),
        )
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
        assert log_p.isfinite().all(), "far in the tails too"


def test_discretized_logistic_far_off_has_a_finite_gradient() -> None:
    mean = torch.full((1, *SHAPE), 40.0, requires_grad=True)
    log_likelihood("discretized_logistic", mean, torch.full((1, *SHAPE), 0.5), torch.tensor(-5.0)).sum().backward()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()
    assert (mean.grad < 0).all()


def test_the_bounds_of_a_linear_gaussian_model() -> None:
    """z ~ N(0, 1), x|z ~ N(z, 1): log p(x) = log N(x; 0, 2), and the exact posterior is N(x/2, 1/2)."""
    torch.manual_seed(0)
    x = torch.tensor([0.3, -1.2, 2.5], dtype=torch.double)
    truth = Normal(0, math.sqrt(2)).log_prob(x)

    def bound(mean: Tensor, log_var: Tensor, k: int, draws: int) -> Tensor:
        z = mean + (0.5 * log_var).exp() * torch.randn(k, draws, 3, dtype=torch.double)
        log_w = log_normal(x, z) + log_normal(z) - log_normal(z, mean, log_var)
        return importance_bound(log_w)

    exact = bound(x / 2, torch.full((3,), math.log(0.5), dtype=torch.double), 5, 4)
    assert torch.allclose(exact, truth.expand(4, 3)), "from the exact posterior every weight is p(x)"

    off = (x / 2 + 0.5, torch.zeros(3, dtype=torch.double))
    elbo, five, many = (bound(*off, k, 20000 // k).mean(0) for k in (1, 5, 500))
    expected = -0.5 * (math.log(2 * math.pi) + (x - off[0]).square() + 1) - gaussian_kl(*off)
    assert torch.allclose(elbo, expected, atol=0.05), "with one sample it is the ELBO"
    assert (elbo < five).all()
    assert (five < many).all()
    assert torch.allclose(many, truth, atol=0.02)


def test_the_bounds_gradient_weighs_samples_by_their_normalized_weights() -> None:
    log_w = torch.randn(5, 4, dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(importance_bound(log_w).sum(), log_w)
    assert torch.allclose(slope, log_w.softmax(0)), "positive, and they sum to one"


def test_the_warm_up_of_the_kl() -> None:
    weights = [kl_weight(step, 10, 2.0, 0.5, 1) for step in range(11)]
    assert weights == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2, 2])
    cyclical = [kl_weight(step, 8, 1.0, 0.5, 2) for step in range(9)]
    assert cyclical == pytest.approx([0, 0.5, 1, 1, 0, 0.5, 1, 1, 1])
    assert kl_weight(0, 10, 3.0, 0.0, 1) == 3.0


# ---- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
def test_the_loss_is_minus_the_elbo_in_training_and_in_evaluation(likelihood: str) -> None:
    model = make(likelihood=likelihood)
    trained, each = model._objective(batch().images, (0, 1, 2))
    mean, log_var = model.posterior_of(batch().images)
    z = mean + (0.5 * log_var).exp() * model.draws(1, mean, 0, 1, 2)
    elbo = model.log_p_x_given_z(batch().images, z)[0] - gaussian_kl(mean, log_var).sum(1)
    assert torch.allclose(trained["loss"], -elbo.mean())
    assert torch.allclose(each["elbo"], elbo)
    assert torch.allclose(each["reconstruction"] - each["kl"], each["elbo"])
    assert (each["kl"] >= 0).all()
    model.eval()
    assert torch.allclose(model._objective(batch().images, (0, 1, 2))[0]["loss"], trained["loss"])


def test_more_samples_are_a_tighter_bound() -> None:
    torch.manual_seed(0)
    one, many = make(samples=1), make(samples=50)
    many.load_state_dict(one.state_dict())
    x = batch(64).images
    assert many._objective(x, (0,))[1]["bound"].mean() > one._objective(x, (0,))[1]["bound"].mean()


def test_the_gradient_reaches_mean_and_deviation() -> None:
    model = make()
    model._objective(batch().images, (0,))[0]["loss"].backward()
    last = model.encoder[-1][-1]
    assert (last.weight.grad[:3].abs().sum(1) > 0).all()
    assert (last.weight.grad[3:].abs().sum(1) > 0).all()


def test_beta_weighs_the_kl_only() -> None:
    plain, heavy = make(), make(beta=4.0)
    x = batch().images
    a, b = (m._objective(x, (0,))[0] for m in (plain, heavy))
    assert float((b["loss"] - a["loss"]).detach()) == pytest.approx(3 * float(a["kl"]), rel=1e-4)
    assert torch.allclose(a["elbo"], b["elbo"]), "the ELBO is logged without β"


def test_free_bits_stop_the_pull_of_dimensions_that_hold_less() -> None:
    model = make(free_bits=1e6)
    kl = torch.tensor([[0.1, 3.0, 0.5]], requires_grad=True)
    model.free_bits = 0.4
    cost = model._after_free_bits(kl)
    assert float(cost.detach()) == pytest.approx(0.4 + 3.0 + 0.5)
    cost.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0, 1, 1]]


def test_binarization_is_drawn_anew_in_each_step_with_the_brightness_as_probability() -> None:
    model = make(binarize=True)
    gray = torch.full((400, *SHAPE), 0.3)
    first, again, other = model.observed(gray, 1), model.observed(gray, 1), model.observed(gray, 2)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert float(first.mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(model.observed(torch.ones(2, *SHAPE), 1), torch.ones(2, *SHAPE))


def test_noise_belongs_to_the_sample_whichever_rank_has_it(be_rank: Callable[[int, int], None]) -> None:
    model = make(binarize=True)
    whole = model.draws(2, torch.zeros(7, 3), "key")
    pixels = model.observed(images(7), 5)
    for rank in (0, 1):
        be_rank(rank, 2)
        count = len(range(rank, 7, 2))
        assert torch.equal(model.draws(2, torch.zeros(count, 3), "key"), whole[:, rank::2])
        assert torch.equal(model.observed(images(7)[rank::2], 5), pixels[rank::2])


def test_coins_have_their_probabilities_and_no_row_depends_on_how_many_there_are() -> None:
    probabilities = torch.tensor([0.0, 1 / 255, 0.3, 0.5, 254 / 255, 1.0]).repeat(200_000, 1)
    coins = coins_of_samples(probabilities, "key")
    assert set(coins.unique().tolist()) == {0.0, 1.0}
    assert coins.mean(0).tolist() == pytest.approx(probabilities[0].tolist(), abs=0.005)
    assert coins[:, 0].max() == 0, "black stays black"
    assert coins[:, 5].min() == 1, "and white white"
    assert abs(float(torch.corrcoef(coins[:, 2:4].T)[0, 1])) < 0.01, "neighbors are independent"
    assert abs(float(torch.corrcoef(torch.stack([coins[1:, 3], coins[:-1, 3]]))[0, 1])) < 0.01
    for count in (1, 3, 7):
        assert torch.equal(coins_of_samples(probabilities[:count], "key"), coins[:count])


def test_noise_is_standard_normal_and_no_row_depends_on_how_many_there_are() -> None:
    device = torch.device("cpu")
    many = normal_of_samples(4001, 50, "key", device=device)
    assert float(many.mean()) == pytest.approx(0, abs=0.01)
    assert float(many.std()) == pytest.approx(1, abs=0.01)
    for count in (1, 2, 7, 100):
        assert torch.equal(normal_of_samples(count, 50, "key", device=device), many[:count])


@pytest.mark.slow
def test_two_ranks_binarize_and_begin_as_one(tmp_path: Path) -> None:
    options = {"network": "mlp", "hidden": [16], "latent_dim": 3, "binarize": True, "test_samples": 2}
    settings = {
        "model": {"class_path": "lit_models.vae.VAE", "init_args": options},
        "data": {"class_path": "datamodules.images.Digits", "init_args": {"batch_size": 8, "limit": 100}},
        "probe": {"every_n_epochs": None},
    }
    file = tmp_path / "binary.yaml"
    file.write_text(yaml.safe_dump(settings))
    one, two = one_and_two_ranks(["-c", str(file)])
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    for name, expected in one["gradients"].items():
        assert torch.allclose(two["gradients"][name], expected, rtol=1e-5, atol=1e-9), name
    evaluated = {name: value for name, value in one["metrics"].items() if name.startswith("val/")}
    assert {name: two["metrics"][name] for name in evaluated} == pytest.approx(evaluated, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_an_mlp_begins_with_the_mean_image(fit: Callable[..., CLI]) -> None:
    options = (
        *("--model", "lit_models.vae.VAE", "--data", "datamodules.images.Digits", "--model.network", "mlp"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--test_after_fit", "false"),
        *("--model.optimizer", "SGD", "--model.optimizer.lr", "0"),
    )
    cli = fit(*options)
    bias = cli.model.decoder[0][-1].bias
    images = cli.datamodule.part("train").images.float() / 255
    assert torch.allclose(bias.sigmoid(), images.mean(0).flatten().clamp(1e-3, 1 - 1e-3), atol=1e-6)

    with torch.no_grad():
        cli.model.decoder[0][-1].bias.fill_(3)  # of a trained model, which is not overwritten
    cli.model.on_fit_start()
    assert bool((bias == 3).all())


def test_the_test_likelihood_is_the_bound_of_many_samples_in_any_chunks() -> None:
    model = make(test_samples=30).eval()
    x = batch().images
    mean, log_var = model.posterior_of(x)
    log_p = model.log_likelihood_of(x, mean, log_var, 0, chunk=30)
    z = mean + (0.5 * log_var).exp() * model.draws(30, mean, "test_samples", 0, 0)
    log_w = model.log_p_x_given_z(x, z) + log_normal(z).sum(2) - log_normal(z, mean, log_var).sum(2)
    assert torch.allclose(log_p, importance_bound(log_w), atol=1e-4)
    # other chunks draw other numbers, of the same expectation
    model.test_samples = 10_000
    several, one = (model.log_likelihood_of(x, mean, log_var, 0, chunk=chunk) for chunk in (999, 10_000))
    assert torch.allclose(several, one, atol=0.2)


# ---- scores --------------------------------------------------------------------------------------------------------


def test_active_units_and_kl_of_each_dimension() -> None:
    scores = PosteriorScores()
    mean = torch.stack([torch.linspace(-1, 1, 50), torch.linspace(-0.05, 0.05, 50), torch.zeros(50)], 1)
    log_var = torch.zeros(50, 3)
    for part in (slice(0, 30), slice(30, 50)):
        scores.update(mean[part], log_var[part], mean[part])
    found = scores.compute()
    assert found.active_units == 1, "the second varies by less than 0.01"
    assert torch.allclose(found.kl, gaussian_kl(mean, log_var).mean(0))


def test_mutual_information_of_codes_that_tell_all_or_nothing() -> None:
    torch.manual_seed(0)
    apart = 100 * torch.arange(64.0)[:, None]
    narrow = torch.full((64, 1), -4.0)
    noise = (0.5 * narrow).exp() * torch.randn(64, 1)
    assert float(mutual_information(apart, narrow, apart + noise)) == pytest.approx(math.log(64), abs=1e-4)
    same = torch.zeros(64, 1)
    assert float(mutual_information(same, same, torch.randn(64, 1))) == pytest.approx(0, abs=1e-5)


def test_the_scores_do_not_depend_on_which_rank_had_which_images() -> None:
    torch.manual_seed(0)
    mean, log_var, z = torch.randn(3, 5000, 2).unbind()
    one, two = PosteriorScores(), PosteriorScores()
    one.update(mean, log_var, z)
    for rank in (0, 1):  # as they are gathered
        two.update(mean[rank::2], log_var[rank::2], z[rank::2])
    assert float(two.compute().mutual_information) == pytest.approx(float(one.compute().mutual_information), abs=1e-5)


def test_evaluation_counts_images_not_batches() -> None:
    whole, parts = make(free_bits=0.1).eval(), make(free_bits=0.1).eval()
    x, logged = images(9), []
    for model, sizes in ((whole, [9]), (parts, [5, 4])):
        for some in x.split(sizes):
            _, each = model._objective(some, (0,))
            for name in ("elbo", "bound", "reconstruction", "kl"):
                model.means[name].update(torch.full((len(some),), float(len(some))))
            model.posterior.update(each["mean"], each["log_var"], each["z"])
        model.log_dict = lambda scores, logged=logged: logged.append(scores)  # type: ignore[method-assign, assignment]
        model._log_scores("val", ("elbo", "bound", "reconstruction", "kl"))
    assert float(logged[1]["val/reconstruction"]) == pytest.approx((5 * 5 + 4 * 4) / 9)
    kl = [scores["val/loss"] + scores["val/reconstruction"] for scores in logged]
    assert float(kl[1]) == pytest.approx(float(kl[0]), abs=1e-5), "free bits are of the mean over all images"


@pytest.mark.slow
def test_a_collapsed_posterior_is_warned_of(fit: Callable[..., CLI]) -> None:
    with pytest.warns(UserWarning, match="posterior collapse: no dimension of the code depends on the image"):
        fit(
            *("--model", "lit_models.vae.VAE", "--data", "datamodules.images.Digits", "--model.beta", "1e5"),
            *("--model.network", "mlp", "--trainer.max_epochs", "1", "--test_after_fit", "false"),
            *("--model.optimizer", "Adam", "--model.optimizer.lr", "0.05", "--trainer.limit_train_batches", "10"),
        )


# ---- constructor and use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim=0: expected at least 1"),
        ({"samples": 0}, "samples=0: expected at least 1"),
        ({"beta": -1.0}, "beta=-1.0: expected at least 0"),
        ({"free_bits": math.nan}, "free_bits=nan: expected at least 0"),
        ({"warmup": 2.0}, r"warmup=2.0: expected a number in \[0, 1\]"),
        ({"sigma": 0.0}, "sigma=0.0: expected more than 0"),
        (
            {"binarize": True, "likelihood": "gaussian"},
            "likelihood='gaussian' with binarize=true: expected 'bernoulli'",
        ),
        ({"samples": 5, "beta": 2.0}, "samples=5 with beta"),
        ({"network": "cnn"}, "network='cnn': expected 'conv' or 'mlp'"),
        (
            {"likelihood": "gausian"},
            "likelihood='gausian': expected 'bernoulli', 'gaussian' or 'discretized_logistic'; did you",
        ),
        ({"activation": "gelu"}, "activation='gelu': expected 'relu' or 'tanh'"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 32, 32], [1, 28, 28], [2, 13, 21]])
def test_convolutions_come_back_to_any_size(shape: list[int]) -> None:
    code = conv_encoder(shape, (4, 6, 8), 5)(torch.rand(2, *shape))
    assert code.shape == (2, 5)
    assert list(conv_decoder(shape, (4, 6, 8), 5)(code).shape) == [2, *shape]


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
def test_use(network: str, likelihood: str) -> None:
    model = make(network=network, channels=(4, 8), likelihood=likelihood)
    x = images(3)
    assert model.encode(x).shape == (3, 3)
    assert torch.equal(model.encode(x), model.encode(x))
    drawn = model.encode(x, sample=True, seed=1)
    assert torch.equal(drawn, model.encode(x, sample=True, seed=1))
    assert not torch.equal(drawn, model.encode(x))
    for pictures, count in (
        (model.sample(4, seed=0), 4),
        (model.reconstruct(x[0]), 1),
        (model.interpolate(x[0], x[1], 5), 5),
        (model.traverse(x[0], 1), 7),
    ):
        assert list(pictures.shape) == [count, *SHAPE]
        assert float(pictures.min()) >= 0
        assert float(pictures.max()) <= 1
    assert torch.equal(model.sample(4, seed=0), model.sample(4, seed=0))
    ends = model.interpolate(x[0], x[1], 5)
    assert torch.allclose(ends[0], model.reconstruct(x[0])[0], atol=1e-5)
    assert torch.allclose(ends[-1], model.reconstruct(x[1])[0], atol=1e-5)
    assert model.training
    with pytest.raises(ValueError, match="dimension=3: expected 0 to 2"):
        model.traverse(x[0], 3)
    with pytest.raises(ValueError, match="count=0"):
        model.sample(0)


def test_slerp_keeps_to_the_sphere() -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    path = slerp(a, b, 5)
    assert torch.allclose(path.norm(dim=1), torch.full((5,), 3.0))
    assert torch.allclose(path[2], torch.tensor([3.0, 3.0]) / math.sqrt(2))
    assert torch.allclose(slerp(a, 2 * a, 3)[1], torch.tensor([4.5, 0.0])), "the same direction"
    assert slerp(a, -a, 3).isfinite().all(), "opposite directions"
    with pytest.raises(ValueError, match="steps=1"):
        slerp(a, b, 1)
