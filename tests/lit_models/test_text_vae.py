"""The text VAE: its bound against exact sums, annealing and word dropout, exact masking, and what a user does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from datamodules.sequences import SequenceBatch
from experiments.cli import CLI
from lit_models.figures.text_vae import illustrate
from lit_models.text_vae import TextVAE, drop_words, kl_weight

VOCAB = list("abcdef")
END, UNKNOWN = 6, 7
FORMS = pytest.mark.parametrize("form", [{}, {"cell": "gru"}, {"latent_dim": 0}], ids=str)


def make(**options: Any) -> TextVAE:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"longest": 9, "hidden": 10, "latent_dim": 3, "embedding_dim": 5, "keep_rate": 1.0}
    model = attach(TextVAE(**{"vocab": VOCAB, **sizes, **options}))
    with torch.no_grad():  # so that codes differ and decoding goes somewhere
        for parameter in model.parameters():
            parameter *= 3
    return model.eval()


def attach(model: TextVAE, step: int = 10**6, epoch: int = 0) -> TextVAE:
    """With as much of a Trainer as a step asks for; long after the annealing."""
    model._trainer = SimpleNamespace(global_step=step, current_epoch=epoch, barebones=False)  # type: ignore[assignment]
    model._fabric = None
    return model


def batch_of(*lengths: int, padding: int = 0, seed: int = 1) -> SequenceBatch:
    """Random lines, with 0 behind the end and so many steps more than the longest has."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, len(VOCAB), (len(lengths), 9), generator=generator)
    counts = torch.tensor(lengths)
    steps = max(lengths) + padding
    values = torch.cat([values, values], 1)[:, :steps] * (torch.arange(steps) < counts[:, None])
    return SequenceBatch(values, counts, torch.full_like(counts, -1))


def select(batch: SequenceBatch, rows: Any) -> SequenceBatch:
    return SequenceBatch(*(part[rows] for part in batch))


def lines_of(*texts: str) -> tuple[Tensor, Tensor]:
    values = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in zip(values, texts, strict=True):
        row[: len(text)] = torch.tensor([VOCAB.index(char) for char in text])
    return values, torch.tensor([len(text) for text in texts])


def what_it_reads(model: TextVAE, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the decoder reads from now on, call by call."""
    seen: list[Tensor] = []
    forward = model.forward

    def watched(previous: Tensor, z: Tensor, state: Any = None) -> Any:
        seen.append(previous)
        return forward(previous, z, state)

    monkeypatch.setattr(model, "forward", watched)
    return seen


# ---- the bound -----------------------------------------------------------------------------------------------------


@FORMS
def test_the_likelihood_of_a_line_is_that_of_its_characters_and_its_end(form: dict) -> None:
    model = make(**form)
    texts = ["abc", "", "fedcbafed", "a"]
    z = torch.randn(len(texts), model.latent_dim)
    found = model.log_likelihood(*lines_of(*texts), z)
    for i, text in enumerate(texts):
        previous, state, total = END, None, 0.0
        for token in [*map(VOCAB.index, text), END]:
            logits, state = model(torch.tensor([[previous]]), z[i : i + 1], state)
            total += float(logits[0, 0].log_softmax(0)[token])
            previous = token
        assert float(found[i]) == pytest.approx(total, rel=1e-5)


@FORMS
def test_all_lines_together_are_certain(form: dict) -> None:
    """The probabilities of all lines of up to n characters, and of all beginnings of n + 1, sum to 1."""
    model = make(vocab=["a", "b"], **form)
    z = torch.randn(1, model.latent_dim)
    total = 0.0
    for n in range(4):
        lines = torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.long).view(2**n, n)
        nats = model.log_likelihood(lines, torch.full((len(lines),), n), z.expand(len(lines), -1))
        total += float(nats.exp().sum())
    beginnings = torch.tensor(list(itertools.product([0, 1], repeat=4)))
    start = torch.full((16, 1), model.end)
    logits, _ = model(torch.cat([start, beginnings[:, :-1]], 1), z.expand(16, -1))
    total += float(logits.log_softmax(2).gather(2, beginnings[:, :, None]).sum((1, 2)).exp().sum())
    assert total == pytest.approx(1, abs=1e-5)


def test_the_kl_is_that_of_torch_distributions() -> None:
    model, batch = make(), batch_of(4, 1, 9)
    mean, log_var = model.posterior_of(batch.values, batch.lengths)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(model._objective(batch, (0,))["kl"], expected, atol=1e-5)


def test_the_elbo_is_reconstruction_minus_kl() -> None:
    model, batch = make(), batch_of(4, 1, 9)
    each = model._objective(batch, (0, 1, 2))
    assert torch.allclose(each["elbo"], each["reconstruction"] - each["kl"])
    expected = model.log_likelihood(batch.values, batch.lengths, each["z"])
    assert torch.allclose(each["reconstruction"], expected), "log p(x|z) of the code that was drawn"


def test_the_elbo_is_a_lower_bound_of_the_exact_likelihood() -> None:
    """With one dimension ∫ p(x|z) p(z) dz is a sum, and what the bound lacks is KL(q(z|x) ‖ p(z|x))."""
    model = make(latent_dim=1).double()
    values, lengths = lines_of("abcab")
    grid = torch.linspace(-12, 12, 4001, dtype=torch.double)
    with torch.no_grad():
        log_p = model.log_likelihood(values.expand(4001, -1), lengths.expand(4001), grid[:, None])
        mean, log_var = (part[0, 0] for part in model.posterior_of(values, lengths))
    prior = Normal(torch.zeros((), dtype=torch.double), 1.0)
    step = 24 / 4000
    exact = float((log_p + prior.log_prob(grid)).logsumexp(0)) + math.log(step)
    q = Normal(mean, (0.5 * log_var).exp())
    weights = q.log_prob(grid).exp() * step
    elbo = float((weights * log_p).sum() - kl_divergence(q, prior))
    gap = float((weights * (q.log_prob(grid) - (log_p + prior.log_prob(grid) - exact))).sum())
    assert elbo < exact - 0.01
    assert elbo == pytest.approx(exact - gap, abs=1e-3)
    lines = SequenceBatch(values.expand(4000, -1), lengths.expand(4000), lengths.expand(4000))
    with torch.no_grad():
        estimate = model._objective(lines, (0,))["elbo"]
    error = float(estimate.std()) / math.sqrt(4000)
    assert float(estimate.mean()) == pytest.approx(elbo, abs=5 * error)


def test_the_code_is_drawn_with_the_posteriors_deviation() -> None:
    model, batch = make(latent_dim=2), batch_of(*(1,) * 3000)
    with torch.no_grad():
        model.to_posterior.weight.zero_()
        model.to_posterior.bias.copy_(torch.tensor([3.0, -1.0, 2 * math.log(0.5), 2 * math.log(4.0)]))
        each = model._objective(batch, (0, 1, 2))
    assert torch.allclose(each["z"].mean(0), torch.tensor([3.0, -1.0]), atol=0.2)
    assert torch.allclose(each["z"].std(0), torch.tensor([0.5, 4.0]), rtol=0.05)
    assert torch.equal(model._objective(batch, (0, 1, 2))["z"], each["z"]), "its place and the key determine the draw"
    assert not torch.equal(model._objective(batch, (0, 1, 3))["z"], each["z"])


# ---- the networks --------------------------------------------------------------------------------------------------


@FORMS
def test_a_line_does_not_depend_on_its_place_or_its_company(form: dict) -> None:
    model, batch = make(**form), batch_of(4, 1, 9, 6, 4)
    z = torch.randn(5, model.latent_dim)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = select(batch, order)
    nats = model.log_likelihood(batch.values, batch.lengths, z)
    assert torch.allclose(model.log_likelihood(shuffled.values, shuffled.lengths, z[order]), nats[order], atol=1e-5)
    alone = model.log_likelihood(batch.values[1:2, :1], batch.lengths[1:2], z[1:2])
    assert torch.allclose(alone, nats[1:2], atol=1e-5)
    if model.latent_dim:
        codes = model.encode(batch)
        assert codes.std(0).min() > 1e-3, "or this says nothing"
        assert torch.allclose(model.encode(shuffled), codes[order], atol=1e-6)
        assert torch.allclose(model.encode(select(batch, [1])), codes[1:2], atol=1e-6)
        assert [model.decode(z[i : i + 1])[0] for i in range(5)] == model.decode(z)


@FORMS
@pytest.mark.parametrize("behind", [0, 3])
def test_padding_changes_nothing(form: dict, behind: int) -> None:
    model = make(**form, keep_rate=0.5)
    batch, padded = batch_of(4, 1, 6), batch_of(4, 1, 6, padding=3)
    padded.values[torch.arange(9) >= padded.lengths[:, None]] = behind  # whatever stands there
    losses = [model.training_step(each, 0)["loss"] for each in (batch, padded)]
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=1e-6)
    weights = list(model.parameters())
    gradients = [torch.autograd.grad(loss, weights) for loss in losses]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@FORMS
def test_the_decoder_starts_from_the_code_and_reads_it_at_each_step(form: dict) -> None:
    model = make(**form)
    if not model.latent_dim:
        assert not hasattr(model, "encoder")
        assert model.sample(3, 0.0) == [model.sample(1, 0.0)[0]] * 3, "from zeros, always the same"
        return
    z, tokens = torch.randn(2, 3), torch.zeros(2, 4, dtype=torch.long)
    outputs, _ = model(tokens, z)
    state = model.to_state(z).tanh().split(10, 1)
    given = tuple(part[None] for part in state) if model.states == 2 else state[0][None]
    again, _ = model(tokens, z, given)
    assert torch.allclose(outputs, again, atol=1e-6)
    other, _ = model(tokens, z + 1, given)  # from the same state
    assert ((outputs - other).abs().amax((0, 2)) > 1e-4).all()


def test_the_encoder_reads_the_whole_line_and_no_more() -> None:
    model = make()
    whole = model.encode("abcdef")
    assert all(not torch.allclose(model.encode(text), whole, atol=1e-4) for text in ("bbcdef", "abcdee", "abcde"))
    with torch.no_grad():
        model.embedding.weight[END] += 1
    assert not torch.allclose(model.encode("abcdef"), whole, atol=1e-4), "its end, too"


def test_forget_gates_begin_open() -> None:
    model = TextVAE(VOCAB, longest=9, hidden=8)
    for network in (model.encoder, model.decoder):
        assert (network.bias_ih_l0 + network.bias_hh_l0)[8:16].tolist() == [1] * 8
    gru = TextVAE(VOCAB, longest=9, hidden=8, cell="gru").decoder
    assert (gru.bias_ih_l0 + gru.bias_hh_l0)[8:16].unique().numel() == 8, "which has none"


# ---- KL cost annealing ---------------------------------------------------------------------------------------------


def test_the_weight_of_the_kl() -> None:
    found = [kl_weight(step, "logistic", 2500, 400) for step in (0, 2100, 2500, 2900, 10**7)]
    assert found == pytest.approx([1 / (1 + math.exp(6.25)), 1 / (1 + math.e), 0.5, 1 / (1 + 1 / math.e), 1])
    assert kl_weight(0, "logistic", 10**7, 1) == 0, "and nothing overflows"
    assert [kl_weight(step, "linear", 100, 1) for step in (0, 100, 150, 200, 500)] == [0, 0.5, 0.75, 1, 1]
    assert kl_weight(0, "none", 100, 1) == 1


@pytest.mark.parametrize(("step", "weight"), [(0, 1 / (1 + math.exp(4))), (100, 0.5), (10**6, 1.0)])
def test_training_weighs_the_kl(step: int, weight: float) -> None:
    model, batch = attach(make(kl_center=100, kl_width=25), step=step, epoch=3), batch_of(4, 1, 9)
    found = model.training_step(batch, 2)
    each = model._objective(batch, (model.seed, 3, 2))
    expected = float((weight * each["kl"] - each["reconstruction"]).mean().detach())
    assert float(found["loss"].detach()) == pytest.approx(expected, rel=1e-6)
    assert float(found["kl_weight"]) == pytest.approx(weight)
    assert float(found["elbo"]) == pytest.approx(float(each["elbo"].mean().detach()), rel=1e-6), "at its full weight"
    assert float(found["nats_per_token"]) == pytest.approx(-float(each["elbo"].sum().detach()) / 17, rel=1e-5)


def test_evaluation_has_the_full_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach(make(kl_center=1e6, kl_width=1.0), step=0)
    found = scores(model, monkeypatch, [batch_of(4, 1)])
    assert found["val/loss"] == pytest.approx(found["val/kl"] - found["val/reconstruction"], rel=1e-5)


# ---- word dropout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_rate", [0.0, 0.3, 1.0])
def test_the_share_of_words_that_are_kept(keep_rate: float) -> None:
    tokens = torch.arange(4).expand(5000, -1)
    draws = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0))
    found = drop_words(tokens, draws, keep_rate, 9)
    kept = found == tokens
    assert (found[~kept] == 9).all()
    assert kept.float().mean(0).tolist() == pytest.approx([keep_rate] * 4, abs=0.03 if 0 < keep_rate < 1 else 0)


@FORMS
def test_only_the_decoder_misses_words_and_only_what_it_reads(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make(**form, keep_rate=0.4).train(), batch_of(*[9] * 500)
    seen = what_it_reads(model, monkeypatch)
    loss = model.training_step(batch, 0)["loss"]
    (read,) = seen
    assert (read[:, 0] == END).all(), "the start is no word"
    dropped = read[:, 1:] == UNKNOWN
    assert dropped.float().mean(0).tolist() == pytest.approx([0.6] * 9, abs=0.1)
    assert torch.equal(read[:, 1:][~dropped], batch.values[~dropped])
    # The encoder has read, and the loss is of, the lines as they are.
    z, kl = torch.zeros(500, 0), torch.zeros(500)
    if model.latent_dim:
        each = model._objective(batch, (model.seed, 0, 0))
        z, kl = each["z"], each["kl"]
    logits, _ = model(read, z)
    targets = torch.cat([batch.values, torch.full((500, 1), END)], 1)
    nats = -logits.log_softmax(2).gather(2, targets[:, :, None]).sum((1, 2))
    assert float(loss.detach()) == pytest.approx(float((nats + kl).mean().detach()), rel=1e-5)


@FORMS
def test_the_inputless_decoder_reads_nothing(form: dict) -> None:
    model = make(**form, keep_rate=0.0)
    z = torch.randn(1, model.latent_dim).expand(2, -1)
    logits, _ = model(torch.tensor([[END, 0, 1, 2], [5, 4, 4, UNKNOWN]]), z)
    assert torch.equal(logits[0], logits[1])
    batch = batch_of(5, 9)
    for part in (model.training_step(batch, 0), model._objective(batch, (model.seed, 0, 0))):
        nats = 0.0
        codes = model._objective(batch, (model.seed, 0, 0)).get("z", torch.zeros(2, 0))
        for line, length, code in zip(batch.values, batch.lengths, codes, strict=True):
            steps = int(length) + 1
            log_p = model(torch.zeros(1, steps, dtype=torch.long), code[None])[0][0].log_softmax(1)
            nats += float(log_p.gather(1, torch.tensor([*line[:length].tolist(), END])[:, None]).sum().detach())
        assert float(part["reconstruction"].mean().detach()) == pytest.approx(nats / 2, rel=1e-5), "in evaluation, too"
    if model.latent_dim:
        likeliest = model(torch.zeros(1, 9, dtype=torch.long), z[:1])[0][0].argmax(1).tolist()
        line = "".join([*VOCAB, "."][code] for code in likeliest).split(".")[0]
        assert model.decode(z[:1]) == [line], "training is no different from use"


@FORMS
def test_evaluation_and_use_miss_no_word(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make(**form, keep_rate=0.01).train(), batch_of(9, 9)
    seen = what_it_reads(model, monkeypatch)
    model.validation_step(batch, 0)
    model.test_step(batch, 0)
    assert len(seen) == 2
    assert all(torch.equal(read[:, 1:], batch.values) for read in seen)
    model.sample(3)
    assert not any((read == UNKNOWN).any() for read in seen)


@FORMS
def test_training_draws_are_of_seed_epoch_step_and_place(form: dict) -> None:
    model, batch = make(**form, keep_rate=0.5).train(), batch_of(4, 7, 8)
    losses = {}
    for epoch, step in ((0, 0), (0, 1), (1, 0)):
        attach(model, epoch=epoch)
        losses[epoch, step] = float(model.training_step(batch, step)["loss"].detach())
        torch.rand(7)  # the global generator does not matter
        assert float(model.training_step(batch, step)["loss"].detach()) == losses[epoch, step]
    assert len(set(losses.values())) == 3
    attach(model)
    model.seed += 1
    assert float(model.training_step(batch, 0)["loss"].detach()) not in losses.values()


def test_a_lines_draws_do_not_depend_on_the_length_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make(keep_rate=0.5).train(), batch_of(4, 4, 9)
    seen = what_it_reads(model, monkeypatch)
    model.training_step(batch, 0)
    short = select(batch, slice(2))
    model.training_step(short._replace(values=short.values[:, :4]), 0)
    assert torch.equal(seen[0][:2, :5], seen[1])


# ---- evaluation ----------------------------------------------------------------------------------------------------


def scores(model: TextVAE, monkeypatch: pytest.MonkeyPatch, parts: list[SequenceBatch]) -> dict[str, float]:
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(model, "log_dict", logged.update)
    with torch.no_grad():
        for i, part in enumerate(parts):
            model.validation_step(part, i)
    model.on_validation_epoch_end()
    return {name: float(value) for name, value in logged.items()}


@FORMS
def test_the_scores_of_an_evaluation(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, parts = make(**form), [batch_of(4, 1, 9), batch_of(0, 2, seed=2)]
    scores(model, monkeypatch, [batch_of(7, 7, seed=3)])  # of which nothing is left over
    found = scores(model, monkeypatch, parts)
    each = [model._objective(part, (0, "val", i)) for i, part in enumerate(parts)]
    nats = {name: float(torch.cat([e[name] for e in each]).sum().detach()) for name in ("elbo", "reconstruction")}
    assert found["val/loss"] == pytest.approx(-nats["elbo"] / 5, rel=1e-5)
    assert found["val/reconstruction"] == pytest.approx(nats["reconstruction"] / 5, rel=1e-5)
    assert found["val/elbo"] == -found["val/loss"]
    assert found["val/nats_per_token"] == pytest.approx(-nats["elbo"] / 21, rel=1e-5), "each line has an end, too"
    assert found["val/perplexity"] == pytest.approx(math.exp(-nats["elbo"] / 21), rel=1e-5)
    names = {"loss", "elbo", "reconstruction", "nats_per_token", "perplexity"}
    if model.latent_dim:
        names |= {"kl", "active_units", "mutual_information"}
        assert found["val/kl"] == pytest.approx(found["val/reconstruction"] - found["val/elbo"], rel=1e-4)
        assert found["val/active_units"] == 3
        assert 0 < found["val/mutual_information"] <= math.log(5) + 1e-6
    assert found.keys() == {f"val/{name}" for name in names}


def test_a_collapsed_posterior_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    with torch.no_grad():
        model.to_posterior.weight.zero_()
        model.to_posterior.bias.zero_()
    with pytest.warns(UserWarning, match="posterior collapse: no dimension of the code depends on the line"):
        found = scores(model, monkeypatch, [batch_of(4, 1, 9)])
    assert found["val/kl"] == 0
    assert found["val/active_units"] == 0
    assert found["val/mutual_information"] == pytest.approx(0, abs=1e-6)


def test_a_model_without_a_code_has_nothing_to_collapse(monkeypatch: pytest.MonkeyPatch, recwarn: Any) -> None:
    scores(make(latent_dim=0), monkeypatch, [batch_of(4, 1, 9)])
    assert not recwarn.list


# ---- use -----------------------------------------------------------------------------------------------------------


def test_lines_come_back_as_lines() -> None:
    model = make().train()
    lines = ["abc", "", "f", "aaaaaaaaaaaaaaaa"]
    codes = model.encode(lines)
    assert codes.shape == (4, 3)
    assert model.training, "the mode is as it was"
    made = model.reconstruct(lines)
    assert made == model.decode(codes)
    for i, line in enumerate(lines):
        assert torch.allclose(model.encode(line)[0], codes[i], atol=1e-6)
        assert model.reconstruct(line) == made[i]
    assert all(len(line) <= model.longest and set(line) <= set(VOCAB) for line in made)
    assert len(set(made)) > 1


def test_a_line_ends_where_the_model_says_so() -> None:
    model = make()
    said = torch.tensor([[1, 0, END, 2, 2], [END, 5, 5, 5, 5], [3] * 5, [2, 2, 2, 2, END]])

    def forward(previous: Tensor, z: Tensor, state: Any = None) -> Any:
        step = state or 0
        assert torch.equal(previous[:, 0], said[:, step - 1] if step else torch.full((4,), END))
        return 9 * torch.nn.functional.one_hot(said[:, step : step + 1], 7).float(), step + 1

    model.forward = forward  # type: ignore[method-assign]
    model.longest = 5
    assert model.decode(torch.zeros(4, 3)) == ["ba", "", "ddddd", "cccc"]


def test_lines_are_drawn_from_the_models_distribution() -> None:
    model = make(vocab=["a", "b"], latent_dim=0, longest=3)
    drawn = model.sample(4000, seed=0)
    for text in ("", "a", "ab", "ba"):
        lines = torch.tensor([[VOCAB.index(char) for char in text]], dtype=torch.long).view(1, -1)
        expected = float(model.log_likelihood(lines, torch.tensor([len(text)]), torch.zeros(1, 0)).exp())
        assert drawn.count(text) / 4000 == pytest.approx(expected, abs=0.03)


def test_seeds_and_temperatures() -> None:
    model = make()
    for make_lines in (
        lambda seed: model.sample(20, seed=seed),
        lambda seed: model.decode(torch.zeros(20, 3), 1.0, seed),
        lambda seed: model.reconstruct(["abc"] * 20, 1.0, seed=seed),
        lambda seed: model.interpolate("abc", "ffff", 20, 1.0, seed),
        lambda seed: model.encode(["abc"] * 20, sample=True, seed=seed).tolist(),
    ):
        assert make_lines(4) == make_lines(4)
        assert make_lines(4) != make_lines(5)
    assert model.decode(torch.zeros(1, 3), seed=1) == model.decode(torch.zeros(1, 3), seed=2), "the likeliest"
    assert model.sample(20, 0.0, seed=1) != model.sample(20, 0.0, seed=2), "other codes"
    mean, drawn = model.encode(["abc"] * 4000), model.encode(["abc"] * 4000, sample=True, seed=0)
    _, log_var = model.posterior_of(*lines_of("abc"))
    assert torch.allclose(drawn.mean(0), mean[0], atol=0.2)
    assert torch.allclose(drawn.std(0), (0.5 * log_var[0]).exp(), rtol=0.06)


def test_as_many_lines_come_back_as_went_in() -> None:
    model = make()
    assert isinstance(model.reconstruct("abc"), str)
    assert model.reconstruct(("abc", "fedc")) == model.reconstruct(["abc", "fedc"]) != []
    codes = model.encode("abc")
    codes.requires_grad_()  # codes can be moved by gradients
    assert model.decode(codes.detach().double().numpy()) == [model.reconstruct("abc")]


def test_a_code_and_the_characters_of_the_same_seed_are_independent() -> None:
    model = make()
    _, log_var = model.posterior_of(*lines_of("abc"))
    drawn = (model.encode("abc", sample=True, seed=5) - model.encode("abc")) / (0.5 * log_var).exp()
    first = torch.randn(1, 3, generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(drawn, first, atol=1e-3), "decode(seed=5) starts with these"


def test_what_stands_for_unknown_characters_is_never_written() -> None:
    model = make(vocab=["<unk>", *VOCAB])
    with torch.no_grad():
        model.head.bias[0] = 50
    for lines in (model.sample(20, seed=0), model.decode(torch.randn(20, 3))):
        assert "<unk>" not in "".join(lines)


def test_a_homotopy_is_a_straight_line_between_two_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    path = model.interpolate("abc", "fedc", 5)
    assert len(path) == 5
    assert path[0] == model.reconstruct("abc")
    assert path[-1] == model.reconstruct("fedc")
    first, last = model.encode(["abc", "fedc"])
    assert path == model.decode(torch.stack([first + (last - first) * i / 4 for i in range(5)]))


def test_what_cannot_be_read_is_refused() -> None:
    model, rival = make(), make(latent_dim=0)
    with pytest.raises(ValueError, match=r"character 1: 'é' \(U\+00E9\) is not one of the vocabulary's 6"):
        model.encode("aé")
    assert make(vocab=["<unk>", *VOCAB]).encode("aé").shape == (1, 3)
    for wrong in ([], ["a", 3], 3, None):
        with pytest.raises(ValueError, match=r"lines=.*expected a line of text, or a list of at least one"):
            model.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n=0: expected at least 1"):
        model.sample(0)
    with pytest.raises(ValueError, match="steps=1: expected at least 2"):
        model.interpolate("a", "b", 1)
    with pytest.raises(ValueError, match="temperature=-1: expected at least 0"):
        model.sample(1, -1)
    with pytest.raises(ValueError, match=r"n=2.0: expected a whole number"):
        model.sample(2.0)  # type: ignore[arg-type]
    for verb in (rival.encode, rival.reconstruct):
        with pytest.raises(ValueError, match="encode with latent_dim=0: expected a model with a code"):
            verb("abc")
    with pytest.raises(ValueError, match="decode with latent_dim=0"):
        rival.decode(torch.zeros(1, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest": 0}, "longest=0: expected at least 1"),
        ({"hidden": 0}, "hidden=0: expected at least 1"),
        ({"embedding_dim": 0}, "embedding_dim=0: expected at least 1"),
        ({"latent_dim": -1}, "latent_dim=-1: expected at least 0, which is the language model"),
        ({"cell": "rnn"}, "cell='rnn': expected 'lstm' or 'gru'"),
        ({"keep_rate": 1.1}, r"keep_rate=1.1: expected a number in \[0, 1\]"),
        ({"annealing": "cosine"}, "annealing='cosine': expected 'logistic', 'linear' or 'none'"),
        ({"kl_center": 0}, "kl_center=0: expected more than 0"),
        ({"kl_width": 0}, "kl_width=0: expected more than 0"),
    ],
)
def test_impossible_models_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@FORMS
def test_the_pictures(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(**form)
    batch = batch_of(4, 1, 9)
    scores(model, monkeypatch, [batch])
    texts = {"samples"} if not model.latent_dim else {"samples", "reconstructions", "homotopies"}
    pictures = illustrate(model, batch)
    assert pictures.keys() - {"kl"} == texts | {f"{name}.txt" for name in texts}
    assert ("kl" in pictures) == bool(model.latent_dim)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_four_lines() -> None:
    lines = ["return None", "import os", "self.x = x", "raise TypeError"]
    vocab = sorted(set("".join(lines)))
    torch.manual_seed(0)
    model = attach(TextVAE(vocab, longest=15, latent_dim=4, hidden=48, embedding_dim=16, keep_rate=0.5), step=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = torch.zeros(4, 15, dtype=torch.long)
    for row, line in zip(values, lines, strict=True):
        row[: len(line)] = torch.tensor([vocab.index(char) for char in line])
    batch = SequenceBatch(values, torch.tensor([len(line) for line in lines]), torch.full((4,), -1))
    for step in range(150):
        loss = model.training_step(batch, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.reconstruct(lines) == lines
    path = model.interpolate(lines[0], lines[1], 9)
    assert path[0] == lines[0]
    assert path[-1] == lines[1]


def test_it_is_trained_from_the_command_line(fit: Callable[..., CLI], tmp_path: Path) -> None:
    lines = [f"{a}{b}{c}" for a in "abcdefgh" for b in "klmnop" for c in "uvwxyz"]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "lines.txt").write_text("\n".join(lines[i] for i in order))
    cli = fit(
        *("--model", "lit_models.text_vae.TextVAE", "--model.latent_dim", 4, "--model.hidden", 16),
        *("--model.kl_center", 5, "--model.kl_width", 1),
        *("--data", "datamodules.sequences.TextLines", "--data.source", tmp_path / "lines.txt"),
        *("--data.batch_size", 16, "--trainer.max_epochs", 1, "--run.name", "text/lines"),
    )
    checkpoint = cli.folder.best_checkpoint()
    assert checkpoint is not None
    loaded = TextVAE.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    assert loaded.sample(5, seed=0) == cli.model.sample(5, seed=0)
    assert torch.equal(loaded.encode("aku"), cli.model.encode("aku"))


def test_unknown_characters_are_read_and_never_written() -> None:
    model = make(vocab=["<unk>", *VOCAB])
    with torch.no_grad():
        model.head.bias[0] = 50.0  # by itself it would write nothing else
    lines = [*model.sample(8, seed=0), *model.reconstruct(["aé", "b"]), *model.sample(4, temperature=0.0)]
    assert any(lines)
    assert not any("<unk>" in line for line in lines)
