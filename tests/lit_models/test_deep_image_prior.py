"""The deep image prior: its network, the stop, total variation, steps back, images side by side, and its use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from datamodules.degradations import Denoise, Downsample, Identity, Inpaint, SuperResolve, psnr
from datamodules.restoration import Restoration
from experiments.cli import CLI, build
from lit_models import deep_image_prior
from lit_models.deep_image_prior import (
    TRACE,
    DeepImagePrior,
    mesh_grid,
    misfit,
    random_input,
    restore,
)
from lit_models.figures.deep_image_prior import illustrate, learning_curves, restored_page
from lit_models.networks.skip_network import Conv, Norm, SkipNetwork
from lit_models.parts.total_variation import divergence, gradient, total_variation, tv_restore, tv_restore_noisy
from lit_models.scores.moving_variance import SIGNIFICANT, MovingVariance
from tests.conftest import DATA, QUIET, REPOSITORY

SMALL: dict[str, Any] = {"down": (8, 8), "up": (8, 8), "skip": (2, 2), "input_channels": 4}


@pytest.fixture(autouse=True)
def _short_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a validation compares with is solved roughly; only the tests of total variation need its solution."""
    monkeypatch.setattr(deep_image_prior, "tv_restore_noisy", partial(tv_restore_noisy, steps=20))


def make(data: Restoration, seed: int = 0, **options: Any) -> DeepImagePrior:
    torch.manual_seed(seed)
    return DeepImagePrior(data.image_shape, data.num_images, data.copies, **SMALL | options)


def train(model: DeepImagePrior, data: Restoration, epochs: int = 1, **options: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, datamodule=data)
    return trainer


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the network ---------------------------------------------------------------------------------------------------


def full(n: int = 1, **options: Any) -> SkipNetwork:
    torch.manual_seed(0)
    levels = {"down": (128,) * 5, "up": (128,) * 5, "skip": (4,) * 5}
    return SkipNetwork(n, **{"in_channels": 32, "out_channels": 3, **levels, **options})


def test_the_papers_network_has_its_number_of_parameters() -> None:
    assert sum(p.numel() for p in full().parameters()) == 2_217_831
    of_library = full(
        in_channels=1,
        **dict.fromkeys(("down", "up"), (16, 32, 64, 128, 128, 128)),
        skip=(0,) * 6,
        kernel_down=5,
        pointwise_up=False,
    )
    assert sum(p.numel() for p in of_library.parameters()) == 2_996_467


def test_the_papers_network_layer_by_layer() -> None:
    """Against the same layers from torch.nn, put together by hand for one level."""
    torch.manual_seed(0)
    network = SkipNetwork(1, 3, 2, (6,), (5,), (4,))
    convs = [m for m in network.modules() if isinstance(m, Conv)]
    norms = [m for m in network.modules() if isinstance(m, Norm)]
    for norm in norms:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    z = noise(1, 3, 10, 12)

    def conv(i: int, x: Tensor) -> Tensor:
        layer = convs[i]
        made = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            padding=layer.kernel_size[0] // 2,
            padding_mode="reflect",
        )
        made.load_state_dict(layer.state_dict())
        return made(x)

    def norm(i: int, x: Tensor) -> Tensor:
        made = nn.BatchNorm2d(x.shape[1])
        made.load_state_dict(norms[i].state_dict(), strict=False)
        return made(x)

    def act(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2)

    assert [tuple(c.stride) for c in convs] == [(2, 2), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]
    deep = act(norm(1, conv(1, act(norm(0, conv(0, z))))))
    skip = act(norm(2, conv(2, z)))
    up = norm(3, torch.cat([skip, nn.Upsample(scale_factor=2, mode="bilinear")(deep)], 1))
    up = act(norm(5, conv(4, act(norm(4, conv(3, up))))))
    assert torch.allclose(network(z), conv(5, up).sigmoid(), atol=1e-6)


@pytest.mark.parametrize("size", [(33, 33), (64, 64), (65, 63), (37, 100)])
def test_images_of_any_size_keep_theirs(size: tuple[int, int]) -> None:
    network = full(down=(8,) * 5, up=(8,) * 5)
    assert network(noise(1, 32, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("options", [{"skip": (0,) * 5}, {"upsample": "nearest"}, {"skip": (0, 0, 0, 4, 4)}])
def test_other_recipes(options: dict[str, Any]) -> None:
    network = full(down=(8, 8, 8, 12, 16), up=(8, 8, 8, 12, 16), **options)
    assert network(noise(1, 32, 40, 40)).shape == (1, 3, 40, 40)


def test_the_least_size_is_the_least() -> None:
    assert full().least_side() == 33
    assert full(down=(8,) * 3, up=(8,) * 3, skip=(4,) * 3, kernel_down=5).least_side() == 17
    for options, least in (({}, 9), ({"kernel_down": 5}, 17)):
        network = full(**{"down": (8,) * 3, "up": (8,) * 3, "skip": (4,) * 3, **options})
        assert network.least_side() == least
        assert network(noise(1, 32, least, least)).isfinite().all()
        with pytest.raises((ValueError, RuntimeError)):
            network(noise(1, 32, least - 1, least - 1))


def test_images_that_are_too_small_are_one_clear_line() -> None:
    for size in (1, 32):
        with pytest.raises(ValueError, match=rf"an image of {size}×{size}: expected at least 33×33 for the 5 levels"):
            DeepImagePrior([3, size, size])


def test_networks_side_by_side_are_independent() -> None:
    one, two = full(1, down=(8,) * 5, up=(8,) * 5), full(2, down=(8,) * 5, up=(8,) * 5)
    z = noise(2, 32, 40, 40).double()
    one.double()
    two.double()
    for i in range(2):
        with torch.no_grad():
            for a, b in zip(one.parameters(), two.parameters(), strict=True):
                a.copy_(b.unflatten(0, (2, -1))[i])
        assert torch.allclose(one(z[i : i + 1]), two(z)[i : i + 1])
    two(z)[0].sum().backward()
    for parameter in two.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.unflatten(0, (2, -1))[1].any(), "the other image's network is not touched"


def test_each_network_is_initialized_as_if_it_were_alone() -> None:
    weight = full(4).levels[1].down[0].weight.detach()  # type: ignore[index,union-attr]
    bound = 1 / math.sqrt(128 * 9)
    assert float(weight.abs().max()) == pytest.approx(bound, rel=1e-3)


def test_the_norm_is_the_same_in_evaluation() -> None:
    network = full(down=(8,) * 5, up=(8,) * 5)
    z = noise(1, 32, 40, 40)
    assert torch.equal(network(z), network.eval()(z))
    assert not dict(network.named_buffers()), "no running average that lags behind"


def test_inputs() -> None:
    z = random_input(2, 4, (8, 9), seed=3)
    assert z.shape == (2, 4, 8, 9)
    assert float(z.min()) >= 0
    assert 0.099 < float(z.max()) <= 0.1
    assert torch.equal(z, random_input(2, 4, (8, 9), seed=3))
    assert not torch.equal(z[0], z[1])
    grid = mesh_grid(1, (5, 9))
    assert torch.equal(grid[0, 0, 2], torch.linspace(0, 1, 9))
    assert torch.equal(grid[0, 1, :, 3], torch.linspace(0, 1, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "grid"}, "input='grid'"),
        ({"input_channels": 0}, "input_channels=0"),
        ({"copies": 0}, "copies=0: expected at least 1"),
        ({"input_noise": -1}, "input_noise=-1"),
        ({"tv_weight": -1}, "tv_weight=-1"),
        ({"averaging": 1.0}, r"averaging=1\.0"),
        ({"backtrack_db": 0}, "backtrack_db=0"),
        ({"averaging": 0.0}, "averaging=0: expected more, or patience null"),
        ({"patience": 0}, "patience=0"),
        ({"skip": (4,)}, r"skip=\[4\]: expected the same number of levels in each"),
        ({"down": (8, 0)}, r"down=\[8, 0\], .*: expected at least 1 channel in down and up"),
        ({"kernel_up": 2}, "kernel_up=2: expected an odd number"),
        ({"upsample": "cubic"}, "upsample='cubic'"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepImagePrior([3, 16, 16], **SMALL | options)


def test_accumulated_gradients_are_refused() -> None:
    data = Restoration(noise(1, 3, 16, 16), Denoise(25.0), iterations_per_epoch=2)
    with pytest.raises(ValueError, match=r"trainer\.accumulate_grad_batches=2: expected 1"):
        train(make(data), data, accumulate_grad_batches=2)


# ---- the stop ------------------------------------------------------------------------------------------------------


def run_stop(outputs: Tensor, memory: float, patience: int | None) -> tuple[MovingVariance, list[Tensor]]:
    stop = MovingVariance(outputs.shape[1], list(outputs.shape[2:]), memory, patience)
    seen = []
    for step, output in enumerate(outputs):
        stop.update(step, output)
        seen.append(stop.variance.clone())
    return stop, seen


def weighted(outputs: Tensor, memory: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of outputs (T, N, C, H, W) under weights that fade, from all of them at once, in double."""
    outputs = outputs.double()
    weights = memory ** torch.arange(len(outputs) - 1, -1, -1, dtype=torch.double)
    weights = (weights / weights.sum()).view(-1, 1, 1, 1, 1)
    mean = (weights * outputs).sum(0)
    free = 1 - weights.square().sum()
    return mean, (weights * (outputs - mean).square()).sum(0).flatten(1).mean(1) / free


def test_mean_and_variance_are_those_of_all_outputs_under_fading_weights() -> None:
    outputs = noise(60, 2, 3, 4, 5) * torch.linspace(0.2, 1, 60).view(-1, 1, 1, 1, 1)
    stop, seen = run_stop(outputs, 0.8, None)
    for step in range(60):
        if step + 1 < 5:
            assert seen[step].isinf().all()
        else:
            assert torch.allclose(seen[step].double(), weighted(outputs[: step + 1], 0.8)[1], rtol=1e-4)
    assert torch.allclose(stop.mean.double(), weighted(outputs, 0.8)[0], atol=1e-6)
    first, _ = run_stop(outputs[:1], 0.8, None)
    assert torch.equal(first.mean, outputs[0]), "nothing is before the first output"


def test_small_variances_around_a_bright_image_keep_their_digits() -> None:
    draws = torch.randn(3000, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = 0.9 + 1e-5 * draws
    _, seen = run_stop(outputs, 0.99, None)
    assert float(seen[-1]) == pytest.approx(float(weighted(outputs, 0.99)[1]), rel=1e-2)


def valley(lowest: int, length: int, seed: int = 0) -> Tensor:
    """Outputs whose variance is least around a step."""
    scale = (torch.arange(length) - lowest).abs() / length + 0.01
    draws = torch.randn(length, 1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 0.5 + 0.1 * scale.view(-1, 1, 1, 1, 1) * draws


def test_what_is_kept_is_the_mean_at_the_lowest_variance() -> None:
    outputs = valley(40, 100)
    stop, seen = run_stop(outputs, 0.8, patience=20)
    lowest = int(stop.kept_step)
    variances = torch.stack(seen)[:, 0]
    assert 38 <= lowest <= 48
    assert (1 - SIGNIFICANT) * variances[lowest - 1] <= variances.min() <= variances[lowest - 1]
    expected, variance = weighted(outputs[:lowest], 0.8)
    assert torch.allclose(stop.kept.double(), expected, atol=1e-6), "that step's mean, not the last one's"
    assert float(stop.lowest) == pytest.approx(float(variance), rel=1e-4)


def test_a_variance_that_hardly_falls_does_not_move_the_stop() -> None:
    draws = torch.randn(400, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    falling = torch.linspace(0.1, 0.0985, 400).view(-1, 1, 1, 1, 1)
    stop, seen = run_stop(0.5 + falling * draws, 0.9, patience=350)
    assert int(torch.stack(seen)[:, 0].argmin()) > 100
    assert int(stop.kept_step) < 50


def test_the_patience_counts_steps_and_what_comes_after_is_not_looked_at() -> None:
    outputs = torch.cat([valley(40, 80), 0.5 + torch.zeros(40, 1, 1, 8, 8)])  # a still lower variance at the end
    stop, _ = run_stop(outputs[:66], 0.8, patience=20)
    assert bool(stop.stopped()) == (66 - int(stop.kept_step) >= 20)
    stop, _ = run_stop(outputs, 0.8, patience=20)
    assert bool(stop.stopped())
    assert int(stop.kept_step) < 50
    patient, _ = run_stop(outputs, 0.8, patience=60)
    assert int(patient.kept_step) > 80


def test_images_stop_on_their_own() -> None:
    early, late = valley(20, 120, seed=1), valley(90, 120, seed=2)
    stop, _ = run_stop(torch.cat([early, late], 1), 0.8, patience=15)
    assert int(stop.kept_step[0]) < 35
    assert stop.stopped()[0]
    alone, _ = run_stop(late, 0.8, patience=15)
    assert stop.kept_step[1] == alone.kept_step[0]


def test_without_patience_or_enough_outputs_the_newest_mean_is_kept() -> None:
    outputs = valley(10, 30)
    stop, _ = run_stop(outputs, 0.8, None)
    assert torch.equal(stop.kept, stop.mean)
    assert int(stop.kept_step) == 30
    assert not stop.stopped().any()
    short, _ = run_stop(outputs[:4], 0.8, 20)
    assert torch.equal(short.kept, short.mean)
    assert torch.equal(short.newest, outputs[3])


def test_a_checkpoint_of_the_windowed_variance_keeps_its_picture() -> None:
    data = Restoration(noise(1, 3, 16, 16), Denoise(25.0), iterations_per_epoch=2)
    model = make(data)
    train(model, data)
    state = model.state_dict()
    ring = torch.rand(4, *state["stop.kept"].shape)
    old = {name: value for name, value in state.items() if name not in ("stop.mean", "stop.newest", "stop.spread")}
    old |= {"stop.ring": ring, "stop.norms": ring[:, :, 0, 0, 0], "stop.total": ring[0], "average": state["stop.mean"]}
    checkpoint = {"state_dict": old, "restoration": {"trace": model.trace, "good": {}}}
    other = make(data, seed=1)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(other.restored, model.restored)
    assert torch.equal(other.stop.newest, ring[(int(state["stop.steps"]) - 1) % 4])


def test_the_stop_really_stops_training() -> None:
    data = Restoration("china", size=16, iterations_per_epoch=10)
    model = make(data, averaging=0.6, patience=5)
    trainer = train(model, data, epochs=40)
    steps, kept = int(model.stop.steps), int(model.stop.kept_step)
    assert trainer.global_step == steps < 400
    assert steps - kept >= 5
    assert steps - kept < 5 + 10, "looked for once an epoch"
    assert not torch.equal(model.restored, model.average)


def test_the_stop_is_the_one_of_an_algorithm_that_looks_at_every_step() -> None:
    data = Restoration("china", size=16, iterations_per_epoch=10)
    model = make(data, averaging=0.6, patience=5)
    train(model, data, epochs=40)
    lowest, at = math.inf, 0
    for step, variance in enumerate(model.trace[:, 0, TRACE.index("variance")].tolist(), 1):
        if math.isinf(variance):
            at = step
        elif variance < (1 - SIGNIFICANT) * lowest:
            lowest, at = variance, step
        elif step - at >= 5:
            break
    assert int(model.stop.kept_step) == at


# ---- total variation -----------------------------------------------------------------------------------------------


def test_divergence_is_minus_the_gradients_adjoint() -> None:
    x, p = noise(2, 3, 7, 9).double(), noise(2, 2, 3, 7, 9, seed=2).double()
    assert float((gradient(x) * p).sum()) == pytest.approx(-float((x * divergence(p)).sum()))


def test_total_variation_and_its_gradient_where_the_image_is_flat() -> None:
    step = torch.zeros(1, 1, 6, 6)
    step[..., 3:] = 1
    assert float(total_variation(step)) == pytest.approx(6 / 36, abs=1e-3)
    flat = torch.full((1, 3, 6, 6), 0.5, requires_grad=True)
    total_variation(flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def solve(degraded: Tensor, mask: Tensor, operator: Any, radius: float, start: Tensor, steps: int = 800) -> Tensor:
    return tv_restore(
        degraded,
        lambda x: mask * operator(x),
        lambda y: operator.adjoint(mask * y),
        torch.tensor([radius]),
        start,
        steps,
    )


def test_total_variation_denoises_to_the_noise_level() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 8:24, 8:24] = 0.8
    truth += 0.1
    noisy = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    radius = 0.1 * math.sqrt(truth.numel())
    found = solve(noisy, torch.ones(1, 1, 1, 1), Identity(), radius, noisy)
    assert float((found - noisy).norm()) == pytest.approx(radius, rel=0.02), "the discrepancy principle"
    assert float(psnr(found, truth)) > float(psnr(noisy, truth)) + 8
    for blur in (3, 5, 9):  # other images that are as near to the data are not as smooth
        away = F.avg_pool2d(noisy, blur, 1, blur // 2, count_include_pad=False) - noisy
        other = noisy + away * min(1, radius / float(away.norm()))
        assert float(total_variation(found)) < float(total_variation(other))


@pytest.mark.slow
def test_total_variation_meets_measurements_without_noise() -> None:
    truth = F.interpolate(noise(1, 3, 4, 4), (32, 32), mode="nearest")
    for task, generator in ((Inpaint(missing=0.5), 0), (SuperResolve(2), 0)):
        degraded, mask = task.damage(truth[0], torch.Generator().manual_seed(generator))
        degraded, mask = degraded[None], mask[None]
        operator = task.operator(truth.shape)
        trivial = task.trivial(degraded, mask)
        found = solve(degraded, mask, operator, 0.0, trivial, 2000)
        assert float((mask * (operator(found) - degraded)).abs().max()) < 0.02
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert float(psnr(found, truth)) > float(psnr(trivial, truth)) + 1


def known_of(data: Restoration) -> dict[str, Any]:
    """What total variation is given of damaged images."""
    batch, operator, task = data.source, data.operator, data.task
    return {
        "degraded": batch.degraded,
        "measure": lambda x: batch.mask * operator(x),
        "adjoint": lambda y: operator.adjoint(batch.mask * y),
        "start": task.trivial(batch.degraded, batch.mask),
        "steps": 200,
    }


def noisy_solution(data: Restoration, sigma: float | None = None) -> Tensor:
    mask = data.source.mask
    level = data.task.noise_level(data.source.degraded, mask) if sigma is None else torch.tensor([sigma / 255])
    return tv_restore_noisy(mask=mask, noise=level, **known_of(data))


def solution_within(data: Restoration, share: float) -> Tensor:
    """At a share of the radius of the discrepancy principle."""
    batch = data.source
    measurements = batch.mask.expand_as(batch.degraded).flatten(1).sum(1)
    radius = share * data.task.noise_level(batch.degraded, batch.mask) * measurements.sqrt()
    return tv_restore(radius=radius, **known_of(data))


SHARES = [0.3 + 0.05 * i for i in range(17)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "task"),
    [
        ("china", Denoise(25)),
        pytest.param("flower", Denoise(10), marks=pytest.mark.slow),
        pytest.param("grace_hopper", Denoise(50), marks=pytest.mark.slow),
        pytest.param("china", Inpaint(missing=0.3, sigma=20), marks=pytest.mark.slow),
        pytest.param("flower", SuperResolve(2, sigma=10), marks=pytest.mark.slow),
    ],
)
def test_the_radius_is_nearly_the_one_that_the_truth_would_choose(image: str, task: Any) -> None:
    data = Restoration(image, task, size=48)

    def score(found: Tensor) -> float:
        """Of what the measurements are of, which is all that the estimate is about."""
        return float(psnr(data.operator(found), data.operator(data.source.truth)))

    oracle = {share: score(solution_within(data, share)) for share in SHARES}
    assert score(noisy_solution(data)) > max(oracle.values()) - 0.3
    if isinstance(task, Denoise):
        assert max(oracle.values()) > oracle[SHARES[14]] + 0.5, "the discrepancy principle smooths too much"


@pytest.mark.slow
def test_each_image_has_a_radius_of_its_own() -> None:
    both = Restoration(["china", "flower"], Denoise(25), size=32)
    found = noisy_solution(both)
    for place, name in enumerate(("china", "flower")):
        alone = Restoration(name, Denoise(25), size=32)
        alone.source = type(both.source)(*(tensor[place : place + 1] for tensor in both.source))
        assert torch.allclose(noisy_solution(alone)[0], found[place], atol=1e-3)


def test_without_noise_there_is_no_radius_to_choose() -> None:
    data = Restoration("china", Inpaint(missing=0.5), size=24)
    assert torch.equal(noisy_solution(data), solution_within(data, 1.0))


# ---- training ------------------------------------------------------------------------------------------------------


def test_the_misfit_counts_what_is_known() -> None:
    a, b = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=2)
    mask = torch.ones(2, 1, 4, 4)
    mask[:, :, 2:] = 0
    assert torch.allclose(misfit(a, b, torch.ones(2, 1, 1, 1)), (a - b).square().mean((1, 2, 3)))
    assert torch.allclose(misfit(a, b, mask), (a - b)[:, :, :2].square().mean((1, 2, 3)) / 2)


def test_the_inputs_noise_is_a_function_of_seed_and_iteration() -> None:
    data = Restoration("china", size=16)
    model, other = make(data), make(data, seed=1)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(3), model(3))
        assert not torch.equal(model(3), model(4))
        assert not torch.equal(model(3), other(3))
        assert torch.equal(model(), other()), "z itself is in the checkpoint"
        assert torch.equal(make(data, input_noise=0.0)(3), make(data)())


def test_the_network_is_fitted_through_the_operator() -> None:
    data = Restoration("flower", SuperResolve(2), size=32, iterations_per_epoch=60)
    model = make(data, input_noise=0.0)
    train(model, data)
    operator = Downsample(32, 32, 2)
    output = model().detach()
    last = model.trace[-1, 0, TRACE.index("misfit")]
    assert float((operator(output) - data.source.degraded).square().mean()) == pytest.approx(float(last), rel=0.3)
    assert float(last) < 0.2 * float(model.trace[0, 0, TRACE.index("misfit")])


def test_images_side_by_side_are_trained_as_if_they_were_alone() -> None:
    data = Restoration(["china", "flower"], size=16, iterations_per_epoch=8)
    options = {
        "input_noise": 0.0,
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.5),
    }  # which scales matter to
    both = make(data, **options).double()
    data.source = type(data.source)(*(tensor.double() for tensor in data.source))
    alone = Restoration("flower", size=16, iterations_per_epoch=8)
    alone.source = type(data.source)(*(tensor[1:] for tensor in data.source))
    one = make(alone, **options).double()
    with torch.no_grad():
        one.z.copy_(both.z[1:])
        for a, b in zip(one.parameters(), both.parameters(), strict=True):
            a.copy_(b.unflatten(0, (2, -1))[1])
    train(both, data)
    train(one, alone)
    assert torch.allclose(one.restored[0], both.restored[1], atol=1e-7)
    assert not torch.allclose(both.restored[0], both.restored[1])


@pytest.mark.slow
def test_total_variation_beside_the_network() -> None:
    data = Restoration("china", Denoise(50), size=16, iterations_per_epoch=30)
    outputs = []
    for weight in (0.0, 1.0):
        model = make(data, tv_weight=weight, input_noise=0.0)
        train(model, data)
        outputs.append(model().detach())
    plain, smooth = (float(total_variation(output)) for output in outputs)
    assert smooth < 0.5 * plain


# ---- several networks for one image --------------------------------------------------------------------------------


def test_copies_have_weights_and_inputs_of_their_own() -> None:
    data = Restoration(["china", "flower"], size=16, copies=2, iterations_per_epoch=2)
    model = make(data)
    first, second = model.z[0], model.z[1]
    assert not torch.equal(first, second)
    weight = model.network.output.weight.unflatten(0, (4, -1))
    assert not torch.equal(weight[0], weight[1])
    assert not torch.equal(model(3)[0] - model()[0], model(3)[1] - model()[1]), "and noise of their own on the input"
    train(model, data)
    outputs = model.of_each_image(model.stop.kept)
    assert outputs.shape == (2, 2, 3, 16, 16)
    assert not torch.equal(outputs[:, 0], outputs[:, 1])


def test_what_is_restored_is_the_mean_of_copies() -> None:
    data = Restoration(["china", "flower"], Denoise(25), size=16, copies=3, iterations_per_epoch=30)
    model = make(data)
    found = {name: float(value) for name, value in train(model, data).callback_metrics.items()}
    truth = data.source.truth
    kept = model.stop.kept
    assert model.restored.shape == (2, 3, 16, 16)
    assert torch.allclose(model.restored, torch.stack([kept[:3].mean(0), kept[3:].mean(0)]))
    each = psnr(kept, truth)
    assert found["val/psnr_db"] == pytest.approx(float(each.mean()), abs=1e-4)
    assert found["val/psnr_std_db"] == pytest.approx(float((each[:3].std() + each[3:].std()) / 2), abs=1e-4)
    assert found["val/psnr_mean_of_copies_db"] == pytest.approx(
        float(psnr(model.restored, truth[::3]).mean()), abs=1e-4
    )
    assert found["val/psnr_mean_of_copies_db"] > found["val/psnr_db"] + 0.1, "errors of two networks differ"
    assert found["val/psnr_peak_db"] >= found["val/psnr_average_db"]


@pytest.mark.parametrize("task", [Denoise(25), SuperResolve(2)])
def test_mixed_precision_rounds_the_network_alone(task: Any) -> None:
    """In bfloat16 the picture, what it is held against, and what it is measured by are in single precision."""

    def scores(precision: Any) -> tuple[dict[str, float], DeepImagePrior]:
        data = Restoration(noise(1, 3, 16, 16), task, iterations_per_epoch=3)
        model = make(data, patience=None)
        trainer = train(model, data, precision=precision)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}, model

    (exact, _), (mixed, model) = scores("32-true"), scores("bf16-mixed")
    assert model.restored.dtype == torch.float
    newest = model.stop.newest
    assert (newest.bfloat16() != newest).float().mean() > 0.9, "of bfloat16 there are 256 values between ½ and 1"
    for name in ("psnr_trivial_db", "psnr_tv_db", "ssim_trivial", "ssim_tv"):
        assert mixed[f"val/{name}"] == exact[f"val/{name}"]
    assert 0 < abs(mixed["val/psnr_db"] - exact["val/psnr_db"]) < 1


def test_one_network_has_no_mean_of_copies() -> None:
    data = Restoration("china", size=16, iterations_per_epoch=3)
    names = train(make(data), data).callback_metrics
    assert not {"val/psnr_mean_of_copies_db", "val/psnr_std_db"} & set(names)


@pytest.mark.slow
def test_copies_on_the_command_line_and_in_the_checkpoint(fit: Callable[..., CLI], tmp_path: Path) -> None:
    picture = tmp_path / "scan.png"
    Image.fromarray((255 * noise(32, 32, 3)).byte().numpy()).save(picture)
    options = ["-c", CONFIG, "-c", SHRINK, "--data.image", picture, "--data.degraded", "true", "--data.size", "null"]
    options += ["--data.copies", 2, "--data.batch_size", "null"]
    cli = fit(*options, "--trainer.max_epochs", 1, "--test_after_fit", "false")
    checkpoint = cli.folder.recovery_checkpoints()[0]
    loaded = DeepImagePrior.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    assert len(loaded.z) == 2
    assert torch.equal(loaded.restored, loaded.stop.kept.mean(0, keepdim=True))
    build([str(arg) for arg in ["predict", *options, "--ckpt_path", checkpoint]] + QUIET).execute()
    assert sorted(path.name for path in tmp_path.glob("scan*")) == ["scan.png", "scan_restored.png"]
    written = torch.from_numpy(np.asarray(Image.open(tmp_path / "scan_restored.png")).copy()).movedim(-1, 0) / 255
    assert torch.allclose(written, loaded.restored[0], atol=0.6 / 255)


# ---- steps back ----------------------------------------------------------------------------------------------------


def trained(**options: Any) -> tuple[DeepImagePrior, Restoration, Trainer]:
    data = Restoration(["china", "flower"], size=16, iterations_per_epoch=5)
    model = make(data, **options)
    return model, data, train(model, data, epochs=3)


def test_a_fit_that_went_astray_goes_back_to_weights_and_optimizer() -> None:
    model, _, _ = trained()
    optimizer: Any = model.optimizers(use_pl_optimizer=False)
    fit = torch.tensor([0.01, 0.02])
    assert not model._went_back(fit)
    before = [tensor.clone() for tensor in model._state()]
    parts = 4 * len(list(model.network.parameters()))
    assert len(before) == parts + 2, "weights, Adam's two moments and its count, and the average's two"
    with torch.no_grad():
        for tensor in model._state():
            tensor.add_(1)
    assert model._went_back(fit * torch.tensor([4, 1.0])), "6 dB worse, of the first image only"
    for now, then in zip(model._state(), before, strict=True):
        if now.dim():
            first, second = now.unflatten(0, (2, -1))
            assert torch.equal(first, then.unflatten(0, (2, -1))[0])
            assert torch.equal(second, then.unflatten(0, (2, -1))[1] + 1), "the other image goes on"
    # Restored is a copy: what trains on does not change what is remembered.
    parameter = next(model.network.parameters())
    saved = model._good["state"][0].clone()
    with torch.no_grad():
        parameter.add_(1)
    assert torch.equal(model._good["state"][0], saved)
    assert optimizer.state[parameter]["exp_avg"].data_ptr() != model._good["state"][0].data_ptr()


def test_a_little_worse_is_no_reason_and_no_number_is_one() -> None:
    model, _, _ = trained(backtrack_db=5.0)
    fit = torch.tensor([0.01, 0.02])
    assert not model._went_back(fit)
    assert not model._went_back(3 * fit)
    assert model._went_back(torch.tensor([torch.nan, 0.02]))
    off, _, _ = trained(backtrack_db=None)
    assert not off._went_back(fit)
    assert not off._went_back(100 * fit)


@pytest.mark.slow
def test_training_survives_weights_that_explode() -> None:
    data = Restoration("china", size=16, iterations_per_epoch=20)

    class Explodes(DeepImagePrior):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 3:
                with torch.no_grad():
                    self.network.output.bias.add_(50)

    misfits = {}
    for limit in (5.0, None):
        torch.manual_seed(0)
        model = Explodes(data.image_shape, **SMALL, backtrack_db=limit)
        train(model, data, epochs=4)
        misfits[limit] = model.trace[:, 0, TRACE.index("misfit")]
    assert float(misfits[None][60]) > 0.1
    assert float(misfits[5.0][60:].max()) < 2 * float(misfits[5.0][40])


# ---- evaluation and use --------------------------------------------------------------------------------------------


def test_what_validation_reports() -> None:
    data = Restoration("china", size=32, iterations_per_epoch=20)
    model = make(data, averaging=0.7, patience=8)
    trainer = train(model, data, epochs=2)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    truth, images = data.source.truth, model.restored
    assert found["val/psnr_db"] == pytest.approx(float(psnr(images, truth)), abs=1e-4)
    assert found["val/psnr_average_db"] == pytest.approx(float(psnr(model.average, truth)), abs=1e-4)
    assert found["val/psnr_trivial_db"] == pytest.approx(float(psnr(data.source.degraded, truth)), abs=1e-4)
    assert found["val/psnr_peak_db"] == float(model.trace[:, 0, TRACE.index("psnr_average_db")].max())
    assert found["val/psnr_peak_db"] >= found["val/psnr_average_db"]
    assert found["val/psnr_tv_db"] > found["val/psnr_trivial_db"]
    similar = {"": images, "_average": model.average, "_raw": model.stop.newest, "_trivial": data.source.degraded}
    for name, image in similar.items():
        expected = structural_similarity_index_measure(image, truth, data_range=1.0)
        assert found[f"val/ssim{name}"] == pytest.approx(float(expected), abs=1e-4)
    assert found["val/ssim_tv"] > found["val/ssim_trivial"]
    assert found["val/iteration"] == trainer.global_step
    assert found["val/stop_iteration"] == int(model.stop.kept_step)
    assert found["val/variance"] == float(model.stop.lowest)


def test_without_a_ground_truth_there_is_no_figure_that_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray((255 * noise(12, 12, 3)).byte().numpy()).save(tmp_path / "small.png")
    data = Restoration(str(tmp_path / "small.png"), SuperResolve(2), degraded=True, iterations_per_epoch=5)
    model = make(data)
    with monkeypatch.context() as patch:
        patch.delattr(deep_image_prior, "tv_restore_noisy")  # with which nothing would be compared
        trainer = train(model, data)
    names = {name for name in trainer.callback_metrics if name.startswith("val/")}
    assert names == {"val/loss", "val/iteration", "val/stop_iteration", "val/variance"}
    assert set(illustrate(model, next(iter(data.val_dataloader())))) == {"restored", "iterations", "frames"}


def test_figures_of_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    def watched(images: dict[str, Tensor], scores: dict[str, float]) -> Image.Image:
        shown.append(list(images))
        return restored_page(images, scores)

    monkeypatch.setattr("lit_models.figures.deep_image_prior.restored_page", watched)
    for task in (Denoise(25), SuperResolve(2), Inpaint(missing=0.5)):
        data = Restoration("grace_hopper", task, size=32, iterations_per_epoch=12)
        model = make(data, averaging=0.6)
        train(model, data)
        made = illustrate(model, next(iter(data.val_dataloader())))
        assert set(made) == {"restored", "iterations", "frames"}
        restored, frames = shown[-2:]
        assert restored == [
            "measured",
            *(["trivial"] if not isinstance(task, Denoise) else []),
            *("total variation", "deep image prior", "truth"),
        ]
        assert frames == ["iteration 10", "kept"]


@pytest.mark.slow
def test_restoring_in_a_script() -> None:
    truth = F.interpolate(noise(1, 3, 2, 2), (16, 16), mode="bicubic").clamp(0, 1)[0]
    noisy = (truth + 0.15 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    state = torch.get_rng_state()
    restored = restore(noisy, Denoise(None), iterations=150, accelerator="cpu", averaging=0.9, **SMALL)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    assert restored.shape == truth.shape
    assert float(psnr(restored[None], truth[None])) > float(psnr(noisy[None], truth[None])) + 2
    again = restore(noisy, Denoise(None), iterations=150, accelerator="cpu", averaging=0.9, **SMALL)
    assert torch.equal(again, restored)
    several = restore(torch.stack([noisy, noisy]), SuperResolve(2), iterations=3, accelerator="cpu", **SMALL)
    assert several.shape == (2, 3, 32, 32)
    options: dict[str, Any] = {"iterations": 3, "accelerator": "cpu", **SMALL}
    mean = restore(noisy, Denoise(None), copies=2, **options)
    assert mean.shape == truth.shape
    assert not torch.equal(mean, restore(noisy, Denoise(None), **options))


def test_as_many_pictures_come_back_as_are_given(tmp_path: Path) -> None:
    pixels = (255 * noise(20, 24, 3)).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    options: dict[str, Any] = {"iterations": 3, "accelerator": "cpu", **SMALL}
    first = restore(tmp_path / "a.png", **options)
    assert first.shape == (3, 20, 24)
    kinds = [str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, torch.from_numpy(pixels).movedim(-1, 0)]
    several = restore([*kinds, pixels[:18, :, 0]], "denoise", **options)
    assert [tuple(each.shape) for each in several] == [(3, 20, 24)] * 4 + [(1, 18, 24)]
    assert all(torch.equal(each, first) for each in several[:4])
    assert [each.shape for each in restore(tmp_path, Denoise, sigma=25, **options)] == [first.shape]
    assert not torch.equal(restore(pixels, lr=0.1, **options), first)
    assert restore(pixels, size=20, factor=2, **options).shape == (3, 40, 40)
    with pytest.raises(ValueError, match="sigma beside a task that has its own"):
        restore(pixels, Denoise(25), sigma=5, **options)


def test_what_is_restored_is_written_in_its_likeness(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 24), np.uint16)
    Image.fromarray(deep).save(tmp_path / "scan.tif")
    mask = np.full((20, 24), 255, np.uint8)
    mask[3, 4] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options: dict[str, Any] = {"iterations": 3, "accelerator": "cpu", "out": tmp_path / "done", **SMALL}
    restored = restore(tmp_path / "scan.tif", mask=str(tmp_path / "mask.png"), **options)
    written = np.asarray(Image.open(tmp_path / "done" / "scan_restored.tif"))
    assert written.dtype == np.uint16
    assert np.argwhere(written != deep).tolist() == [[3, 4]], "all 16 bits of what is known"
    assert written[3, 4] == round(float(restored[0, 3, 4]) * 65535)


def test_another_image_of_the_same_name_is_refused() -> None:
    data = Restoration("china", size=16, iterations_per_epoch=2)
    model = make(data)
    trainer = train(model, data)
    checkpoint: dict[str, Any] = {"state_dict": {}}
    model.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    model._refuse_other_images()
    trainer.datamodule = Restoration("china", size=16, damage_seed=1)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"\['china'\]: has these names, but is not what the checkpoint has restored"):
        model._refuse_other_images()
    checkpoint["restoration"].pop("digest")  # as older ones have none
    model.on_load_checkpoint(checkpoint)
    model._refuse_other_images()


CONFIG = REPOSITORY / "configs" / "deep_image_prior" / "denoise.yaml"
SHRINK = REPOSITORY / "tests" / "contracts" / "shrink" / "deep_image_prior" / "denoise.yaml"


def test_predict_writes_beside_the_file(fit: Callable[..., CLI], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "ab":
        Image.fromarray((255 * noise(32, 32, 3)).byte().numpy()).save(folder / f"{name}.png")
    options = ["-c", CONFIG, "-c", SHRINK, "--data.image", folder, "--data.degraded", "true", "--data.size", "null"]
    cli = fit(*options, "--trainer.max_epochs", 1, "--test_after_fit", "false")

    checkpoint = cli.folder.recovery_checkpoints()[0]
    for _ in range(2):
        args = ["predict", *options, "--ckpt_path", checkpoint, "--data.image", [f"{folder}/a.png", f"{folder}/b.png"]]
        build([str(arg) for arg in args] + QUIET).execute()
    expected = ["a.png", "a_restored-2.png", "a_restored.png", "b.png", "b_restored-2.png", "b_restored.png"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    written = torch.from_numpy(np.asarray(Image.open(folder / "b_restored.png")).copy()).movedim(-1, 0) / 255
    assert torch.allclose(written, cli.model.restored[1], atol=0.6 / 255)  # type: ignore[operator,union-attr]


@pytest.mark.slow
def test_other_images_than_those_of_the_run_are_refused(fit: Callable[..., CLI], mistake: Callable[..., str]) -> None:
    options = ["-c", CONFIG, "-c", SHRINK, "--data.image", "[china, flower]"]
    cli = fit(*options, "--trainer.max_epochs", 1, "--test_after_fit", "false")
    checkpoint = cli.folder.recovery_checkpoints()[0]
    for subcommand in ("predict", "test", "validate"):
        line = mistake(subcommand, "--ckpt_path", checkpoint, "--data.image", "[flower, china]", *QUIET)
        assert (
            line
            == "image=['flower', 'china']: expected ['china', 'flower'], the images that the checkpoint has restored"
        )


def test_prediction_without_a_run_is_refused(mistake: Callable[..., str]) -> None:
    line = mistake("predict", "-c", CONFIG, "-c", SHRINK, "--trainer.accelerator", "cpu")
    assert line == "nothing is restored yet: expected --ckpt_path with the checkpoint of a run"


def test_mistakes_on_the_command_line_are_one_line(mistake: Callable[..., str]) -> None:
    line = mistake("fit", "-c", CONFIG, "--data.size", "16")
    assert "an image of 16×16: expected at least 17×17 for the 4 levels" in line
    line = mistake("fit", "-c", CONFIG, "-c", SHRINK, "--data.batch_size", "1", "--trainer.accelerator", "cpu")
    assert line.startswith("batch_size=1 on 1 ranks: expected 2")


def picture_of(kind: str, folder: Path) -> list[str]:
    """The options that restore an unsuitable file."""
    file, color = folder / f"{kind}.png", (255 * noise(32, 32, 3)).byte().numpy()
    options = ["--data.image", str(file), "--data.size", "null"]
    if kind == "gif":
        frames = [Image.fromarray(color), Image.fromarray(255 - color)]
        frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    elif kind == "nan":
        Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(file, format="TIFF")
    elif kind == "pixel":
        Image.fromarray(color[:1, :1]).save(file)
    else:
        Image.fromarray(
            np.full((9, 8) if kind == "mask size" else (32, 32), 255 * (kind == "mask size"), np.uint8)
        ).save(file)
        options = ["--data.task", "Inpaint", "--data.task.mask", str(file), "--data.size", "32"]
    return options


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gif", "gif.png: 2 frames, expected a still image"),
        ("nan", "nan.png: cannot be decoded: image with values in nan"),
        ("pixel", "an image of 1×1: expected at least 17×17"),
        ("mask size", "mask size.png: 8×9 pixels, expected the image's 32×32"),
        ("black mask", "black mask.png: all black"),
    ],
)
def test_unsuitable_files_on_the_command_line_are_one_line(
    kind: str, message: str, mistake: Callable[..., str], tmp_path: Path
) -> None:
    assert message in mistake("fit", "-c", CONFIG, *picture_of(kind, tmp_path), "--trainer.accelerator", "cpu")


def test_an_unknown_factor_on_the_command_line_is_one_line(mistake: Callable[..., str]) -> None:
    config = CONFIG.with_name("super_resolve.yaml")
    for factor in ("9", "1"):
        assert f"factor={factor}: expected 2, 3, 4, 5, 6, 7 or 8" in mistake(
            "fit", "-c", config, "--data.task.factor", factor
        )
    assert "factor" in mistake("fit", "-c", config, "--data.task.factor", "four")


RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "f16": (3000, {"input_channels": 32, "input_noise": 0.0333333}),
    "f16_256": (3000, {"input_channels": 32, "input_noise": 0.0333333, "patience": 1000}),
    "butterfly_x4": (2000, {"input_channels": 32, "input_noise": 0.03}),
    "house_inpaint": (11000, {"input_channels": 32, "input_noise": 0.03}),
    "vase_inpaint": (5000, {"skip": [0] * 5, "upsample": "nearest", "input": "meshgrid", "input_noise": 0.03}),
    "kate_inpaint": (6000, {"skip": [128] * 5, "upsample": "nearest", "input_channels": 32, "input_noise": 0.03}),
    "library_inpaint": (
        3000,
        {
            **{"down": [16, 32, 64, 128, 128, 128], "up": [16, 32, 64, 128, 128, 128], "skip": [0] * 6},
            **{"kernel_down": 5, "upsample": "nearest", "pointwise_up": False},
            **{"input_channels": 1, "input_noise": 0.0},
        },
    ),
}
"""iterations, and what differs from five levels of 128 channels with 4 to skip"""


@pytest.mark.parametrize("name", RECIPES)
def test_the_configurations_are_the_papers_recipe(name: str) -> None:
    iterations, options = RECIPES[name]
    config = yaml.safe_load((REPOSITORY / "configs" / "deep_image_prior" / f"{name}.yaml").read_text())
    model = config["model"]["init_args"]
    expected = {"down": [128] * 5, "up": [128] * 5, "skip": [4] * 5, "patience": None} | options
    assert {key: value for key, value in model.items() if key not in ("averaging", "optimizer")} == expected
    assert config["trainer"]["max_epochs"] * 100 == iterations
    rate = model.get("optimizer", {}).get("init_args", {}).get("lr", 0.01)
    assert rate == (0.001 if name == "house_inpaint" else 0.01)


@pytest.mark.skipif(not (DATA / "restoration").is_dir(), reason="needs the papers' images")
@pytest.mark.parametrize(
    ("name", "shape", "missing"),
    [
        ("f16", [3, 512, 512], 0),
        ("f16_256", [3, 256, 256], 0),
        ("butterfly_x4", [3, 256, 256], 0),
        ("house_inpaint", [1, 256, 256], 0.5),
        ("vase_inpaint", [3, 320, 320], 0.027),
        ("kate_inpaint", [3, 512, 512], 0.043),
        ("library_inpaint", [3, 448, 704], 0.186),
    ],
)
def test_the_papers_images_are_found(
    name: str, shape: list[int], missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_DATA", str(DATA))
    data = build(["fit", "-c", str(CONFIG.with_name(f"{name}.yaml")), *QUIET]).datamodule
    assert data.image_shape == shape
    assert float((data.source.mask == 0).float().mean()) == pytest.approx(missing, abs=0.005)
    assert data.degraded == (name == "vase_inpaint")


@pytest.mark.slow
def test_learning_curves_are_of_an_image_of_noise_and_of_what_lies_between() -> None:
    image = torch.linspace(0, 1, 16)[None, None].expand(3, 16, 16)
    curves = learning_curves(image, 150, down=[8, 8], up=[8, 8], skip=[4, 4], input_channels=4)
    assert list(curves) == ["image", "image + noise", "shuffled pixels", "noise"]
    assert {curve.shape for curve in curves.values()} == {(150,)}
    assert curves["image"][-1] < curves["image + noise"][-1] < curves["noise"][-1], "what is natural is learned first"
    assert curves["image"][-1] < curves["shuffled pixels"][-1]
