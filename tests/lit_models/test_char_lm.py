"""Character language models: exact cells, truncated back-propagation, sampling, and what the pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.text import CharText, TextBatch
from experiments.cli import CLI
from lit_models import char_lm
from lit_models.char_lm import CharLM, carried, nats_per_character, text_metrics
from lit_models.figures.char_lm import TEMPERATURES, illustrate
from lit_models.figures.text_probes import (
    accuracy_by_distance,
    bracket_depth,
    closing_choices,
    detector_cells,
    gradient_reach,
    indentation,
    inside_quotes,
    line_position,
)
from lit_models.networks.recurrent import CELLS, RecurrentStack, cell_jacobian_terms, unroll
from lit_models.parts.optim import DecayAfter
from lit_models.parts.sampling import draw
from tests.conftest import QUIET

VOCAB = ["\n", " ", "a", "b", "c", "d"]
ALL_CELLS = pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])


def make(cell: str = "lstm", **options) -> CharLM:
    torch.manual_seed(0)
    return CharLM(VOCAB, cell=cell, **{"layers": 2, "hidden": 12, "init_range": 0.4, **options})  # type: ignore[arg-type]


def codes(rows: int, steps: int, seed: int = 1) -> Tensor:
    return torch.randint(0, len(VOCAB), (rows, steps), generator=torch.Generator().manual_seed(seed))


def batch(inputs: Tensor, fresh: bool) -> TextBatch:
    return TextBatch(inputs[:, :-1], inputs[:, 1:], torch.full((len(inputs),), fresh))


# ---- cells -------------------------------------------------------------------------------------------------------


@ALL_CELLS
def test_the_written_out_cell_is_the_fused_one(cell: str) -> None:
    torch.manual_seed(0)
    layer = CELLS[cell](5, 7, batch_first=True)
    inputs = torch.randn(3, 20, 5)
    state = tuple(torch.randn(1, 3, 7) for _ in range(2 if cell == "lstm" else 1))
    fused, _ = layer(inputs, state if cell == "lstm" else state[0])
    steps = unroll(layer, inputs, state)
    written = torch.stack(steps["h"], 1)
    assert (written - fused).abs().max() < 1e-6

    weight = torch.randn_like(fused)
    expected = torch.autograd.grad((fused * weight).sum(), list(layer.parameters()))
    found = torch.autograd.grad((written * weight).sum(), list(layer.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


@pytest.mark.parametrize("layer_norm", [False, True])
@ALL_CELLS
def test_the_opened_stack_predicts_as_the_model_does(cell: str, layer_norm: bool) -> None:
    model = make(cell, layer_norm=layer_norm).eval()
    text = codes(2, 30)
    logits, _ = model(text)
    opened = model.recurrent.open(model.embed(text))
    top = model.recurrent.norms[-1](torch.stack(opened[-1]["h"], 1))
    assert (model.decoder(top) - logits).abs().max() < 1e-5
    gates = {"rnn": {"h"}, "lstm": set("ifgoch"), "gru": set("rznh")}
    assert set(opened[0]) == gates[cell]


def test_the_four_terms_add_up_to_the_jacobian() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(4, 6, batch_first=True).double()
    inputs = torch.randn(1, 5, 4, dtype=torch.double)
    t = 3
    steps = unroll(layer, inputs)
    terms = cell_jacobian_terms(layer, steps, t)
    assert terms.keys() == {"direct", "forget", "input", "candidate"}
    after = steps["c"][t]
    rows = [torch.autograd.grad(after[0, k], steps["c"][t - 1], retain_graph=True)[0][0] for k in range(6)]
    assert torch.allclose(torch.stack(list(terms.values())).sum(0)[0], torch.stack(rows), atol=1e-12)
    assert torch.equal(terms["direct"][0], torch.diag(steps["f"][t][0])), "the additive term is the forget gate"


@ALL_CELLS
def test_the_state_after_a_text_is_that_after_its_parts(cell: str) -> None:
    model = make(cell).eval()
    text = codes(2, 20)
    whole, _ = model(text)
    first, state = model(text[:, :8])
    second, _ = model(text[:, 8:], state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)


# ---- constructor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_the_forget_gate_starts_at_its_bias(forget_bias: float) -> None:
    model = make(hidden=8, forget_bias=forget_bias)
    for layer in model.recurrent.layers:
        both = layer.bias_ih_l0 + layer.bias_hh_l0
        assert torch.equal(both[8:16], torch.full((8,), forget_bias))
        assert both[:8].abs().max() > 0


def test_weights_start_in_their_range() -> None:
    model = make("gru", init_range=0.01)
    largest = max(float(p.detach().abs().max()) for p in model.parameters())
    assert 0.009 < largest <= 0.01


def test_tied_weights_are_one_matrix() -> None:
    model = make(tied=True, embedding_dim=12)
    assert model.decoder.weight is model.embedding.weight
    with pytest.raises(ValueError, match="embedding_dim=None with tied=true: expected 12, as hidden is"):
        make(tied=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lsmt"}, "cell='lsmt': expected 'rnn', 'lstm' or 'gru'; did you mean 'lstm'"),
        ({"hidden": 0}, "hidden=0: expected at least 1"),
        ({"layers": 0}, "layers=0: expected at least 1"),
        ({"embedding_dim": 0}, "embedding_dim=0: expected at least 1, or null for one-hot input"),
        ({"dropout": 1.0}, r"dropout=1.0: expected a number in \[0, 1\)"),
        ({"weight_drop": -0.1}, r"weight_drop=-0.1: expected a number in \[0, 1\)"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_locked_mask_is_one_for_all_steps() -> None:
    stack = RecurrentStack("rnn", 3, 64, 1, dropout=0.5, locked=True)
    dropped = stack.drop(torch.ones(2, 9, 64))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1]), "each row has its own"
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    stack.locked = False
    free = stack.drop(torch.ones(2, 9, 64))
    assert not torch.equal(free, free[:, :1].expand_as(free))
    stack.eval()
    assert torch.equal(stack.drop(torch.ones(2, 9, 64)), torch.ones(2, 9, 64))


@ALL_CELLS
def test_weight_drop_is_of_training_only_and_leaves_the_weights(cell: str) -> None:
    model = make(cell, weight_drop=0.5)
    kept = {name: p.clone() for name, p in model.named_parameters()}
    text = codes(2, 10)
    assert not torch.equal(model(text)[0], model(text)[0])
    # The first step reads no recurrent weight, since its state is zero.
    assert torch.equal(model(text[:, :1])[0], model(text[:, :1])[0])
    model.eval()
    assert torch.equal(model(text)[0], model(text)[0])
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    model.train()(text)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_schedule_is_char_rnns() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = DecayAfter(optimizer, after=10, factor=0.97)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0] * 10 + [0.97, 0.97**2, 0.97**3])


# ---- loss and truncated back-propagation ---------------------------------------------------------------------------


def test_units() -> None:
    nats = nats_per_character(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, -100]]))
    assert nats.flatten()[:5].tolist() == pytest.approx([math.log(8)] * 5)
    assert nats[1, 2] == 0
    scores = text_metrics(torch.tensor(math.log(8)))
    assert {name: float(v) for name, v in scores.items()} == pytest.approx(
        {"nats_per_char": math.log(8), "bits_per_char": 3, "perplexity": 8}
    )


@ALL_CELLS
def test_the_state_is_carried_from_window_to_window(cell: str) -> None:
    model = make(cell)
    text = codes(3, 21)
    logits, _ = model(text[:, :20])
    expected = float(nats_per_character(logits[:, 10:], text[:, 11:]).detach().mean())

    def loss(model: CharLM, window: Tensor, fresh: bool) -> float:
        return float(model.training_step(batch(window, fresh), 0)["loss"].detach())

    loss(model, text[:, :11], fresh=True)
    assert loss(model, text[:, 10:], fresh=False) == pytest.approx(expected, abs=1e-6)
    # and a fresh row forgets it
    alone = loss(make(cell), text[:, 10:], fresh=True)
    assert loss(model, text[:, 10:], fresh=True) == pytest.approx(alone, abs=1e-6)
    assert abs(alone - expected) > 1e-4


def test_some_rows_start_anew_and_others_go_on() -> None:
    state = [(torch.ones(1, 2, 3), torch.ones(1, 2, 3))]
    begun = carried(state, torch.tensor([True, False]))
    assert begun is not None
    for s in begun[0]:
        assert s[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert carried(state, torch.zeros(5, dtype=torch.bool)) is None, "rows of another batch size are others"


@ALL_CELLS
def test_the_gradient_crosses_steps_but_no_windows(cell: str) -> None:
    model = make(cell, embedding_dim=5)
    first = torch.full((1, 8), 2)  # only "a"
    second = torch.tensor([[3, 4, 5, 4, 5, 4, 5, 4, 5]])  # "b" at the beginning and never again
    model.training_step(batch(first, fresh=True), 0)
    model.training_step(batch(second, fresh=False), 1)["loss"].backward()
    gradient = model.embedding.weight.grad
    assert gradient[2].abs().max() == 0, "the first window's characters get no gradient from the second's loss"
    assert model._state is not None  # what the second was started from was not cut off within it
    logits, _ = model(second[:, :-1])
    (reach,) = torch.autograd.grad(nats_per_character(logits, second[:, 1:])[0, -1], model.embedding.weight)
    assert reach[3].abs().max() > 0, "the last loss reaches the window's first character"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_validation_scores_every_character_once_from_a_fresh_state(
    batch_size: int, tmp_path: Path, fit: Callable[..., CLI]
) -> None:
    file = tmp_path / "text.txt"
    text = "".join(VOCAB[i] for i in codes(1, 3000)[0].tolist())
    file.write_text(text)
    cli = fit(
        "--model",
        "lit_models.char_lm.CharLM",
        "--data",
        "datamodules.text.CharText",
        *("--model.hidden", "8", "--data.source", str(file), "--data.seq_len", "10"),
        *("--data.batch_size", str(batch_size), "--data.eval_context", "200", "--data.test_fraction", "0.05"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--test_after_fit", "false"),
        *("--best.monitor", "val/nats_per_char"),
    )
    val = text[2550:2850]
    nats = cli.model.cpu().score(val[1:], prime=val[0])
    # With several rows each is warmed by 200 characters rather than all before it.
    tolerance = 1e-5 if batch_size == 1 else 1e-3
    assert float(cli.trainer.callback_metrics["val/nats_per_char"]) == pytest.approx(float(nats.mean()), abs=tolerance)


def test_the_averaged_weights_are_what_is_tested(fit: Callable[..., CLI]) -> None:
    cli = fit(
        *("--model", "lit_models.char_lm.CharLM", "--data", "datamodules.text.CharText", "--model.hidden", "8"),
        *(
            "--data.limit",
            "3000",
            "--data.batch_size",
            "4",
            "--data.seq_len",
            "10",
            "--best.monitor",
            "val/nats_per_char",
        ),
        *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "10"),
        "--trainer.callbacks+=experiments.callbacks.averaged_weights.AveragedWeights",
    )
    best = torch.load(cli.folder.best_checkpoint(), weights_only=True)
    tested = cli.model.state_dict()
    averages, last = best["state_dict"], best["current_model_state"]
    assert all(torch.equal(tested[name], averages[name]) for name in averages)
    assert not all(torch.equal(last[name], averages[name]) for name in averages)


# ---- use -----------------------------------------------------------------------------------------------------------


@ALL_CELLS
def test_sampling_follows_the_model(cell: str) -> None:
    model = make(cell)
    text = model.sample("ab", length=40, seed=3)
    assert isinstance(text, str)
    assert len(text) == 40
    assert set(text) <= set(VOCAB)
    assert text == model.sample("ab", length=40, seed=3)
    assert text != model.sample("ab", length=40, seed=4)
    assert "".join(model.stream("ab", length=40, seed=3)) == text
    assert model.training, "sampling leaves the mode as it was"

    greedy = model.sample("ab", length=12, temperature=0)
    assert greedy == model.sample("ab", length=12, top_k=1)
    written = "ab"
    model.eval()
    for _ in range(12):
        logits, _ = model(model.to_codes(written)[None])
        written += VOCAB[int(logits[0, -1].argmax())]
    assert written == "ab" + greedy


def test_primes_of_different_lengths_do_not_disturb_each_other() -> None:
    model = make()
    alone = [model.sample(prime, length=10, temperature=0) for prime in ("a", "bcd ab", "")]
    assert model.sample(["a", "bcd ab", ""], length=10, temperature=0) == alone


def test_unknown_characters() -> None:
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\)"):
        make().sample("é")
    for place in (0, 3):
        vocab = [*VOCAB[:place], "<unk>", *VOCAB[place:]]
        model = CharLM(vocab, hidden=8)
        with torch.no_grad():
            model.decoder.bias[place] = 50
        assert set(model.sample("é", length=50, seed=0)) <= set(VOCAB), "<unk> stands for a character, it is none"
    assert model.sample([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0: expected at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: expected at least 0"),
        ({"temperature": math.nan}, "temperature=nan: expected at least 0"),
        ({"top_k": 0}, "top_k=0: expected at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0: expected a number in \(0, 1\]"),
        ({"top_k": 2.0}, "top_k=2.0: expected a whole number"),
        ({"length": 2.5}, "length=2.5: expected a whole number"),
        ({"seed": 0.5}, "seed=0.5: expected a whole number"),
        ({"prime": 3}, "prime=3: expected a text"),
        ({"prime": "é"}, "'é'"),
    ],
)
def test_impossible_ways_to_sample(options: dict, message: str) -> None:
    for verb in (make().sample, make().stream):  # a stream does not wait for its first character
        with pytest.raises(ValueError, match=message):
            verb(**{"prime": "a", **options})


def test_draws_have_the_models_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    many = logits.expand(40000, -1)
    generator = torch.Generator().manual_seed(0)

    def shares(**options) -> Tensor:
        return torch.bincount(draw(many, generator=generator, **options), minlength=4) / len(many)

    assert torch.allclose(shares(), logits[0].softmax(0), atol=0.01)
    assert torch.allclose(shares(temperature=2.0), (logits[0] / 2).softmax(0), atol=0.01)
    two = F.pad(logits[0, :2].softmax(0), (0, 2))
    assert torch.allclose(shares(top_k=2), two, atol=0.01)
    # softmax is .644 .237 .087 .032: the first two reach .8, the first alone .6
    assert torch.allclose(shares(top_p=0.8), two, atol=0.01)
    assert shares(top_p=0.6).tolist() == [1, 0, 0, 0]


def test_ties_are_cut_too() -> None:
    codes = draw(torch.zeros(2000, 5), top_k=2, generator=torch.Generator().manual_seed(0))
    assert len(codes.unique()) == 2


def test_a_trained_model_can_be_copied() -> None:
    model = make()
    model.training_step(batch(codes(2, 6), fresh=True), 0)
    copy = deepcopy(model)
    assert copy._state is not None


def test_score_is_the_chain_rule() -> None:
    model = make().eval()
    nats = model.score("abca", prime="d")
    assert nats.shape == (4,)
    for k, char in enumerate("abca"):
        logits, _ = model(model.to_codes("d" + "abca"[:k])[None])
        assert float(nats[k]) == pytest.approx(-float(logits[0, -1].log_softmax(0)[VOCAB.index(char)]), abs=1e-5)
    with pytest.raises(ValueError, match="at least one character"):
        model.score("")
    for wrong in (3, [3], ["a", None]):
        with pytest.raises(ValueError, match=r"text=.*: expected a text"):
            model.score(wrong)
    first, second = model.score(("abca", "bb"), prime="d")
    assert torch.equal(first, nats)
    assert torch.equal(second, model.score("bb", prime="d"))


@ALL_CELLS
def test_a_long_text_is_read_in_pieces_with_the_same_result(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(cell)
    text = "".join(VOCAB[code] for code in codes(1, 500)[0])
    whole, after = model.score(text, prime=text[:30]), model.sample(text, 20, seed=0)
    seen: list[int] = []
    monkeypatch.setattr(char_lm, "PIECE", 64)
    model.recurrent.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    assert torch.allclose(model.score(text, prime=text[:30]), whole, atol=1e-5)
    assert model.sample(text, 20, seed=0) == after
    assert max(seen) == 64
    assert sum(seen) == 529 + 500 + 20


# ---- what the pictures are made of ---------------------------------------------------------------------------------


def test_detectors() -> None:
    assert line_position("ab\ncd") == [1, 2, 0, 1, 2]
    assert indentation("  a b\n c") == [1, 2, 2, 2, 2, 0, 1, 1]
    assert inside_quotes('a"b"c') == [0, 1, 1, 0, 0]
    assert inside_quotes('"a\n\nb') == [1, 1, 1, 0, 0]
    assert bracket_depth("(a[b])") == [1, 1, 2, 2, 1, 0]


def test_a_planted_cell_is_found() -> None:
    text = 'he said "yes" and\nshe said "no" to "it"\n' * 5
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(len(text), 20))
    activations[:, 7] = -np.array(inside_quotes(text)) + 0.1 * activations[:, 7]
    name, unit, correlation = detector_cells(activations, text)[0]
    assert (name, unit) == ("inside quotes", 7)
    assert correlation < -0.9
    assert "indentation" not in [found[0] for found in detector_cells(activations, text)], "it never varies"


def test_closing_choices() -> None:
    text = "(a[b]c)"
    vocab = sorted(set(text))
    logits = torch.zeros(len(text), len(vocab))
    logits[:, vocab.index("]")] = 1
    choices = closing_choices(logits, text, vocab)
    assert choices == [(2, True), (6, False)]
    assert accuracy_by_distance(choices, (1, 5)) == [("1–4", 1, 1.0), ("5 and more", 1, 0.0)]
    assert closing_choices(logits, text, ["(", ")", "a"]) == [], "one closing character is no choice"


def test_the_gradients_reach_against_its_definition() -> None:
    model = make("lstm", layers=1).eval()
    text = codes(2, 9)
    with torch.inference_mode():  # as in a test
        reach = gradient_reach(model, text)
    assert reach.keys() == {"h", "c"}
    assert reach["h"].shape == (8,)
    # ∂L/∂h at lag 0 is Vᵀ (p − y)
    logits, _ = model(text[:, :-1])
    slope = (logits[:, -1].softmax(1) - F.one_hot(text[:, -1], len(VOCAB))) @ model.decoder.weight
    assert float(reach["h"][0]) == pytest.approx(float(slope.norm(dim=1).log10().mean()), abs=1e-5)


def test_an_elman_network_without_recurrence_forgets_at_once() -> None:
    model = make("rnn", layers=1).eval()
    nn.init.zeros_(model.recurrent.layers[0].weight_hh_l0)
    reach = gradient_reach(model, codes(2, 9))["h"]
    assert reach[0] > -3
    assert (reach[1:] <= -37).all()


def test_a_bias_of_one_lets_the_gradient_reach_further() -> None:
    far = {
        bias: float(gradient_reach(make(forget_bias=bias, init_range=0.08), codes(4, 41))["c"][-1]) for bias in (0, 1)
    }
    assert far[1] > far[0] + 5


@pytest.mark.slow
@ALL_CELLS
def test_pictures_of_any_cell(cell: str) -> None:
    text = 'def f(x):\n    return ["a", (x)]\n' * 20
    vocab = sorted(set(text))
    model = CharLM(vocab, cell=cell, hidden=10)  # type: ignore[arg-type]
    rows = model.to_codes(text)[None]
    batch = TextBatch(rows[:, :-1], rows[:, 1:], torch.ones(1, dtype=torch.bool))
    model.validation_step(batch, 0)
    before = torch.get_rng_state()
    pictures = illustrate(model, batch)
    names = {"samples", "samples.txt", "surprise", "cells", "saturation", "gradient_reach", "closing"}
    assert set(pictures) == names
    assert [line for line in pictures["samples.txt"].splitlines() if line.startswith("----")] == [
        f"---- temperature {temperature} ----" for temperature in TEMPERATURES
    ]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_data_and_model_fit_each_other() -> None:
    data = CharText(limit=5000, batch_size=2, seq_len=10)
    data.setup()
    first = next(iter(data.train_dataloader()))
    logits, _ = CharLM(data.vocab, hidden=8)(first.inputs)
    assert logits.shape == (2, 10, len(data.vocab))


@pytest.mark.slow
def test_training_goes_on_with_new_text_and_the_old_vocabulary(
    fit: Callable[..., CLI], mistake: Callable[..., str], tmp_path: Path
) -> None:
    new = tmp_path / "new.txt"
    new.write_text("def f(x): return x\n" * 200)
    config = [
        *("--model", "lit_models.char_lm.CharLM", "--data", "datamodules.text.CharText", "--model.hidden", "8"),
        *("--data.batch_size", "4", "--data.seq_len", "10", "--best.monitor", "val/nats_per_char"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--test_after_fit", "false"),
    ]
    old = fit(*config, "--data.limit", "3000")
    checkpoint = str(old.folder.best_checkpoint())
    more = ["--data.source", str(new), "--data.vocab_from", checkpoint, "--init_from", checkpoint]
    untouched = fit(*config, *more, "--trainer.limit_train_batches", "0")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert untouched.model.vocab == old.model.vocab
    assert all(torch.equal(value, weights[name]) for name, value in untouched.model.state_dict().items())
    line = mistake("fit", *config, *more, "--model.hidden", "9", *QUIET)
    assert line.startswith(
        f"init_from={checkpoint}: nothing in it fits CharLM: it holds lit_models.char_lm.CharLM with"
    )
    assert "recurrent.layers.0.weight_ih_l0 (32, " in line


def test_pictures_leave_padding_out_and_stand_unknown_characters() -> None:
    text = "ab cd\n" * 40
    model = CharLM(["<unk>", *VOCAB], hidden=10)
    inputs = model.to_codes(text + "é" + text)[None]
    targets = inputs.roll(-1, 1)
    inputs, targets = F.pad(inputs, (0, 60)), F.pad(targets, (0, 60), value=-100)
    batch = TextBatch(inputs, targets, torch.ones(1, dtype=torch.bool))
    model.validation_step(batch, 0)
    assert sum(map(len, model.passage)) == 2 * len(text) + 1
    assert "cells" in illustrate(model, batch)
