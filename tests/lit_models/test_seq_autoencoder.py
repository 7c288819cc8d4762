"""The sequence autoencoder: exact masking, one path through the code, scheduled sampling, and its rivals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.sequences import SequenceBatch, SketchSequences
from datamodules.sketches import Glyphs
from experiments.cli import CLI
from lit_models.networks.sequence_elements import END_WEIGHT, Symbols
from lit_models.parts.scheduled_sampling import forcing_probability
from lit_models.parts.sketch import Sketch
from lit_models.scores.sequences import MeanOfLength, resample, squared_error
from lit_models.seq_autoencoder import SequenceAutoencoder, reverse

VOCAB = list("abcdef")
D = 3
KINDS = pytest.mark.parametrize("kind", ["text", "real"])
FORMS = pytest.mark.parametrize(
    "form",
    [
        {},
        {"cell": "gru", "layers": 2},
        {"layers": 2, "bidirectional": False},
        {"cell": "gru", "reverse_targets": False},
        {"layers": 3},
        {"conditional": False},
    ],
    ids=str,
)


def make(kind: str = "text", **options: Any) -> SequenceAutoencoder:
    torch.manual_seed(0)
    data = {"vocab": VOCAB} if kind == "text" else {"sequence_dim": D}
    sizes: dict[str, Any] = {"longest": 9, "hidden": 10, "code_dim": 6, "embedding_dim": 5}
    model = SequenceAutoencoder(**{**sizes, **data, **options})
    model.trainer = SimpleNamespace(global_step=0, current_epoch=0)  # type: ignore[assignment]
    with torch.no_grad():  # so that codes differ and decoding goes somewhere
        for parameter in model.parameters():
            parameter *= 2
    return model.eval()


def sequences(kind: str, lengths: list[int], padding: int = 0, seed: int = 1) -> SequenceBatch:
    """Of given lengths, with 0 behind the end and so many steps more than the longest has."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(*lengths, 9))
    if kind == "text":
        values = torch.randint(0, len(VOCAB), shape, generator=generator)
    else:
        values = torch.randn(*shape, D, generator=generator)
    for row, length in zip(values, lengths, strict=True):
        row[length:] = 0
    steps = max(lengths) + padding
    values = F.pad(values, (0, 0) * (values.dim() - 2) + (0, max(0, steps - values.shape[1])))[:, :steps]
    return SequenceBatch(values, torch.tensor(lengths), torch.full((len(lengths),), -1))


def loss_of(model: SequenceAutoencoder, batch: SequenceBatch) -> Tensor:
    """(B,) with teacher forcing."""
    targets, steps = model.targets_of(batch.values, batch.lengths)
    return model.losses(model.teacher_forced(targets, model.code_of(batch.values, batch.lengths)), targets, steps)


# ---- the encoder and the decoder ---------------------------------------------------------------------------------


@KINDS
@FORMS
def test_a_sequence_does_not_depend_on_its_place_or_its_company(kind: str, form: dict) -> None:
    model = make(kind, **form)
    batch = sequences(kind, [4, 1, 9, 6, 4])
    code, loss = model.code_of(batch.values, batch.lengths), loss_of(model, batch)
    made = model.decode(code)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = SequenceBatch(*(part[order] for part in batch))
    assert torch.allclose(model.code_of(shuffled.values, shuffled.lengths), code[order], atol=1e-6)
    assert torch.allclose(loss_of(model, shuffled), loss[order], atol=1e-5)
    assert torch.equal(model.decode(code[order]).lengths, made.lengths[order])
    for i, length in enumerate(batch.lengths.tolist()):
        alone = SequenceBatch(*(part[i : i + 1] for part in batch))
        alone = alone._replace(values=alone.values[:, :length])
        assert torch.allclose(model.code_of(alone.values, alone.lengths), code[i : i + 1], atol=1e-6)
        assert torch.allclose(loss_of(model, alone), loss[i : i + 1], atol=1e-5)
        single = model.decode(code[i : i + 1])
        n = int(single.lengths)
        assert n == int(made.lengths[i])
        assert torch.allclose(single.values[0, :n].double(), made.values[i, :n].double(), atol=1e-5)
    assert code.std(0).min() > 1e-3, "or this says nothing"


@KINDS
@pytest.mark.parametrize("behind", [0, 3])
def test_padding_changes_nothing(kind: str, behind: int) -> None:
    model = make(kind)
    batch, padded = sequences(kind, [4, 1, 6]), sequences(kind, [4, 1, 6], padding=5)
    inside = torch.arange(padded.values.shape[1]) < padded.lengths[:, None]
    padded.values[~inside] = behind  # whatever stands there
    expected, found = (loss_of(model, each) for each in (batch, padded))
    assert torch.allclose(found, expected, atol=1e-6)
    weights = list(model.parameters())
    gradients = [torch.autograd.grad(loss_of(model, each).mean(), weights) for each in (batch, padded)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@FORMS
def test_the_code_joins_the_last_states_of_the_top_layer(form: dict) -> None:
    model = make("real", **form)
    batch = sequences("real", [7, 7])
    outputs, _ = model.encoder(batch.values)
    hidden = model.encoder.hidden_size
    ends = [outputs[:, -1, :hidden], outputs[:, 0, hidden:]]  # forward's at the end, backward's at the beginning
    expected = model.to_code(torch.cat(ends, 1))
    assert torch.allclose(model.code_of(batch.values, batch.lengths), expected, atol=1e-6)


@FORMS
def test_each_state_is_the_codes_own(form: dict) -> None:
    model = make("text", **form)
    code = torch.randn(4, model.code_dim)
    state = model.initial_state(code)
    parts = torch.stack(state if isinstance(state, tuple) else (state,))  # (h | c, layers, B, H)
    expected = model.to_state(code).tanh().view(4, model.states, model.layers, -1)
    for i in range(4):
        assert torch.equal(parts[:, :, i], expected[i])


@KINDS
def test_the_code_is_the_only_path(kind: str) -> None:
    """Two inputs of one code would be written alike; another code is written in another way."""
    model = make(kind)
    batch = sequences(kind, [5, 5, 8])
    code = model.code_of(batch.values, batch.lengths)
    first = model.decode(code[:1])
    assert torch.equal(model.decode(code[:1]).values, first.values)
    targets, _ = model.targets_of(batch.values[:1], batch.lengths[:1])
    a, b = (model.teacher_forced(targets, each) for each in (code[:1], code[2:]))
    assert not torch.allclose(a, b, atol=1e-2)
    # The gradient of what is written reaches the encoder through the code alone.
    code = model.code_of(batch.values, batch.lengths)
    model.teacher_forced(model.targets_of(batch.values, batch.lengths)[0], code.detach()).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


@KINDS
def test_the_first_step_sees_the_code_and_nothing_else(kind: str) -> None:
    model = make(kind)
    a, b = sequences(kind, [5], seed=1), sequences(kind, [5], seed=2)
    code = torch.randn(1, model.code_dim)
    first = [model.teacher_forced(model.targets_of(each.values, each.lengths)[0], code) for each in (a, b)]
    assert torch.equal(first[0][:, 0], first[1][:, 0])
    assert not torch.allclose(first[0][:, 1], first[1][:, 1])


def test_reversed_within_their_lengths() -> None:
    values = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]])
    lengths = torch.tensor([3, 1, 4, 0])
    assert reverse(values, lengths).tolist() == [[3, 2, 1, 0], [4, 0, 0, 0], [8, 7, 6, 5], [0, 0, 0, 0]]
    points = torch.randn(4, 4, 2)
    assert torch.equal(reverse(reverse(points, lengths), lengths), points)


@KINDS
def test_targets_are_reversed_and_what_is_decoded_is_not(kind: str) -> None:
    batch = sequences(kind, [4, 2])
    for is_reversed in (True, False):
        model = make(kind, reverse_targets=is_reversed)
        targets, steps = model.targets_of(batch.values, batch.lengths)
        first = batch.values[0, 3 if is_reversed else 0]
        assert torch.equal(targets[0, 0], first)
        assert steps.tolist() == ([5, 3] if kind == "text" else [4, 2])
        code = torch.randn(5, model.code_dim)
        written, lengths = model.free_running(code, model.longest)
        made = model.decode(code)
        assert torch.equal(made.lengths, lengths)
        for row, own, n in zip(made.values, written, lengths.tolist(), strict=True):
            assert torch.equal(row[:n], own[:n].flip(0) if is_reversed else own[:n])


def test_text_ends_with_a_token_of_its_own() -> None:
    model = make("text")
    targets, steps = model.with_end(torch.tensor([[0, 5, 1], [2, 0, 0], [0, 0, 0]]), torch.tensor([3, 1, 0]))
    assert targets.tolist() == [[0, 5, 1, 6], [2, 6, 6, 6], [6, 6, 6, 6]]
    assert steps.tolist() == [4, 2, 1]


# ---- losses ------------------------------------------------------------------------------------------------------


def test_the_loss_of_text_is_the_mean_of_nats_with_the_end() -> None:
    model, lengths = make("text"), [3, 0]
    batch = sequences("text", lengths)
    targets, steps = model.targets_of(batch.values, batch.lengths)
    outputs = torch.randn(2, 4, len(VOCAB) + 1)
    found = model.losses(outputs, targets, steps)
    for i, length in enumerate(lengths):
        line = [*batch.values[i, :length].tolist()[::-1], len(VOCAB)]
        nats = [-float(outputs[i, t].log_softmax(0)[token]) for t, token in enumerate(line)]
        assert float(found[i]) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_the_loss_of_real_numbers_is_squared_and_knows_the_end() -> None:
    model, lengths = make("real"), [3, 1]
    batch = sequences("real", lengths)
    targets, steps = model.targets_of(batch.values, batch.lengths)
    outputs = torch.randn(2, 3, D + 1)
    found = model.losses(outputs, targets, steps)
    for i, n in enumerate(lengths):
        total = 0.0
        for t in range(n):
            point = batch.values[i, n - 1 - t]
            total += float((outputs[i, t, :D] - point).square().mean())
            p = float(outputs[i, t, D].sigmoid())
            total += END_WEIGHT * -math.log(p if t == n - 1 else 1 - p)
        assert float(found[i]) == pytest.approx(total / n, rel=1e-5)


# ---- scheduled sampling ------------------------------------------------------------------------------------------


def test_the_schedules_of_the_paper() -> None:
    assert forcing_probability(12345, "constant", 10, 0.3) == 0.3
    linear = [forcing_probability(step, "linear", 100, 0.2) for step in (0, 50, 100, 200)]
    assert linear == pytest.approx([1, 0.6, 0.2, 0.2])
    k = 50.0
    for step in (0, 10, 100, 500):
        found = forcing_probability(step, "inverse_sigmoid", k, 0.0)
        assert found == pytest.approx(k / (k + math.exp(step / k)))
    assert forcing_probability(10**9, "inverse_sigmoid", k, 0.1) == 0.1


@KINDS
def test_step_by_step_on_true_elements_is_all_at_once(kind: str) -> None:
    model = make(kind, layers=2)
    batch = sequences(kind, [4, 1, 9])
    targets, _ = model.targets_of(batch.values, batch.lengths)
    code = model.code_of(batch.values, batch.lengths)
    stepped = model.scheduled(targets, code, 1.0, torch.rand(3, 2, 10))
    assert torch.allclose(stepped, model.teacher_forced(targets, code), atol=1e-5)


def test_step_by_step_on_its_own_elements_is_free_running() -> None:
    model = make("real")
    batch = sequences("real", [6, 6])
    code = model.code_of(batch.values, batch.lengths)
    stepped = model.scheduled(batch.values, code, 0.0, torch.rand(2, 2, 10))
    written, _ = model.free_running(code, 6, until_ended=False)
    assert torch.allclose(stepped[..., :D], written, atol=1e-6)


def test_each_coin_is_of_its_own_step() -> None:
    """The true element is read after the steps whose coin says so, and there alone."""
    model = make("real")
    code = torch.randn(1, model.code_dim)
    coins = torch.tensor([[0.1, 0.9, 0.1, 0.9, 0.9]])
    draws = torch.stack([coins, torch.rand(1, 5)], 1)
    targets = torch.randn(1, 5, D)
    expected, previous, state = [], torch.zeros(1, 1, D), None
    for t in range(5):
        output, state = model(previous, code, state)
        expected.append(output)
        previous = targets[:, t : t + 1] if coins[0, t] < 0.5 else output[..., :D]
    found = model.scheduled(targets, code, 0.5, draws)
    assert torch.allclose(found, torch.cat(expected, 1), atol=1e-6)


def test_characters_are_drawn_from_the_models_distribution() -> None:
    model = make("text")
    logits = torch.randn(len(VOCAB) + 1)
    many = 20_000
    draws = torch.rand(many, generator=torch.Generator().manual_seed(0))
    drawn = model.guess(logits.expand(many, -1), draws)
    shares = drawn.bincount(minlength=len(VOCAB) + 1) / many
    assert torch.allclose(shares, logits.softmax(0), atol=0.015)
    rows = torch.randn(200, len(VOCAB) + 1, generator=torch.Generator().manual_seed(0))
    assert (rows.softmax(1).cumsum(1)[:, -1] < 1).any(), "a sum may be rounded below a draw"
    assert int(model.guess(rows, torch.ones(200)).max()) == len(VOCAB)
    assert int(model.guess(logits[None])) == int(logits.argmax())
    code, targets = torch.randn(1, model.code_dim), torch.zeros(1, 9, dtype=torch.long)
    low, high = (model.scheduled(targets, code, 0.0, torch.full((1, 2, 9), draw)) for draw in (0.01, 0.99))
    assert torch.equal(low[:, 0], high[:, 0])
    assert not torch.allclose(low[:, 1], high[:, 1]), "what it reads has been drawn"


@KINDS
def test_what_was_predicted_and_read_again_has_no_gradient(kind: str) -> None:
    model = make(kind)
    batch = sequences(kind, [4])
    targets, _ = model.targets_of(batch.values, batch.lengths)
    code = torch.randn(1, model.code_dim)
    outputs = model.scheduled(targets, code, 0.0, torch.rand(1, 2, 10))
    outputs[:, 1:].sum().backward()  # the first step's head matters to none but the first step
    head = model.head.weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    outputs = model.scheduled(targets, code, 0.0, torch.rand(1, 2, 10, generator=torch.Generator().manual_seed(3)))
    assert head.isfinite().all()
    if kind == "real":  # nothing is drawn: the states are the same
        states = [outputs[:, t, :D] for t in range(4)]
        gradient = torch.autograd.grad(states[1].sum(), model.head.bias)[0]
        assert gradient[:D].tolist() == [1.0] * D, "of the step itself, not of the one that was read"


@KINDS
def test_training_draws_are_of_seed_epoch_step_and_place(kind: str) -> None:
    model = make(kind, teacher_forcing=0.5).train()
    batch = sequences(kind, [4, 7, 8])
    losses = {}
    for epoch, step in ((0, 0), (0, 1), (1, 0)):
        model.trainer = SimpleNamespace(global_step=0, current_epoch=epoch)  # type: ignore[assignment]
        losses[epoch, step] = float(model.training_step(batch, step)["loss"].detach())
        torch.rand(7)  # the global generator does not matter
        assert float(model.training_step(batch, step)["loss"]) == losses[epoch, step]
    assert len(set(losses.values())) == 3
    model.trainer = SimpleNamespace(global_step=0, current_epoch=0)  # type: ignore[assignment]
    longer = batch._replace(values=F.pad(batch.values, (0, 0) * (batch.values.dim() - 2) + (0, 1)))
    assert float(model.training_step(longer, 0)["loss"]) == pytest.approx(losses[0, 0]), "nor does the padding"


@KINDS
def test_a_decoder_that_is_not_conditional_reads_nothing(kind: str) -> None:
    model = make(kind, conditional=False)
    a, b = sequences(kind, [6, 6], seed=1), sequences(kind, [6, 6], seed=2)
    code = torch.randn(2, model.code_dim)
    first, second = (model.teacher_forced(model.targets_of(each.values, each.lengths)[0], code) for each in (a, b))
    assert torch.equal(first, second)
    written, _ = model.free_running(code, 6, until_ended=False)
    guessed = first[:, :6].argmax(2) if kind == "text" else first[..., :D]
    assert torch.allclose(written.double(), guessed.double(), atol=1e-6), "training is no different from use"


def test_teacher_forcing_needs_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("text").train()
    monkeypatch.setattr(model, "scheduled", None)
    model.training_step(sequences("text", [4, 7]), 0)
    model = make("text", schedule="linear", schedule_steps=10, teacher_forcing=0.0).train()
    monkeypatch.setattr(model, "scheduled", None)
    model.training_step(sequences("text", [4, 7]), 0)
    model.trainer = SimpleNamespace(global_step=5, current_epoch=0)  # type: ignore[assignment]
    with pytest.raises(TypeError):
        model.training_step(sequences("text", [4, 7]), 0)


# ---- free running ------------------------------------------------------------------------------------------------


def scripted(model: SequenceAutoencoder, outputs: Tensor) -> None:
    """Lets the decoder answer with ``outputs`` (B, T, O), whatever it reads."""

    def forward(previous: Tensor, code: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        step = 0 if state is None else state
        return outputs[:, step : step + 1], step + 1

    model.forward = forward  # type: ignore[method-assign]


def spoken(lines: list[list[int]]) -> Tensor:
    """Logits that say these tokens."""
    return F.one_hot(torch.tensor(lines), len(VOCAB) + 1).float()


def accuracy(model: SequenceAutoencoder, targets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Of what it writes by itself, whatever the codes are."""
    assert isinstance(model.elements, Symbols)
    written = model.free_running(torch.zeros(len(targets), model.code_dim), targets.shape[1], until_ended=False)
    return model.elements.accuracy(*written, targets, lengths)


def test_text_ends_where_the_model_says_so() -> None:
    model = make("text", longest=4)
    end = len(VOCAB)
    scripted(model, spoken([[2, 3, end, 1], [end, 1, 1, 1], [1, 2, 3, 4]]))
    made = model.decode(torch.zeros(3, model.code_dim))
    assert made.lengths.tolist() == [2, 0, 4]
    assert made.values.tolist() == [[3, 2, 0, 0], [0, 0, 0, 0], [4, 3, 2, 1]], "in reading order"
    assert model._sequences(made, "") == ["dc", "", "edcb"]


def test_real_numbers_end_with_the_point_that_is_the_last() -> None:
    model = make("real", longest=4, reverse_targets=False)
    outputs = torch.arange(2 * 4 * (D + 1)).view(2, 4, D + 1).float()
    outputs[..., D] = torch.tensor([[-1, 1, -1, 1], [-1, -1, -1, -1]])
    scripted(model, outputs)
    made = model.decode(torch.zeros(2, model.code_dim))
    assert made.lengths.tolist() == [2, 4]
    assert torch.equal(made.values[0, :2], outputs[0, :2, :D])
    assert not made.values[0, 2:].any()


def test_accuracy_counts_characters_at_their_place() -> None:
    model, end = make("text", longest=4, reverse_targets=False), len(VOCAB)
    lines = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 0], [1, 2, 3], [0, 0, 0], [0, 0, 0]])
    lengths = torch.tensor([3, 3, 2, 3, 0, 0])
    targets, _ = model.with_end(lines, lengths)
    said = [
        [1, 2, 3, end, 0],  # right
        [1, 5, 3, end, 0],  # one wrong
        [1, 2, 2, end, 0],  # too long
        [1, end, 3, end, 0],  # too short: what comes after its end is not read
        [end, 0, 0, 0, 0],  # the empty line
        [3, end, 0, 0, 0],  # which this is not
    ]
    scripted(model, spoken(said))
    right, exact = accuracy(model, targets, lengths)
    assert right.tolist() == pytest.approx([1, 2 / 3, 1, 1 / 3, 1, 1])
    assert exact.tolist() == [1, 0, 0, 0, 1, 0]


def test_a_line_that_never_ends_is_not_exact() -> None:
    model = make("text", longest=3, reverse_targets=False)
    scripted(model, spoken([[1, 2, 3, 1], [1, 2, 3, len(VOCAB)]]))
    lines, lengths = torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([3, 3])
    targets, _ = model.with_end(lines, lengths)
    right, exact = accuracy(model, targets, lengths)
    assert right.tolist() == [1, 1]
    assert exact.tolist() == [0, 1]


def test_evaluation_weighs_characters_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("text", longest=4, reverse_targets=False)
    end = len(VOCAB)
    batch = SequenceBatch(torch.tensor([[1, 2, 3, 4], [1, 0, 0, 0]]), torch.tensor([4, 1]), torch.tensor([-1, -1]))
    monkeypatch.setattr(model, "teacher_forced", lambda targets, code: spoken([[0] * 5] * 2))
    scripted(model, spoken([[1, 2, 3, 4, end], [5, end, 0, 0, 0]]))
    model.validation_step(batch, 0)
    assert float(model.means["token_accuracy"].compute()) == pytest.approx(4 / 5)
    assert float(model.means["exact_match"].compute()) == 0.5
    by_length = model.of_length.compute()
    assert by_length[4] == 1
    assert by_length[1] == 0
    assert by_length[2].isnan()


def test_the_error_of_real_numbers_is_that_of_free_running() -> None:
    model = make("real")
    batch = sequences("real", [5, 2])
    model.validation_step(batch, 0)
    code = model.code_of(batch.values, batch.lengths)
    written, _ = model.free_running(code, 5, until_ended=False)
    errors = []
    for i, n in enumerate((5, 2)):
        errors.append(float((written[i, :n].flip(0) - batch.values[i, :n]).square().mean()))
    assert float(model.means["mse"].compute()) == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert float(model.of_length.compute()[2]) == pytest.approx(errors[1], rel=1e-5)


def test_scores_of_lengths_are_means() -> None:
    metric = MeanOfLength(3)
    metric.update(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([2, 2, 0]))
    metric.update(torch.tensor([1.0]), torch.tensor([2]))
    found = metric.compute()
    assert found[2] == pytest.approx(2 / 3)
    assert found[0] == 0.5
    assert found[[1, 3]].isnan().all()


# ---- what it is held against -------------------------------------------------------------------------------------


def test_resampled_as_numpy_interpolates() -> None:
    values = sequences("real", [7, 3, 1]).values.double()
    lengths, new = torch.tensor([7, 3, 1]), torch.tensor([4, 6, 2])
    found = resample(values, lengths, new)
    for i in range(3):
        at = np.linspace(0, int(lengths[i]) - 1, int(new[i]))
        known = np.arange(int(lengths[i]))
        for d in range(D):
            expected = np.interp(at, known, values[i, : lengths[i], d].numpy())
            assert found[i, : new[i], d].numpy() == pytest.approx(expected)
        assert not found[i, new[i] :].any()
    middle = resample(values, lengths, torch.tensor([1, 1, 1]))
    assert torch.allclose(middle[0, 0], values[0, 3])


def test_as_many_numbers_as_there_are_leave_nothing_out() -> None:
    model = make("real", code_dim=9 * D)
    batch = sequences("real", [9, 4, 1])
    kept = model.resampled_reconstruction(batch.values, batch.lengths)
    assert torch.allclose(kept, batch.values, atol=1e-6)
    few = make("real", code_dim=2 * D).resampled_reconstruction(batch.values, batch.lengths)
    n = 9
    line = torch.lerp(batch.values[0, 0], batch.values[0, n - 1], torch.linspace(0, 1, n)[:, None])
    assert torch.allclose(few[0], line, atol=1e-5), "of two points a straight line is left"


def test_principal_components_of_equally_long_sequences_are_pcas() -> None:
    from sklearn.decomposition import PCA

    model = make("real", code_dim=4)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 27, generator=generator) @ torch.randn(27, 27, generator=generator)
    values, lengths = mixed.view(40, 9, D), torch.full((40,), 9)
    batches = [SequenceBatch(v, n, n) for v, n in zip(values.split(16), lengths.split(16), strict=True)]
    data = SimpleNamespace(sequences=lambda part: iter(batches))
    model.trainer = SimpleNamespace(ckpt_path=None, datamodule=data)  # type: ignore[assignment]
    model.on_fit_start()
    reference = PCA(4).fit(mixed.numpy())
    expected = reference.inverse_transform(reference.transform(mixed.numpy()))
    found = model.pca_reconstruction(values, lengths).flatten(1)
    assert np.abs(found.numpy() - expected).max() < 1e-3
    shorter = model.pca_reconstruction(values[:, :6], torch.full((40,), 5))
    assert shorter.shape == (40, 6, D)
    assert not shorter[:, 5:].any()


def test_squared_error_leaves_the_padding_out() -> None:
    a, b = torch.zeros(2, 4, D), torch.ones(2, 4, D)
    b[1, 0] = 3
    assert squared_error(a, b, torch.tensor([4, 1])).tolist() == [1, 9]


# ---- use ---------------------------------------------------------------------------------------------------------


def test_lines_come_back_as_lines() -> None:
    model = make("text").train()
    lines = ["abc", "", "f", "aaaaaaaaaaaaaaaa"]
    codes = model.encode(lines)
    assert codes.shape == (4, model.code_dim)
    assert model.training, "the mode is as it was"
    made = model.reconstruct(lines)
    assert [type(line) for line in made] == [str] * 4
    for i, line in enumerate(lines):
        assert torch.allclose(model.encode(line)[0], codes[i], atol=1e-6)
        assert model.reconstruct(line) == made[i]
    assert all(len(line) <= model.longest for line in made)


def test_a_path_leads_from_one_reconstruction_to_the_other() -> None:
    for kind, a, b in (("text", "abc", "fedc"), ("real", torch.randn(4, D), torch.randn(7, D))):
        model = make(kind)
        path = model.interpolate(a, b, 5)
        assert len(path) == 5
        for end, given in ((path[0], a), (path[-1], b)):
            expected = model.reconstruct(given)
            assert end == expected if kind == "text" else torch.allclose(end, expected, atol=1e-5)
        with pytest.raises(ValueError, match="steps=1: expected at least 2"):
            model.interpolate(a, b, 1)


def test_tensors_come_back_as_tensors() -> None:
    model = make("real")
    rows = [torch.randn(4, D), torch.randn(1, D)]
    made = model.reconstruct(rows)
    assert [row.shape[1] for row in made] == [D, D]
    assert torch.allclose(model.reconstruct(rows[1]), made[1], atol=1e-6)
    same = torch.randn(3, 5, D)
    assert model.encode(same).shape == (3, model.code_dim)
    assert torch.allclose(model.encode(same)[1:2], model.encode(same[1]), atol=1e-6)


SCALING = {"shift": [1e9, -5.0, 0.0], "scale": [2.0, 0.01, 1.0]}


def test_series_are_taken_and_given_in_their_own_units() -> None:
    """In NumPy, in float64, as arrays far from zero need it; and the same as the data module gives them."""
    model, plain = make("real", scaling=SCALING, longest=6), make("real", longest=6)
    draw = np.random.default_rng(0)
    scaled = [draw.normal(size=(length, D)) for length in (4, 6, 1)]
    shift, scale = SCALING["shift"], SCALING["scale"]
    series = [shift + scale * each for each in scaled]
    codes = plain.encode([torch.from_numpy(each) for each in scaled])
    assert torch.allclose(model.encode(series), codes, atol=1e-5)
    assert torch.allclose(model.encode(series[1]), codes[1:2], atol=1e-5)
    assert torch.allclose(model.encode(np.stack([series[0]] * 2)), codes[:1].expand(2, -1), atol=1e-5)

    expected = [shift + scale * made.numpy() for made in plain.reconstruct([torch.from_numpy(x) for x in scaled])]
    found = model.reconstruct(series)
    decoded = model.decode(model.encode(series).numpy())
    for one, other, wanted in zip(found, decoded, expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, wanted, rtol=1e-12, atol=1e-4)
        np.testing.assert_allclose(other, wanted, rtol=1e-12, atol=1e-4)
    alone = model.reconstruct(series[1])
    assert isinstance(alone, np.ndarray)
    assert alone.shape[1] == D
    path = model.interpolate(series[0], series[1], 3)
    np.testing.assert_allclose(path[2], alone, atol=1e-4)
    as_tensors = model.reconstruct([torch.from_numpy(each) for each in series])
    assert isinstance(as_tensors[0], Tensor)
    np.testing.assert_allclose(as_tensors[0].numpy(), found[0])
    assert isinstance(model.decode(model.encode(series))[0], Tensor)
    assert model.reconstruct(tuple(series))[0].shape == found[0].shape


def test_series_of_one_channel_need_no_axis_for_it() -> None:
    model = make("real", sequence_dim=1, scaling={"shift": [10.0], "scale": [5.0]}, longest=6)
    series = np.random.default_rng(0).normal(10, 5, (4, 6))
    codes = model.encode(series)
    assert codes.shape == (4, model.code_dim)
    for given in (series[2], series[2][:, None], torch.from_numpy(series[2])):
        assert torch.allclose(model.encode(given), codes[2:3], atol=1e-6)
        assert model.reconstruct(given).ndim == given.ndim
    assert [made.ndim for made in model.reconstruct(series)] == [1] * 4
    assert [made.ndim for made in model.interpolate(series[0], series[1], 3)] == [1] * 3
    with pytest.raises(ValueError, match=r"a sequence of \(6, 2\): expected tensors or arrays \(N, 1\) or \(N,\)"):
        model.encode([np.zeros((6, 2))])
    with pytest.raises(ValueError, match=r"a sequence of \(2,\): step 1 has nan or inf, expected finite numbers"):
        model.encode([[1.0], np.array([1, np.nan])][1:])


def test_series_in_small_types_are_given_in_ones_that_hold_the_answer() -> None:
    model = make("real", sequence_dim=1, scaling={"shift": [1e5], "scale": [1.0]}, longest=6)
    series = np.full(6, 60_000, np.float16)
    for given in (series, torch.from_numpy(series), torch.from_numpy(series).bfloat16()):
        made = model.reconstruct(given)
        assert str(made.dtype).endswith("float32")
        assert np.allclose(made, 1e5, atol=10)
    yes = np.array([True, False, True])
    for bits in (yes, torch.from_numpy(yes)):
        assert torch.equal(model.encode(bits), model.encode(yes.astype(float)))


def test_a_sequence_that_does_not_end_has_the_right_length_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of the longest in its batch, where decoding stops."""
    model = make("real")
    with torch.no_grad():
        model.head.bias[-1] = -100.0  # never the last
    monkeypatch.setattr(model, "log_dict", lambda values: logged.update(values))
    logged: dict[str, Tensor] = {}
    model.validation_step(sequences("real", [4, 7, 7]), 0)
    model.on_validation_epoch_end()
    assert float(logged["val/length_accuracy"]) == 0


def test_drawings_are_read_as_batches_have_them() -> None:
    data = SketchSequences(Glyphs(characters="OLB", variants=0), batch_size=3)
    model = make("real", scale_factor=data.scale_factor, longest=data.longest)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    drawings = [model.to_sketch(row[:n]) for row, n in zip(batch.values, batch.lengths.tolist(), strict=True)]
    assert torch.allclose(model.encode(drawings), model.encode(batch), atol=1e-4)
    table = data.source.parts["val"]
    raw = torch.cat([table.offsets[: table.lengths[0]].float(), table.lifted[: table.lengths[0], None].float()], 1)
    moved = Sketch(raw)
    moved.points[0, :2] += 50  # where a drawing is on the page does not matter
    for found, expected in zip(moved.polylines(), drawings[0].polylines(), strict=True):
        assert np.abs((found - found[0]) - (expected - expected[0])).max() < 1e-2
    assert torch.allclose(model.encode(moved), model.encode(batch)[:1], atol=1e-4)
    made = model.reconstruct(drawings)
    assert all(isinstance(drawing, Sketch) for drawing in made)


def test_what_cannot_be_read_is_refused() -> None:
    text, real = make("text"), make("real")
    with pytest.raises(ValueError, match=r"character 1: 'é' \(U\+00E9\) is not one of the vocabulary's 6"):
        text.encode("aé")
    known = make("text", vocab=["<unk>", *VOCAB])
    assert known.encode("aé").shape == (1, known.code_dim)
    with pytest.raises(ValueError, match=r"a sequence of \(4, 2\): expected tensors or arrays \(N, 3\)"):
        real.encode([torch.randn(4, 2)])
    with pytest.raises(ValueError, match=r"a sequence of \(0, 3\)"):
        real.encode(torch.zeros(0, D))
    with pytest.raises(ValueError, match="a sequence of str: expected tensors"):
        real.encode("abc")
    with pytest.raises(ValueError, match="expected text"):
        text.encode([torch.zeros(3)])
    for nothing in ([], 5, None):
        with pytest.raises(ValueError, match=f"sequences={re.escape(repr(nothing))}: expected a sequence, or a list"):
            text.encode(nothing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_dim": 3}, "with sequence_dim=3: expected exactly one of the two"),
        ({"vocab": None}, "vocab=null with sequence_dim=None: expected exactly one of the two"),
        ({"hidden": 0}, "hidden=0: expected at least 1"),
        ({"code_dim": 0}, "code_dim=0: expected at least 1"),
        ({"cell": "rnn"}, "cell='rnn': expected 'lstm' or 'gru'"),
        ({"schedule": "cosine"}, "schedule='cosine': expected 'constant', 'linear' or 'inverse_sigmoid'"),
        ({"schedule_steps": 0}, "schedule_steps=0: expected at least 1"),
        ({"conditional": False, "teacher_forcing": 0.5}, "expected 'constant' and 1 with conditional=false"),
        ({"teacher_forcing": 1.5}, r"teacher_forcing=1.5: expected a number in \[0, 1\]"),
    ],
)
def test_impossible_models_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("text", **options)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_forget_gates_begin_open(cell: str) -> None:
    torch.manual_seed(0)
    model = SequenceAutoencoder(longest=5, vocab=VOCAB, cell=cell, hidden=8, layers=2)  # type: ignore[arg-type]
    for network in (model.encoder, model.decoder):
        for name, bias in network.named_parameters():
            if name.startswith("bias_ih"):
                other = network.get_parameter(name.replace("_ih", "_hh"))
                assert bool(((bias + other)[8:16] == 1).all()) == (cell == "lstm")


# ---- training ----------------------------------------------------------------------------------------------------


def test_data_without_sequences_are_refused() -> None:
    model = make("real")
    model.trainer = SimpleNamespace(ckpt_path=None, datamodule=Glyphs("L"))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"data: Glyphs has no sequences\(part\), of which PCA is computed; expected"):
        model.on_fit_start()


@pytest.mark.slow
def test_it_learns_to_copy_short_lines(fit: Callable[..., CLI], tmp_path: Any) -> None:
    lines = [f"{a}{b}{c}" for a in "abcdefgh" for b in "klmnop" for c in "uvwxyz"]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "lines.txt").write_text("\n".join(lines[i] for i in order))
    cli = fit(
        *("--model", "lit_models.seq_autoencoder.SequenceAutoencoder", "--model.code_dim", 16, "--model.hidden", 48),
        *("--data", "datamodules.sequences.TextLines", "--data.source", tmp_path / "lines.txt"),
        *("--data.batch_size", 16, "--trainer.max_epochs", 40, "--trainer.check_val_every_n_epoch", 40),
        *("--run.name", "copy/lines"),
    )
    found = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert found["test/exact_match"] > 0.9, "of lines that it has not seen"
    assert found["test/token_accuracy"] >= found["test/exact_match"]
