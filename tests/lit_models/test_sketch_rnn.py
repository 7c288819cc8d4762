"""Sketch-RNN: its mixture against torch.distributions, its conventions, peers' known defects, and what a user does."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from lit_models import sketch_rnn
from lit_models.figures.sketch_rnn import (
    codes_figure,
    drawings_figure,
    illustrate,
    interpolations_figure,
    of_all_classes,
)
from lit_models.networks.mixture_density import Mixture, draw_move, log_density, mixture_size, to_mixture
from lit_models.networks.recurrent import SteppedLSTM, unroll
from lit_models.parts.optim import DecayToFloor, configure_optimizers
from lit_models.parts.sketch import Sketch, to_strokes
from lit_models.sketch_rnn import SketchRNN, kl_cost, kl_weight, nats_of_drawings

KINDS = pytest.mark.parametrize(
    "kind", [{}, {"layer_norm": True}, {"recurrent_dropout": 0.2}, {"latent_dim": 0}], ids=lambda kind: str(kind)
)


class SketchBatch(NamedTuple):
    """As datamodules.sketches has it."""

    strokes: Tensor
    lengths: Tensor
    labels: Tensor


def make(**options: Any) -> SketchRNN:
    torch.manual_seed(0)
    small = {"encoder_hidden": 8, "decoder_hidden": 16, "latent_dim": 3, "components": 4}
    return SketchRNN(**{"scale_factor": 10.0, "longest": 12, **small, **options})


def sketches(lengths: tuple[int, ...] = (5, 1, 8, 2, 11, 3), seed: int = 1) -> list[Sketch]:
    draws = np.random.default_rng(seed)
    return [Sketch(np.column_stack([12 * draws.normal(size=(n, 2)), draws.random(n) < 0.3])) for n in lengths]


def batch(lengths: tuple[int, ...] = (5, 1, 8, 2, 11, 3), seed: int = 1) -> SketchBatch:
    strokes, counts = to_strokes(sketches(lengths, seed), 10.0)
    return SketchBatch(strokes, counts, torch.full((len(lengths),), -1))


def attach(model: SketchRNN, step: int = 0) -> SketchRNN:
    """With as much of a Trainer as a step asks for."""
    model._trainer = SimpleNamespace(global_step=step, current_epoch=0, barebones=False)  # type: ignore[assignment]
    model._fabric = None
    return model


# ---- the mixture ---------------------------------------------------------------------------------------------------


def outputs_of(*shape: int, components: int = 20, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, mixture_size(components), dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_the_density_is_that_of_torch_distributions() -> None:
    outputs = outputs_of(3, 7)
    weights, means, sigmas, tilts, pen = outputs.split([20, 40, 40, 20, 3], -1)
    (sx, sy), rho = sigmas.view(3, 7, 20, 2).exp().unbind(-1), tilts.tanh()
    covariance = torch.stack([sx * sx, rho * sx * sy, rho * sx * sy, sy * sy], -1).view(3, 7, 20, 2, 2)
    expected = MixtureSameFamily(
        Categorical(logits=weights), MultivariateNormal(means.view(3, 7, 20, 2), covariance_matrix=covariance)
    )
    offsets = torch.randn(3, 7, 2, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    mixture = to_mixture(outputs)
    assert torch.allclose(log_density(mixture, offsets), expected.log_prob(offsets), atol=1e-10, rtol=1e-10)
    assert torch.allclose(mixture.log_pen, Categorical(logits=pen).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saturated", [0.0, 50.0, -50.0, 1e4, -1e4])
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
def test_the_gradient_is_finite_at_extremes(dtype: torch.dtype, saturated: float, offset: float) -> None:
    outputs = (outputs_of(4, dtype=torch.float32) + saturated).to(dtype).requires_grad_()
    nats = -log_density(to_mixture(outputs), torch.full((4, 2), offset))
    assert nats.isfinite().all()
    nats.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_a_line_along_the_correlation_is_likely_however_strong_it_is() -> None:
    """ρ → 1, where 1 − ρ² rounds to 0 in single precision: close to the line the density only grows."""
    nats = []
    for tilt in (1.0, 3.0, 5.0, 5.9):
        outputs = torch.zeros(mixture_size(1))
        outputs[5] = tilt
        nats.append(float(-log_density(to_mixture(outputs), torch.tensor([0.7, 0.7]))))
    assert nats == sorted(nats, reverse=True)
    assert nats[-1] < 1.838 - 4


def test_the_likelihood_is_in_single_precision_under_bfloat16() -> None:
    model, data = make(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        mixture, _ = model(data.strokes, torch.zeros(6, 3))
        assert model.head(torch.zeros(1, 16)).dtype == torch.bfloat16, "the network is not"
        each = model._objective(data, 0)
    assert {part.dtype for part in mixture} == {torch.float32}
    assert each["reconstruction"].dtype == torch.float32
    exact = model._objective(data, 0)["reconstruction"]
    assert torch.allclose(each["reconstruction"], exact, rtol=0.05)


def test_the_temperature_multiplies_the_variance_and_divides_the_logits() -> None:
    count = 40000
    outputs = torch.zeros(mixture_size(2))
    outputs[:2] = torch.tensor([1.0, 0.0])  # π̂
    outputs[2:6] = torch.tensor([-50.0, 3.0, 50.0, -3.0])  # μ of either
    outputs[6:10] = torch.tensor([0.5, -0.5, 0.5, -0.5])  # ln σ
    outputs[10:12] = 0.6  # artanh ρ
    outputs[12:] = torch.tensor([1.0, 0.0, -1.0])  # q̂
    mixture = to_mixture(outputs.expand(count, -1))
    for tau in (0.25, 1.0, 2.0):
        moves = draw_move(mixture, tau, torch.Generator().manual_seed(0))
        first = moves[:, 0] < 0
        expected = (torch.tensor([1.0, 0.0]) / tau).softmax(0)
        assert float(first.float().mean()) == pytest.approx(float(expected[0]), abs=0.01)
        pens = (torch.tensor([1.0, 0.0, -1.0]) / tau).softmax(0)
        assert torch.allclose(moves[:, 2:].mean(0), pens, atol=0.01)
        some = moves[first, :2]
        assert torch.allclose(some.mean(0), torch.tensor([-50.0, 3.0]), atol=0.1)
        variances = tau * torch.tensor([math.exp(1.0), math.exp(-1.0)])
        assert torch.allclose(some.var(0), variances, rtol=0.05), "σ²·τ, not σ²·τ²"
        assert float(torch.corrcoef(some.T)[0, 1]) == pytest.approx(math.tanh(0.6), abs=0.02)
    greedy = draw_move(mixture, 0.0)[0]
    assert greedy.tolist() == [-50, 3, 1, 0, 0]


# ---- the objective -------------------------------------------------------------------------------------------------


def test_both_conventions_of_the_reconstruction() -> None:
    """By hand, for each drawing: offsets of its points, the pen there and at its one end row."""
    model, data = make(), batch()
    with torch.no_grad():
        mean, _ = model.posterior_of(data.strokes, data.lengths)
        offsets, pen = model.nats(data.strokes, data.lengths, mean)
    for i, count in enumerate(data.lengths.tolist()):
        rows = data.strokes[i : i + 1, : count + 1]
        start = torch.tensor([[[0.0, 0, 1, 0, 0]]])
        mixture, _ = model(torch.cat([start, rows[:, :-1]], 1), mean[i : i + 1])
        density = log_density(mixture, rows[..., :2])[0, :count]
        states = mixture.log_pen[0, range(count + 1), rows[0, :, 2:].argmax(1)]
        assert torch.allclose(offsets[i], -density.sum(), rtol=1e-5)
        assert torch.allclose(pen[i], -states.sum(), rtol=1e-5)

    each = model._objective(data, 0)
    assert torch.allclose(each["reconstruction"] * 12, each["nats_per_point"] * data.lengths)
    parts = each["offset_reconstruction"] + each["pen_reconstruction"]
    assert torch.allclose(parts, each["reconstruction"])


@KINDS
def test_padding_changes_nothing(kind: dict) -> None:
    model, data = make(**kind).eval(), batch()
    padding = torch.tensor([0.0, 0, 0, 0, 1]).expand(6, 7, 5)
    longer = data._replace(strokes=torch.cat([data.strokes, padding], 1))
    found, expected = model._objective(longer, 0), model._objective(data, 0)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name


@KINDS
def test_a_drawings_place_in_the_batch_changes_nothing(kind: dict) -> None:
    """A view of (directions, B, H) as (B, directions · H) would mix drawings."""
    model, data = make(**kind).eval(), batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = SketchBatch(*(part[order] for part in data))
    z = torch.randn(6, model.latent_dim)
    for a, b in zip(model.nats(*moved[:2], z[order]), model.nats(*data[:2], z), strict=True):
        assert torch.allclose(a, b[order], atol=1e-5)
    if model.latent_dim:
        assert torch.allclose(model.encode(moved), model.encode(data)[order], atol=1e-6)
        alone = torch.cat([model.encode(sketch) for sketch in sketches()])
        assert torch.allclose(alone, model.encode(data), atol=1e-5), "and neither does who else is in it"


@KINDS
def test_a_batch_of_one_and_the_shortest_drawings(kind: dict) -> None:
    model = attach(make(**kind))
    for lengths in ((1,), (2,), (12,)):
        loss = model.training_step(batch(lengths), 0)["loss"]
        assert loss.isfinite()
        loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_end_of_the_drawing_is_learned() -> None:
    """Its row counts, once: else nothing tells the decoder to stop."""
    mixture = to_mixture(torch.zeros(2, 6, mixture_size(3)))
    data = batch((5, 2))
    _, pen = nats_of_drawings(mixture, data.strokes, data.lengths)
    assert pen.tolist() == pytest.approx([6 * math.log(3), 3 * math.log(3)])
    wrong = mixture._replace(log_pen=mixture.log_pen.clone())
    wrong.log_pen[0, 5, 2] -= 1
    wrong.log_pen[1, 2, 2] -= 2
    assert (nats_of_drawings(wrong, data.strokes, data.lengths)[1] - pen).tolist() == pytest.approx([1, 2])
    wrong.log_pen[1, 3:, 2] -= 100
    assert (nats_of_drawings(wrong, data.strokes, data.lengths)[1] - pen).tolist() == pytest.approx([1, 2])


def test_the_encoder_reads_both_ends() -> None:
    model, data = make(), batch((8, 8))
    expected = model.encode(data)
    for row in (0, 7):
        changed = data.strokes.clone()
        changed[0, row, 0] += 1
        found = model.encode(data._replace(strokes=changed))
        assert (found - expected)[0].abs().max() > 1e-4
        assert torch.equal(found[1], expected[1])
    changed = data.strokes.clone()
    changed[0, 8, 0] += 1  # the end row, which is no point
    assert torch.equal(model.encode(data._replace(strokes=changed)), expected)


def test_the_code_is_of_the_last_states_of_both_directions() -> None:
    model, data = make(), batch()
    mean, log_var = model.posterior_of(*data[:2])
    for i, count in enumerate(data.lengths.tolist()):
        rows = data.strokes[i, :count]
        states = torch.cat([lstm(side)[0][-1] for lstm, side in zip(model.encoder, (rows, rows.flip(0)), strict=True)])
        assert torch.allclose(model.to_posterior(states), torch.cat([mean[i], log_var[i]]), atol=1e-6)


def test_kl_against_torch_distributions() -> None:
    model, data = make(), batch()
    each = model._objective(data, 0)
    assert torch.allclose(each["kl_nats"], each["kl"] * 3), "the paper divides by N_z"
    mean, log_var = model.posterior_of(*data[:2])
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(torch.zeros_like(mean), 1.0))
    assert torch.allclose(each["kl"], expected.mean(1))


def test_the_code_is_drawn_with_the_posteriors_deviation() -> None:
    model, data = make(latent_dim=2), batch((1,) * 3000)
    with torch.no_grad():
        model.to_posterior.weight.zero_()
        model.to_posterior.bias.copy_(torch.tensor([3.0, -1.0, 2 * math.log(0.5), 2 * math.log(4.0)]))
        each = model._objective(data, 0, 1, 2)
    assert torch.allclose(each["z"].mean(0), torch.tensor([3.0, -1.0]), atol=0.2)
    assert torch.allclose(each["z"].std(0), torch.tensor([0.5, 4.0]), rtol=0.05)
    assert torch.equal(model._objective(data, 0, 1, 2)["z"], each["z"]), "its place and the key determine the draw"
    assert not torch.equal(model._objective(data, 0, 1, 3)["z"], each["z"])


def test_the_floor_is_of_the_batchs_mean() -> None:
    low = torch.tensor([0.0, 0.1, 0.4], requires_grad=True)  # a mean below .2, of which one is above
    cost = kl_cost(low, 0.2)
    assert float(cost.detach()) == pytest.approx(0.2)
    cost.backward()
    assert low.grad is not None
    assert low.grad.tolist() == [0, 0, 0]
    high = torch.tensor([0.0, 0.1, 0.8], requires_grad=True)
    cost = kl_cost(high, 0.2)
    assert float(cost.detach()) == pytest.approx(0.3)
    cost.backward()
    assert high.grad is not None
    assert high.grad.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("floor", [0.0, 10.0])
def test_the_loss_is_the_papers(floor: float) -> None:
    model, data = attach(make(kl_floor=floor), step=5000), batch()
    found = model.training_step(data, 2)
    each = model._objective(data, model.seed, 0, 2)
    weight = 0.5 - 0.49 * 0.99995**5000
    expected = each["reconstruction"].mean() + weight * max(float(each["kl"].mean().detach()), floor)
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    points = float(data.lengths.sum())
    total = 12 * float(each["reconstruction"].detach().sum())
    assert float(found["nats_per_point"]) == pytest.approx(total / points, rel=1e-5)


def test_the_schedules_of_the_kl_and_of_the_learning_rate() -> None:
    assert kl_weight(0, 0.5, 0.01, 0.99995) == pytest.approx(0.01)
    assert kl_weight(20000, 0.5, 0.01, 0.99995) == pytest.approx(0.5 - 0.49 * 0.99995**20000)
    assert kl_weight(10**7, 0.5, 0.01, 0.99995) == pytest.approx(0.5)

    model = make()
    configured: Any = configure_optimizers(model, model.optimizer, model.scheduler)
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
    assert schedule["interval"] == "step"
    assert isinstance(optimizer, torch.optim.Adam)
    for step in range(2001):
        if step in (0, 1, 2000):
            expected = (1e-3 - 1e-5) * 0.9999**step + 1e-5
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule["scheduler"].step()
    for options, message in (({"decay": 1.5}, "decay=1.5: expected"), ({"floor": -1.0}, "floor=-1.0: expected")):
        with pytest.raises(ValueError, match=message):
            DecayToFloor(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), **options)


# ---- the networks --------------------------------------------------------------------------------------------------


def test_the_stepped_lstm_without_extras_is_the_fused_one() -> None:
    torch.manual_seed(0)
    fused, stepped = nn.LSTM(5, 7, batch_first=True), SteppedLSTM(5, 7)
    stepped.load_state_dict(fused.state_dict())
    inputs, state = torch.randn(3, 9, 5), (torch.randn(1, 3, 7), torch.randn(1, 3, 7))
    for given in (None, state):
        (a, (h_a, c_a)), (b, (h_b, c_b)) = fused(inputs, given), stepped(inputs, given)
        for found, expected in ((b, a), (h_b, h_a), (c_b, c_a)):
            assert torch.allclose(found, expected, atol=1e-6)
            assert found.shape == expected.shape
    first, middle = stepped(inputs[:, :4], state)
    second, _ = stepped(inputs[:, 4:], middle)
    assert torch.allclose(torch.cat([first, second], 1), fused(inputs, state)[0], atol=1e-6)


def test_the_norms_are_of_each_gate_and_of_the_cell() -> None:
    """By hand, one step, and its scale does not depend on that of the weights."""
    torch.manual_seed(0)
    layer = SteppedLSTM(5, 7, layer_norm=True)
    with torch.no_grad():
        for name in ("gate_scale", "gate_bias", "cell_norm.weight", "cell_norm.bias"):
            layer.get_parameter(name).normal_()
    x, h, c = torch.randn(2, 1, 5), torch.randn(1, 2, 7), torch.randn(1, 2, 7)
    gates = (x[:, 0] @ layer.weight_ih_l0.T + h[0] @ layer.weight_hh_l0.T).view(2, 4, 7)
    gates = (gates - gates.mean(2, keepdim=True)) / (gates.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    i, f, g, o = (gates * layer.gate_scale.view(4, 7) + layer.gate_bias.view(4, 7)).unbind(1)
    after = f.sigmoid() * c[0] + i.sigmoid() * g.tanh()
    expected = o.sigmoid() * layer.cell_norm(after).tanh()
    outputs, (_, cell) = layer(x, (h, c))
    assert torch.allclose(outputs[:, 0], expected, atol=1e-5)
    assert torch.allclose(cell[0], after, atol=1e-5), "what is carried is not normalized"


def test_recurrent_dropout_is_of_the_candidates_and_of_training_only() -> None:
    torch.manual_seed(0)
    layer = SteppedLSTM(5, 400, recurrent_dropout=0.25)
    inputs, state = torch.randn(1, 3, 5), (torch.zeros(1, 1, 400), torch.full((1, 1, 400), 2.0))
    layer.eval()
    plain = unroll(layer, inputs, state)
    assert torch.allclose(layer(inputs, state)[0], torch.stack(plain["h"], 1), atol=1e-6)
    layer.train()
    _, (_, cell) = layer(inputs[:, :1], state)
    kept = plain["f"][0] * 2  # the memory stays, whatever is dropped
    added = (cell[0] - kept) / (plain["i"][0] * plain["g"][0])
    shares = {round(value, 2) for value in added.flatten().tolist()}
    assert shares == {0.0, 1.33}
    assert float((added < 0.5).float().mean()) == pytest.approx(0.25, abs=0.06)
    assert not torch.equal(layer(inputs, state)[0], layer(inputs, state)[0])
    with pytest.raises(ValueError, match=r"recurrent_dropout=1.0: expected a number in \[0, 1\)"):
        SteppedLSTM(5, 7, recurrent_dropout=1.0)


def test_the_decoder_starts_from_the_code_and_reads_it_at_each_step() -> None:
    model, data = make(), batch((6,))
    z = torch.randn(1, 3)
    h, c = model.initial_state(z)
    expected = (z @ model.to_state.weight.T + model.to_state.bias).tanh()
    assert torch.allclose(torch.cat([h[0], c[0]], 1), expected, atol=1e-6)
    state = (h, c)
    at_once, _ = model(data.strokes, z, state)
    other, _ = model(data.strokes, z + 1, state)  # from the same state
    assert (at_once.means - other.means).abs().amin((0, 2, 3)).max() > 0
    assert ((at_once.means - other.means).abs().amax((0, 2, 3)) > 1e-5).all()


def test_the_cells_of_a_model() -> None:
    assert type(make().decoder) is nn.LSTM, "fused where that is possible"
    assert isinstance(make(layer_norm=True).decoder, SteppedLSTM)
    dropping = make(recurrent_dropout=0.1)
    assert isinstance(dropping.decoder, SteppedLSTM)
    dropping.load_state_dict(make().state_dict())  # the same weights
    for model in (make(), dropping, make(layer_norm=True)):
        for lstm in (model.decoder, *model.encoder):
            for name, parameter in lstm.named_parameters():
                if name.startswith(("bias_ih", "gate_bias")):
                    hidden = lstm.hidden_size
                    assert parameter[hidden : 2 * hidden].tolist() == [1] * hidden, "forget gates remember"
                    assert parameter[:hidden].tolist() == [0] * hidden


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_factor": 0.0}, "scale_factor=0.0: expected more than 0"),
        ({"longest": 0}, "longest=0: expected at least 1"),
        ({"components": 0}, "components=0: expected at least 1"),
        ({"decoder_hidden": 0}, "decoder_hidden=0: expected at least 1"),
        ({"latent_dim": -1}, "latent_dim=-1: expected at least 0, which is the unconditional model"),
        ({"kl_decay": 0.0}, r"kl_decay=0.0: expected a number in \(0, 1\]"),
        ({"kl_floor": -0.1}, "kl_floor=-0.1: expected at least 0"),
        ({"recurrent_dropout": 1.0}, r"recurrent_dropout=1.0: expected a number in \[0, 1\)"),
    ],
)
def test_impossible_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


# ---- evaluation ----------------------------------------------------------------------------------------------------


def scores(model: SketchRNN, monkeypatch: pytest.MonkeyPatch, parts: list[SketchBatch]) -> dict[str, float]:
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(model, "log_dict", logged.update)
    attach(model).eval()
    for i, part in enumerate(parts):
        model.validation_step(part, i)
    model.on_validation_epoch_end()
    return {name: float(value) for name, value in logged.items()}


def test_the_scores_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make(kl_weight=0.7, kl_floor=0.0), batch()
    with torch.no_grad():
        found = scores(model, monkeypatch, [data])
        each = model._objective(data, 0, "val", 0)
    assert found["val/reconstruction"] == pytest.approx(float(each["reconstruction"].mean()), rel=1e-5)
    total = float(each["reconstruction"].sum()) * 12
    assert found["val/nats_per_point"] == pytest.approx(total / float(data.lengths.sum()), rel=1e-5)
    assert found["val/loss"] == pytest.approx(found["val/reconstruction"] + 0.7 * found["val/kl"], rel=1e-5)
    assert found["val/kl_nats"] == pytest.approx(3 * found["val/kl"], rel=1e-5)
    assert found.keys() == {f"val/{name}" for name in (*sketch_rnn.MEANS, "loss", "active_units", "mutual_information")}
    floored = make(kl_weight=0.7, kl_floor=9.0)
    with torch.no_grad():
        assert scores(floored, monkeypatch, [data])["val/loss"] == pytest.approx(
            found["val/reconstruction"] + 0.7 * 9, rel=1e-5
        )


def test_an_unconditional_model_has_no_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        found = scores(make(latent_dim=0), monkeypatch, [batch(), batch(seed=2)])
    names = ("loss", "reconstruction", "offset_reconstruction", "pen_reconstruction", "nats_per_point")
    assert found.keys() == {f"val/{name}" for name in names}


def test_a_collapsed_posterior_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    with torch.no_grad():
        model.to_posterior.weight.zero_()
        with pytest.warns(UserWarning, match="posterior collapse"):
            assert scores(model, monkeypatch, [batch()])["val/active_units"] == 0


# ---- drawings ------------------------------------------------------------------------------------------------------


def test_a_sketch_and_its_rows() -> None:
    sketch = Sketch([[10, 0, 0], [0, 5, 1], [3, 3, 0], [-1, 0, 0]])
    rows = sketch.to_rows(10.0)
    expected = [[1, 0, 1, 0, 0], [0, 0.5, 0, 1, 0], [0.3, 0.3, 1, 0, 0], [-0.1, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert torch.allclose(rows, torch.tensor(expected))
    assert Sketch.from_rows(rows, 10.0).points == pytest.approx(sketch.points)
    assert Sketch.from_rows(rows[:-1], 10.0).points == pytest.approx(sketch.points), "one that was cut off"
    first, second = sketch.polylines()
    assert first.tolist() == [[10, 0], [10, 5]]
    assert second.tolist() == [[13, 8], [12, 8]]


def test_a_sketch_as_svg(tmp_path: Path) -> None:
    sketch = Sketch([[10, 0, 0], [0, 5, 1], [3, 3, 1]])
    text = sketch.to_svg(tmp_path / "sketch.svg")
    assert (tmp_path / "sketch.svg").read_text() == text
    root = ElementTree.fromstring(text)
    path = root[0].attrib["d"]
    assert path == "M10 0L10 5 M13 8L13 8", "a dot too"
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    assert left < 10 < 13 < left + width
    assert top < 0 < 8 < top + height
    ElementTree.fromstring(Sketch(np.zeros((0, 3))).to_svg())
    for dot in (Sketch([[10, 0, 1]]), Sketch([[1e38, 3e38, 0]])):
        root = ElementTree.fromstring(dot.to_svg())
        left, top, side, _ = map(float, root.attrib["viewBox"].split())
        width = float(root[0].attrib["stroke-width"])
        assert math.isfinite(left + top), "also of the largest numbers"
        assert width / side > 0.01, "a dot can be seen"
    for size in (0, -5):
        with pytest.raises(ValueError, match=f"size={size}: expected more than 0"):
            sketch.to_svg(size=size)


def test_a_sketch_from_lines_and_from_a_file(tmp_path: Path) -> None:
    sketch = Sketch.from_lines([[(10, 20), (30, 20)], [(5, 5)]])
    assert sketch.points.tolist() == [[0, 0, 0], [20, 0, 1], [-25, -15, 1]]
    assert Sketch.from_lines([[(10, 20), (30, 20)]], size=255).points.tolist() == [[0, 0, 0], [255, 0, 1]]
    sketch.to_svg(tmp_path / "a.svg")
    assert Sketch.from_svg(tmp_path / "a.svg").points.tolist() == sketch.points.tolist()
    for lines, message in (([], r"lines=\[\]: expected at least one"), ([[1, 2]], r"a line of shape \(2,\): expected")):
        with pytest.raises(ValueError, match=message):
            Sketch.from_lines(lines)
    (tmp_path / "b.svg").write_text("<svg><text>a</text></svg>")
    with pytest.raises(ValueError, match=r"b.svg: no line in it, expected paths or shapes"):
        Sketch.from_svg(tmp_path / "b.svg")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[1, 2]], r"points of shape \(1, 2\): expected \(N, 3\)"),
        ([[1, math.nan, 0]], "points: expected finite numbers"),
        ([[1, 2, 0.5]], "points: expected 0 or 1 in the last column"),
    ],
)
def test_what_is_no_sketch(points: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sketch(points)
    with pytest.raises(ValueError, match=r"sketches of \[2, 0\] points: expected some sketches"):
        make().encode([Sketch(np.zeros((2, 3))), Sketch(np.zeros((0, 3)))])


def same(a: Sketch, b: Sketch) -> bool:
    return a.points.shape == b.points.shape and bool(np.allclose(a.points, b.points, atol=1e-3))


@KINDS
def test_generating(kind: dict) -> None:
    model = make(**kind)
    made = model.generate(5, temperature=0.8, seed=3)
    assert [len(sketch) <= 12 for sketch in made] == [True] * 5
    assert all(same(a, b) for a, b in zip(made, model.generate(5, temperature=0.8, seed=3), strict=True))
    assert not all(same(a, b) for a, b in zip(made, model.generate(5, temperature=0.8, seed=4), strict=True))
    assert model.training, "drawing leaves the mode as it was"
    with torch.no_grad():
        model.head.bias[-1] = -50
    assert [len(sketch) for sketch in model.generate(2, seed=0, max_points=30)] == [30, 30], "never ends"
    with torch.no_grad():
        model.head.bias[-1] = 50
    assert [len(sketch) for sketch in model.generate(2, seed=0)] == [1, 1], "ends at once, but a drawing has a point"
    for options, message in (
        ({"n": 0}, "n=0: expected at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: expected at least 0"),
        ({"max_points": 0}, "max_points=0: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**options)  # type: ignore[arg-type]


@KINDS
def test_drawing_follows_the_model(kind: dict) -> None:
    """Step by step with a carried state as all at once: the likeliest drawing continues itself."""
    model = make(**kind).eval()
    z = torch.randn(1, model.latent_dim)
    with torch.no_grad():
        model.head.bias[-1] = -50
    sketch = model._drawn(z, None, 0.0, None, 9)[0]
    rows = sketch.to_rows(10.0)[None]
    start = torch.tensor([[[0.0, 0, 1, 0, 0]]])
    with torch.no_grad():
        mixture, _ = model(torch.cat([start, rows[:, :-2]], 1), z)
    best = mixture.log_weights.argmax(-1)
    means = mixture.means.gather(2, best[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    assert torch.allclose(rows[:, :-1, :2], means, atol=1e-5)
    assert torch.equal(rows[0, :-1, 2:].argmax(1), mixture.log_pen[0].argmax(1))


def test_drawings_are_in_the_datas_units() -> None:
    small, large = make(), make(scale_factor=100.0)
    a, b = (model.generate(1, seed=0)[0] for model in (small, large))
    assert b.points[:, :2] == pytest.approx(10 * a.points[:, :2], rel=1e-4)
    sketch = sketches()[0]
    wide = Sketch(sketch.points * [10, 10, 1])
    assert torch.allclose(large.encode(wide), small.encode(sketch), atol=1e-5)


@pytest.mark.slow
def test_one_drawing_gives_several_similar_ones() -> None:
    model, sketch = make(), sketches()[0]
    greedy = model.reconstruct(sketch, temperature=0)
    assert same(greedy, model.reconstruct(sketch, temperature=0, seed=5))
    assert not same(greedy, model.reconstruct(sketch, temperature=0, sample=True, seed=5)), "another code"
    assert not same(greedy, model.reconstruct(sketch, temperature=0.5, seed=5)), "other moves"
    assert not same(model.reconstruct(sketch, seed=4), model.reconstruct(sketch, seed=5))
    means = model.encode(sketch)
    draws = torch.cat([model.encode(sketch, sample=True, seed=seed) for seed in range(2000)])
    _, log_var = model.posterior_of(*model._strokes(sketch))
    assert torch.allclose(draws.mean(0), means[0], atol=0.1)
    assert torch.allclose(draws.std(0), (0.5 * log_var[0]).exp(), rtol=0.1)


def test_interpolation_goes_from_one_to_the_other() -> None:
    model = make()
    a, b = sketches()[:2]
    between = model.interpolate(a, b, steps=5, temperature=0)
    assert len(between) == 5
    assert same(between[0], model.reconstruct(a, temperature=0))
    assert same(between[-1], model.reconstruct(b, temperature=0))
    both = model.reconstruct([a, b], temperature=0)
    assert isinstance(both, list), "as many as it got"
    assert same(both[0], between[0])
    assert same(both[1], between[-1])
    model.encode(a).requires_grad_()  # codes can be moved by gradients


@KINDS
def test_completions_begin_with_what_was_given(kind: dict) -> None:
    model, prefix = make(**kind), sketches()[0]
    made = model.complete(prefix, n=4, temperature=1.0, seed=0)
    assert len(made) == 4
    for sketch in made:
        assert 5 <= len(sketch) <= 12
        assert sketch.points[:5] == pytest.approx(prefix.points, abs=1e-4)
    assert not all(same(made[0], other) for other in made[1:])
    assert all(same(a, b) for a, b in zip(made, model.complete(prefix, 4, 1.0, seed=0), strict=True))


@KINDS
def test_many_prefixes_give_a_list_each_and_one_without_room_is_refused(kind: dict) -> None:
    model, prefix = make(**kind), sketches()[0]
    one, other = model.complete((prefix, prefix), n=3, temperature=1.0, seed=0)
    assert len(one) == len(other) == 3
    assert not all(same(a, b) for a, b in zip(one, other, strict=True)), "each has draws of its own"
    for given, options, message in (
        (prefix, {"max_points": 5}, "a prefix of 5 points: expected fewer than max_points=5$"),
        (sketches((12,))[0], {}, "a prefix of 12 points: expected fewer than longest=12, or a larger max_points"),
        (prefix, {"n": 2.0}, "n=2.0: expected a whole number"),
        ("a.svg", {}, "a prefix of type str: expected a Sketch, the beginning of a drawing"),
    ):
        with pytest.raises(ValueError, match=message):
            model.complete(given, **options)
    assert len(model.complete(sketches((12,))[0], max_points=13)[0]) == 13


def test_a_code_and_the_moves_of_the_same_seed_are_independent() -> None:
    model, sketch = make(), sketches()[0]
    _, log_var = model.posterior_of(*model._strokes(sketch))
    drawn = (model.encode(sketch, sample=True, seed=5) - model.encode(sketch)) / (0.5 * log_var).exp()
    moves = torch.randn(1, 3, generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(drawn, moves, atol=1e-3), "decode(seed=5) starts with these"
    assert torch.equal(model.encode(sketch, True, 5), model.encode(sketch, True, 5))


def test_files_are_read_as_those_of_the_training(tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    file.write_text('<svg><path d="M0 0 h30 v40 M5 5 v10"/></svg>')
    model = make(preparation={"size": 80.0, "epsilon": 0.5})
    read = Sketch([[0, 0, 0], [60, 0, 0], [0, 80, 1], [-50, -70, 0], [0, 20, 1]])
    assert torch.allclose(model.encode(file), model.encode(read))
    assert same(model.reconstruct(str(file), 0.0), model.reconstruct(read, 0.0))
    assert len(model.reconstruct([file, read], 0.0)) == 2
    assert len(model.interpolate(file, read, steps=3)) == 3
    with pytest.raises(FileNotFoundError, match=r"sketch=\S*b.svg: no such file; did you mean '\S*a.svg'"):
        model.encode(tmp_path / "b.svg")


def test_completions_are_of_codes_that_make_the_beginning_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()

    def nats(strokes: Tensor, lengths: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        assert lengths.tolist() == [5] * len(z)
        return 1000 * (z[:, 0] < 2), torch.zeros(len(z))  # only codes whose first number is large

    chosen: list[Tensor] = []
    monkeypatch.setattr(model, "nats", nats)
    drawn = model._drawn
    monkeypatch.setattr(model, "_drawn", lambda z, *rest: chosen.append(z) or drawn(z, *rest))
    model.complete(sketches()[0], n=6, seed=0)
    assert chosen[0].shape == (6, 3)
    assert (chosen[0][:, 0] >= 2).all()


def test_an_unconditional_model_says_what_it_cannot() -> None:
    model, sketch = make(latent_dim=0), sketches()[0]
    for call in (
        lambda: model.encode(sketch),
        lambda: model.reconstruct(sketch),
        lambda: model.interpolate(sketch, sketch),
        lambda: model.decode(torch.zeros(1, 0)),
    ):
        with pytest.raises(ValueError, match="with latent_dim=0: expected a model with a code"):
            call()


@KINDS
def test_the_pictures(kind: dict) -> None:
    model = make(class_names=["a", "b"], **kind)
    shown = batch()._replace(labels=torch.tensor([0, 1, 0, 1, 0, -1]))
    model.mean_kl = torch.rand(3) if model.latent_dim else None
    made = illustrate(model, shown)
    drawn = {"samples", "completions"}
    if model.latent_dim:
        drawn |= {"reconstructions", "variations", "interpolations", "codes"}
    assert {name.removesuffix(".svg") for name in made} - {"kl"} == drawn
    for name in drawn:
        svg = made[f"{name}.svg"]
        assert isinstance(svg, str)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert made["samples.svg"] == illustrate(model, shown)["samples.svg"], "the same model gives the same pictures"


def test_pictures_show_all_classes_though_they_are_stored_one_after_the_other() -> None:
    labels = [0] * 5 + [1] * 5 + [-1, 2]
    chosen, order = of_all_classes(sketches((3,) * 12), labels)
    assert order == [0, 1, -1, 2, 0, 1, 0, 1, 0, 1, 0, 1]
    assert len(chosen) == 12
    assert of_all_classes(["a", "b", "c"], [-1] * 3)[0] == ["a", "b", "c"]  # type: ignore[list-item]
    model = make(class_names=["cat", "house"])
    figure = interpolations_figure(model, sketches((3,) * 4), [0, 1, 0, 1])
    assert figure.axes[0].get_title() == "between the codes of four drawings (cat, house, cat, house), τ = 0.1"


def test_the_map_has_the_drawings_of_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    for _ in range(2):  # an evaluation starts anew
        scores(model, monkeypatch, [batch(), batch(seed=2)])
        assert [part.lengths.tolist() for part in model.evaluated] == [[5, 1, 8, 2, 11, 3]] * 2
    monkeypatch.setattr(sketch_rnn, "MAPPED", 6)
    scores(model, monkeypatch, [batch(), batch(seed=2)])
    assert len(model.evaluated) == 1


def test_of_codes_on_top_of_each_other_one_drawing_is_shown() -> None:
    model = make()
    one, other = sketches((6, 7))
    figure = codes_figure(model, [one, one, one, other], torch.tensor([-1] * 4))
    assert figure.axes[0].get_title().endswith("; 2 of 4 are dots")
    lines = figure.axes[0].collections[0]
    assert len(lines.get_segments()) == sum(len(line) > 1 for sketch in (one, other) for line in sketch.polylines())
    assert len(figure.axes[0].collections[-1].get_offsets()) == 2


def test_a_drawing_of_one_point_can_be_seen() -> None:
    figure = drawings_figure([[Sketch([[3, 4, 1]])]])
    dots = figure.axes[0].collections[1]
    assert dots.get_offsets().tolist() == [[0, 0]]
    assert dots.get_sizes()[0] > 4


def test_a_mixture_is_split_where_it_is_joined() -> None:
    mixture = to_mixture(torch.arange(mixture_size(2), dtype=torch.float) / 10)
    assert isinstance(mixture, Mixture)
    assert mixture.means.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert mixture.log_sigmas.flatten().tolist() == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert mixture.tilts.tolist() == pytest.approx([1.0, 1.1])
    assert float(mixture.log_weights.exp().sum()) == pytest.approx(1)
    assert float(mixture.log_pen.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "sketches of type int: expected a Sketch or the path of an SVG file, or a list"),
        (None, "sketches of type NoneType: expected a Sketch or the path"),
        (torch.zeros(4, 3), "sketches of type Tensor: expected a Sketch or the path"),
        ([np.zeros((4, 3))], r"a sketch of type ndarray: expected Sketch\(points\), points \(N, 3\)"),
        ([], "expected some sketches"),
    ],
)
def test_what_is_no_sketch_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().encode(given)


def test_a_notebook_shows_the_drawing() -> None:
    sketch = sketches((4,), 0)[0]
    assert sketch._repr_svg_() == sketch.to_svg()
    assert repr(sketch) == "Sketch(4 points)"
    assert Sketch(torch.ones(2, 3, dtype=torch.bfloat16)).points.dtype == np.float32
