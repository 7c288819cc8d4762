"""The captioner: its decoders against the papers' equations, beam search against all sentences, and what it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch import Tensor, nn

from datamodules.captions import CaptionBatch, CaptionTable, choose_captions
from datamodules.parts.loader import TensorLoader
from lit_models.captioner import Captioner, doubly_stochastic, shifted
from lit_models.figures.canvas import captioned_page
from lit_models.figures.captioner import illustrate
from lit_models.networks.caption_decoders import END, rows, until_end
from lit_models.parts.beam_search import State, beam_search
from lit_models.parts.sampling import inverse_cdf
from lit_models.scores.captions import COMPARED, CaptionScores, judge
from tests.two_ranks import on_two_ranks

VOCAB = ["<pad>", "<unk>", "a", "red", "blue", "circle", "square", "small", "large"]
SENTENCES = ["a red circle", "a blue square", "a small red square", "a large blue circle"]
KINDS = [{"attention": True}, {"attention": False}]
METHODS = ["greedy", "beam", "nucleus", "sample"]


def model(**options: Any) -> Captioner:
    """A small one in evaluation mode, with batch statistics that matter."""
    torch.manual_seed(0)
    sizes = {"image_shape": [3, 16, 16], "channels": [4, 6], "embedding_dim": 5, "hidden_dim": 7, "attention_dim": 4}
    made = Captioner(VOCAB, **{"longest": 6, **sizes, **options})
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in made.decoder.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return made.eval()


def made_up(seed: int = 0) -> CaptionBatch:
    """Three images with two, one and three captions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 5, 1, 4, 2, 5])
    captions = torch.randint(2, len(VOCAB), (6, 5), generator=generator)
    captions[torch.arange(5) >= lengths[:, None]] = 0
    return CaptionBatch(
        images=torch.rand(3, 3, 16, 16, generator=generator),
        captions=captions,
        lengths=lengths,
        image_index=torch.tensor([0, 0, 1, 2, 2, 2]),
        image_ids=torch.arange(3),
        objects=torch.zeros(3, 0, 2, dtype=torch.long),
        stated=torch.zeros(6, 0, dtype=torch.long),
        unseen=torch.zeros(3, dtype=torch.bool),
        references=captions,
    )


def pixels(count: int = 4) -> Tensor:
    """(count, 3, 16, 16) uint8, each image of a color of its own."""
    generator = torch.Generator().manual_seed(3)
    colors = torch.randint(0, 256, (count, 3, 1, 1), generator=generator)
    return (colors + torch.randint(0, 40, (count, 3, 16, 16), generator=generator)).clamp_max(255).to(torch.uint8)


class Pictures(LightningDataModule):
    """Four images with one sentence each, which train, validate and test."""

    def __init__(self) -> None:
        super().__init__()
        table = CaptionTable(pixels(), [[sentence] for sentence in SENTENCES], VOCAB)
        self.tables = {"train": table}

    def train_dataloader(self) -> TensorLoader:
        return TensorLoader(self.tables["train"], 4)

    def val_dataloader(self) -> TensorLoader:
        return TensorLoader(self.tables["train"], 3)

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: CaptionBatch, dataloader_idx: int) -> CaptionBatch:
        return batch._replace(images=batch.images.float() / 255)


def trainer(folder: Path, epochs: int = 1) -> Trainer:
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return Trainer(
        accelerator="cpu", max_epochs=epochs, limit_val_batches=0, default_root_dir=folder, log_every_n_steps=1, **off
    )


@pytest.fixture(scope="module", params=KINDS, ids=["attention", "no attention"])
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Captioner, Path]:
    """A model that has learned four images by heart, and its checkpoint."""
    torch.manual_seed(0)
    captioner = Captioner(
        VOCAB, 6, [3, 16, 16], channels=[8, 8], norm="none", embedding_dim=16, hidden_dim=32, **request.param,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-2), scheduler=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("taught")
    run = trainer(folder, epochs=120)
    run.fit(captioner, datamodule=Pictures())
    run.save_checkpoint(folder / "model.ckpt")
    return captioner.eval(), folder / "model.ckpt"


# The decoders.


def test_a_caption_is_read_from_the_start_and_written_to_the_end() -> None:
    inputs, targets, inside = shifted(torch.tensor([[3, 4, 5], [6, 0, 0]]), torch.tensor([3, 1]))
    assert inputs.tolist() == [[END, 3, 4, 5], [END, 6, 0, 0]]
    assert targets.tolist() == [[3, 4, 5, END], [6, END, 0, 0]]
    assert inside.tolist() == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_show_and_tell_reads_the_image_as_the_word_before_the_first(pooling: Any) -> None:
    captioner, batch = model(attention=False, pooling=pooling), made_up()
    logits, decoder = captioner(batch), captioner.decoder
    grid = captioner.encoder(batch.images)
    assert logits.shape == (6, 6, len(VOCAB))
    for n, (image, length) in enumerate(zip(batch.image_index, batch.lengths.tolist(), strict=True)):
        pooled = grid[image].flatten() if pooling == "flatten" else grid[image].mean((1, 2))
        sequence = [decoder.image(pooled), *(decoder.embedding.weight[w] for w in [END, *batch.captions[n, :length]])]
        outputs, _ = decoder.lstm(torch.stack(sequence)[None])
        torch.testing.assert_close(logits[n, : length + 1], decoder.to_words(outputs[0, 1:]))


@pytest.mark.parametrize("annotation_dim", [None, 3])
@pytest.mark.parametrize("word_query", [False, True])
def test_attention_follows_the_papers_equations(annotation_dim: int | None, word_query: bool) -> None:
    captioner, batch = model(annotation_dim=annotation_dim, word_query=word_query), made_up()
    logits, d = captioner(batch), captioner.decoder
    grid = captioner.grid(batch.images)
    assert grid.shape[1] == (6 if annotation_dim is None else annotation_dim + 2)
    if annotation_dim is not None:  # the last two say where a cell is
        assert grid[1, -2, :, 2].tolist() == grid[1, -1, 2].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    state, memory = (rows(part, batch.image_index) for part in captioner.read(batch.images))
    inputs, _, _ = shifted(batch.captions, batch.lengths)
    attention = d(inputs, state, memory, batch.lengths + 1).attention
    for n, (image, length) in enumerate(zip(batch.image_index, batch.lengths.tolist(), strict=True)):
        a = [grid[image, :, y, x] for y in range(4) for x in range(4)]
        h, c = d.initial(sum(a) / 16).tanh().chunk(2)
        for t, word in enumerate([END, *batch.captions[n, :length].tolist()]):
            asked = d.query(h) + (d.word_query(d.embedding.weight[word]) if word_query else 0)
            e = [d.score((d.key(cell) + asked).tanh()).exp() for cell in a]
            alpha = torch.cat(e) / sum(e)
            torch.testing.assert_close(attention[n, t], alpha)
            z = d.gate(h).sigmoid() * sum(share * cell for share, cell in zip(alpha, a, strict=True))
            embedded = d.embedding.weight[word]
            h, c = (s[0] for s in d.lstm(torch.cat([embedded, z])[None], (h[None], c[None])))
            expected = d.to_words(embedded + d.from_state(h) + d.from_glimpse(z))
            torch.testing.assert_close(logits[n, t], expected)
        assert not attention[n, length + 1 :].any()


@pytest.mark.parametrize("options", KINDS)
def test_each_caption_is_read_as_if_it_were_alone(options: Any) -> None:
    captioner, batch = model(**options), made_up()
    logits = captioner(batch)
    longer = batch._replace(captions=F.pad(batch.captions, (0, 3), value=4))  # what is behind the end is not read
    torch.testing.assert_close(captioner(longer)[:, :6], logits)
    for n, length in enumerate(batch.lengths.tolist()):
        alone = batch._replace(
            images=batch.images[batch.image_index[n]][None],
            captions=batch.captions[n : n + 1, :length],
            lengths=batch.lengths[n : n + 1],
            image_index=torch.tensor([0]),
        )
        torch.testing.assert_close(captioner(alone)[0], logits[n, : length + 1])
    other = captioner(batch._replace(images=batch.images.roll(1, 0)))
    assert (other - logits)[:, :2].abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("options", KINDS)
def test_the_state_after_some_words_is_what_the_next_ones_need(options: Any) -> None:
    captioner, batch = model(**options), made_up()
    state, memory = (rows(part, batch.image_index) for part in captioner.read(batch.images))
    words = torch.cat([torch.zeros(6, 1, dtype=torch.long), batch.captions], 1)
    whole = captioner.decoder(words, state, memory)
    steps = []
    for t in range(6):
        heard = captioner.decoder(words[:, t : t + 1], state, memory)
        state = heard.state
        steps.append(heard.features)
    torch.testing.assert_close(torch.cat(steps, 1), whole.features)
    for found, expected in zip(state, whole.state, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", KINDS)
def test_the_state_of_sentences_of_different_lengths_is_that_at_their_ends(options: Any) -> None:
    captioner, batch = model(**options), made_up()
    state, memory = (rows(part, batch.image_index) for part in captioner.read(batch.images))
    found = captioner.decoder(batch.captions, state, memory, batch.lengths).state
    for n, length in enumerate(batch.lengths.tolist()):
        one, seen = (tuple(s[n : n + 1] for s in part) for part in (state, memory))
        expected = captioner.decoder(batch.captions[n : n + 1, :length], one, seen).state
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[n : n + 1], b)


# The loss.


class Step:
    """What ``training_step`` asks of a trainer."""

    global_step, current_epoch = 0, 0


def train_on(captioner: Captioner, batch: CaptionBatch) -> dict[str, Tensor]:
    captioner._trainer = Step()  # type: ignore[assignment]
    return captioner.training_step(batch, 0)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_minimizes_the_mean_over_all_words_and_ends(options: Any, smoothing: float) -> None:
    captioner, batch = model(label_smoothing=smoothing, **options), made_up()
    log_p = captioner(batch).log_softmax(2)
    each = []
    for n, length in enumerate(batch.lengths.tolist()):
        for t, word in enumerate([*batch.captions[n, :length].tolist(), END]):
            each.append(-(1 - smoothing) * log_p[n, t, word] - smoothing * log_p[n, t].mean())
    torch.testing.assert_close(train_on(captioner, batch)["loss"], torch.stack(each).mean())


def test_a_word_that_is_left_open_is_read_and_not_taught() -> None:
    captioner, batch = model(), made_up()
    captions = batch.captions.clone()
    captions[0, 1] = captions[5, 4] = VOCAB.index("<unk>")
    batch = batch._replace(captions=captions)
    with torch.no_grad():
        log_p = captioner(batch).log_softmax(2)
    each = [
        -float(log_p[n, t, word])
        for n, length in enumerate(batch.lengths.tolist())
        for t, word in enumerate([*captions[n, :length].tolist(), END])
        if word != 1
    ]
    assert float(train_on(captioner, batch)["loss"]) == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_the_regularizer_asks_for_the_same_attention_to_each_cell() -> None:
    attention = torch.rand(2, 3, 4).softmax(2)
    inside = torch.tensor([[True] * 3, [True, True, False]])
    expected = [sum((1 - float(attention[n, :t, i].sum())) ** 2 for i in range(4)) / 4 for n, t in ((0, 3), (1, 2))]
    assert doubly_stochastic(attention, inside).tolist() == pytest.approx(expected)
    captioner, batch = model(), made_up()
    plain = train_on(captioner, batch)["loss"]
    captioner.attention_weight = 0.5
    result = train_on(captioner, batch)
    torch.testing.assert_close(result["loss"], plain + 0.5 * result["unevenness"])
    assert float(result["unevenness"]) > 0


@pytest.mark.parametrize("options", KINDS)
def test_scheduled_sampling_reads_the_truth_or_its_own_words(options: Any) -> None:
    captioner, batch = model(**options), made_up()
    inputs, _, _ = shifted(batch.captions, batch.lengths)
    state, memory = (rows(part, batch.image_index) for part in captioner.read(batch.images))
    draws = torch.rand(6, 2, 6)
    forced = captioner.scheduled(inputs, state, memory, 1.0, draws)
    torch.testing.assert_close(forced.features, captioner.decoder(inputs, state, memory).features)
    own = captioner.scheduled(inputs, state, memory, 0.0, draws)
    words, read = [torch.zeros(6, dtype=torch.long)], state
    for t in range(6):
        heard = captioner.decoder(words[-1][:, None], read, memory)
        torch.testing.assert_close(own.features[:, t], heard.features[:, 0])
        read = heard.state
        p = captioner.decoder.to_words(heard.features[:, 0])
        p[:, 1] = -torch.inf
        words.append((p.softmax(1).cumsum(1) <= draws[:, 1, t, None]).sum(1))
    assert (own.features - forced.features)[:, 1:].abs().max() > 1e-3
    if options["attention"]:
        assert own.attention is not None
        assert own.attention.shape == (6, 6, 16)


def test_scheduled_sampling_takes_part_in_training_and_repeats_itself() -> None:
    captioner, batch = model(schedule="linear", schedule_steps=10, teacher_forcing=0.0), made_up()
    first = train_on(captioner, batch)["loss"]  # at step 0 all is forced
    torch.testing.assert_close(first, train_on(model(), batch)["loss"])
    captioner.trainer.global_step = 10  # type: ignore[misc]
    sampled = captioner.training_step(batch, 0)["loss"]
    assert abs(float((sampled - first).detach())) > 1e-4
    assert torch.equal(captioner.training_step(batch, 0)["loss"], sampled)


def test_two_ranks_toss_the_coins_that_one_would(
    be_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)  # both ranks have as many captions an image
    captioner = model()
    captioner._trainer = Step()  # type: ignore[assignment]
    index = torch.arange(4).repeat_interleave(2)
    batch = made_up()._replace(images=torch.zeros(4, 3, 16, 16), image_index=index)
    whole = captioner._draws(batch, 5)
    assert whole.shape == (8, 2, 7)
    assert len(whole[:, 0, 0].unique()) == 8
    half = batch._replace(images=torch.zeros(2, 3, 16, 16), image_index=index[:4])
    for rank in (0, 1):
        be_rank(rank, 2)
        own = torch.tensor([0, 1, 4, 5]) + 2 * rank  # the captions of images rank and rank + 2
        assert torch.equal(captioner._draws(half, 5), whole[own])


# Beam search.


def toy(seed: int, vocabulary: int, batch: int, masked: tuple[int, ...] = ()) -> tuple[Callable[..., Any], State]:
    """A model whose next word depends on the row and on all words so far."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(vocabulary, 6, generator=generator)
    turn = torch.randn(6, 6, generator=generator)
    head = 1.5 * torch.randn(6, vocabulary, generator=generator)

    def step(words: Tensor, state: State) -> tuple[Tensor, State]:
        h = torch.tanh(state[0] @ turn + embedding[words])
        logits = h @ head
        logits[:, list(masked)] = -torch.inf
        return logits.log_softmax(1), (h,)

    return step, (torch.randn(batch, 6, generator=generator),)


def best_of_all(
    step: Callable[..., Any], start: Tensor, vocabulary: int, longest: int, penalty: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Every sentence of one row with its score, the best first."""
    found = []
    for words in itertools.chain(*(itertools.product(range(1, vocabulary), repeat=n) for n in range(longest + 1))):
        ends = len(words) < longest
        state, log_p = (start[None],), 0.0
        for before, word in itertools.pairwise([0, *words, *([0] if ends else [])]):
            scores, state = step(torch.tensor([before]), state)
            log_p += float(scores[0, word])
        found.append((log_p / (len(words) + ends) ** penalty, words))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_sentences(seed: int, penalty: float) -> None:
    vocabulary, longest = 4, 4
    step, state = toy(seed, vocabulary, batch=3)
    found = beam_search(step, state, 0, beam_size=3**longest, longest=longest, length_penalty=penalty, count=5)
    for row in range(3):
        expected = best_of_all(step, state[0][row], vocabulary, longest, penalty)[:5]
        assert found.scores[row].tolist() == pytest.approx([score for score, _ in expected], abs=1e-5)
        said = [tuple(words[:n]) for words, n in zip(found.tokens[row].tolist(), found.lengths[row], strict=True)]
        assert said == [words for _, words in expected]


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_narrow_beam_scores_its_sentences_right_and_does_not_see_other_rows(beam: int) -> None:
    step, state = toy(7, 6, batch=8)
    together = beam_search(step, state, 0, beam, longest=7, count=beam)
    for row in range(8):
        alone = beam_search(step, (state[0][row : row + 1],), 0, beam, longest=7, count=beam)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        for tokens, length, score in zip(alone.tokens[0], alone.lengths[0].tolist(), alone.scores[0], strict=True):
            if score == -torch.inf:
                continue
            words = tokens[:length].tolist()
            h, log_p = (state[0][row : row + 1],), 0.0
            steps = [0, *words, *([0] if length < 7 else [])]
            for before, word in itertools.pairwise(steps):
                p, h = step(torch.tensor([before]), h)
                log_p += float(p[0, word])
            assert float(score) == pytest.approx(log_p / (len(steps) - 1), abs=1e-5)
    assert together.scores.diff(dim=1).le(0).all()


def test_a_wider_beam_finds_what_greedy_steps_miss() -> None:
    better = 0
    for seed in range(10):
        step, state = toy(seed, 6, batch=8)
        narrow, wide = (beam_search(step, state, 0, beam, longest=6).scores for beam in (1, 50))
        better += int((wide > narrow + 1e-6).sum())
    assert better > 10


def test_beam_search_returns_though_no_sentence_ever_ends() -> None:
    step, state = toy(0, 5, batch=2, masked=(0,))
    found = beam_search(step, state, 0, beam_size=4, longest=6, count=4)
    assert found.lengths.tolist() == [[6] * 4] * 2
    assert found.scores.isfinite().all()
    assert (found.tokens > 0).all()


def test_beam_search_of_a_model_that_only_ends_says_nothing() -> None:
    step, state = toy(0, 4, batch=2, masked=(1, 2, 3))
    found = beam_search(step, state, 0, beam_size=3, longest=5, count=2)
    assert found.lengths[:, 0].tolist() == [0, 0]
    assert found.scores[:, 0].tolist() == [0, 0]
    assert (found.scores[:, 1] == -torch.inf).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam_size": 0}, "beam_size=0"),
        ({"beam_size": 2, "count": 3}, "n=3: expected 1 to beam_size=2"),
        ({"longest": 0}, "longest=0"),
        ({"length_penalty": -1.0}, "length_penalty=-1"),
        ({"length_penalty": math.nan}, "length_penalty=nan"),
    ],
)
def test_mistakes_of_beam_search_name_the_argument(options: dict[str, Any], words: str) -> None:
    step, state = toy(0, 4, batch=1)
    with pytest.raises(ValueError, match=words):
        beam_search(step, state, 0, **{"beam_size": 3, "longest": 4, **options})


# Decoding.


def test_inverse_cdf_draws_in_proportion_and_never_what_is_impossible() -> None:
    logits = torch.tensor([[-torch.inf, 0.2, 1.5, -torch.inf, 0.7, -torch.inf]])
    draws = torch.linspace(0, 1, 100_001)[:-1]
    found = torch.bincount(inverse_cdf(logits.expand(len(draws), -1), draws), minlength=6) / len(draws)
    torch.testing.assert_close(found, logits[0].softmax(0), atol=1e-4, rtol=0)
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert inverse_cdf(logits.expand(2, -1), edges).tolist() == [1, 4]


@pytest.mark.parametrize("options", KINDS)
def test_greedy_takes_the_likeliest_word_each_time(options: Any) -> None:
    captioner, images = model(**options), torch.rand(5, 3, 16, 16)
    found = captioner.decode(images)
    for image, tokens in zip(images, found[:, 0].tolist(), strict=True):
        state, memory = captioner.read(image[None])
        word, said = END, []
        while len(said) < 6:
            heard = captioner.decoder(torch.tensor([[word]]), state, memory)
            state, logits = heard.state, captioner.decoder.to_words(heard.features[0, 0])
            logits[1] = -torch.inf
            word = int(logits.argmax())
            if word == END:
                break
            said.append(word)
        assert until_end(tokens) == said
        assert not any(tokens[len(said) :])  # nothing is behind the end


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_decode_ends_and_never_says_unknown(options: Any, method: Any) -> None:
    captioner, images = model(longest=9, **options), torch.rand(5, 3, 16, 16)
    n = 1 if method == "greedy" else 4
    with torch.no_grad():
        captioner.decoder.to_words.bias[1] = 50.0  # <unk>, much the likeliest
        captioner.decoder.to_words.bias[END] = -50.0
    for said in captioner.caption(images, n=n, method=method, seed=0):
        assert [len(sentence.split()) for sentence in said] == [9] * n
        assert not any("<" in sentence for sentence in said)
    with torch.no_grad():
        captioner.decoder.to_words.bias[END] = 90.0
    assert captioner.caption(images, method=method, seed=0) == [[""]] * 5


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_caption_does_not_depend_on_the_other_images(options: Any, method: Any) -> None:
    captioner, images = model(**options), torch.rand(5, 3, 16, 16)
    draws = torch.rand(5, 1, 6)
    together = captioner.decode(images, method, draws=draws)
    for i in range(5):
        alone = captioner.decode(images[i : i + 1], method, draws=draws[i : i + 1])
        assert until_end(alone[0, 0].tolist()) == until_end(together[i, 0].tolist())


def test_beams_are_different_and_the_best_first() -> None:
    captioner = model()
    for said in captioner.caption(torch.rand(3, 3, 16, 16), n=5, method="beam"):
        assert len(set(said)) == 5
    assert (
        captioner.caption(pixels(1), n=3, method="beam")[0] == captioner.caption(pixels(1), n=5, method="beam")[0][:3]
    )


def test_sampling_is_seeded_varied_and_safer_when_it_is_cut() -> None:
    captioner, images = model(), pixels(2)
    several = captioner.caption(images, n=20, method="sample", seed=1)
    assert several == captioner.caption(images, n=20, method="sample", seed=1)
    assert several != captioner.caption(images, n=20, method="sample", seed=2)
    assert len(set(several[0])) > 5
    greedy = captioner.caption(images)
    assert captioner.caption(images, method="nucleus", top_p=1e-6, seed=3) == greedy
    assert captioner.caption(images, method="sample", temperature=0, seed=3) == greedy
    assert captioner.caption(images, method="sample", temperature=1e-4, seed=3) == greedy
    some = captioner.caption(images, n=20, method="nucleus", top_p=0.5, seed=1)
    assert len(set(some[0])) < len(set(several[0]))


# Captions of pictures.


@pytest.mark.slow
def test_a_taught_model_says_what_it_was_taught(taught: tuple[Captioner, Path]) -> None:
    captioner, _ = taught
    assert captioner.caption(pixels()) == [[sentence] for sentence in SENTENCES]
    assert captioner.caption(pixels(), method="beam") == [[sentence] for sentence in SENTENCES]
    assert captioner.caption(pixels(), method="nucleus", seed=0) == [[sentence] for sentence in SENTENCES]


def test_a_picture_is_captioned_alike_in_whatever_form_it_comes(taught: tuple[Captioner, Path]) -> None:
    captioner, _ = taught
    for image, sentence in zip(pixels(), SENTENCES, strict=True):
        array = image.movedim(0, 2).numpy()
        forms = [image, image / 255, image[None], array, (array / 255), Image.fromarray(array), image.long()]
        assert all(captioner.caption(form) == [[sentence]] for form in forms)
    several = [pixels()[0], pixels()[1] / 255, Image.fromarray(pixels()[2].movedim(0, 2).numpy())]
    assert captioner.caption(several) == [[sentence] for sentence in SENTENCES[:3]]
    assert captioner.caption(pixels() / 255) == [[sentence] for sentence in SENTENCES]
    assert captioner.caption([]) == []


def test_captioning_leaves_mode_weights_and_generator_alone() -> None:
    captioner = model(dropout=0.5)
    expected = captioner.caption(pixels())
    for mode in (True, False):
        captioner.train(mode)
        before = {name: value.clone() for name, value in captioner.state_dict().items()}
        generator = torch.get_rng_state()
        assert captioner.caption(pixels()) == expected  # without dropout or batch statistics in either mode
        captioner.caption(pixels(), 2, "nucleus", seed=0)
        assert all(module.training is mode for module in captioner.modules())
        assert all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())
        assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "best"}, ValueError, "method='best': expected 'greedy', 'beam'"),
        ({"n": 0}, ValueError, "n=0"),
        ({"n": 2}, ValueError, "n=2 with method='greedy'"),
        ({"method": "beam", "n": 6}, ValueError, "n=6: expected 1 to beam_size=5"),
        ({"method": "beam", "beam_size": 0}, ValueError, "beam_size=0"),
        ({"method": "sample", "temperature": -1}, ValueError, "temperature=-1"),
        ({"method": "nucleus", "top_p": 0}, ValueError, "top_p=0"),
        ({"images": "cat.jpg"}, FileNotFoundError, "image=cat.jpg: no such file"),
        ({"images": np.full((4, 4), 200.0)}, ValueError, "200"),
        ({"images": torch.zeros(2, 5, 4, 4)}, ValueError, "shape"),
    ],
)
def test_what_cannot_be_captioned_is_said(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model().caption(**{"images": pixels(), **change})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"longest": 0}, "longest=0"),
        ({"beam_size": 0}, "beam_size=0"),
        ({"annotation_dim": 0}, "annotation_dim=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"attention_weight": -1.0}, "attention_weight=-1.0"),
        ({"attention_weight": 1.0, "attention": False}, "attention_weight=1.0 with attention=false"),
        ({"word_query": True, "attention": False}, "word_query=true with attention=false"),
        ({"length_penalty": math.nan}, "length_penalty=nan"),
        ({"schedule": "cosine"}, "schedule='cosine'"),
        ({"schedule_steps": 0}, "schedule_steps=0"),
        ({"teacher_forcing": 1.5}, "teacher_forcing=1.5"),
        ({"encoder": "resnet19"}, "encoder='resnet19'"),
    ],
)
def test_mistakes_name_the_argument(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**options)


@pytest.mark.parametrize("options", KINDS)
def test_cached_features_are_taken_as_they_are(options: Any) -> None:
    captioner = model(encoder="features", image_shape=[10, 2, 2], **options)
    assert not list(captioner.encoder.parameters())
    batch = made_up()._replace(images=torch.randn(3, 10, 2, 2))
    assert captioner(batch).shape == (6, 6, len(VOCAB))
    said = [captioner.to_text(row) for row in captioner.decode(batch.images)[:, 0].tolist()]
    assert captioner.predict_step(batch, 0) == {"caption": said}
    with pytest.raises(ValueError, match="encoder='features'"):
        captioner.caption(pixels())


# Evaluation, figures and checkpoints.


def test_evaluation_decodes_and_does_not_peek_at_the_truth(taught: tuple[Captioner, Path], tmp_path: Path) -> None:
    captioner, _ = taught
    found = trainer(tmp_path).test(captioner, datamodule=Pictures(), verbose=False)[0]
    assert found["test/exact_match"] == 1
    assert found["test/bleu_4"] > 0  # of two of the four sentences, which have four words
    assert found["test/bleu_1"] == 1
    assert found["test/novel_share"] == 0
    assert found["test/unique_share"] == 1
    assert found["test/vocabulary_coverage"] == 1
    assert found["test/nats_per_token"] < 0.2
    assert found["test/beam/cider_d"] == pytest.approx(found["test/cider_d"])
    for method in METHODS:
        assert {f"test/{method}/{name}" for name in COMPARED if f"test/{name}" in found} <= set(found)
    assert not [name for name in found if name.startswith("test/people")]  # one reference is no company
    with torch.no_grad():
        first, captioner.decoder.to_words.bias[3] = captioner.decoder.to_words.bias[3].clone(), 50.0
    try:
        worse = trainer(tmp_path).test(captioner, datamodule=Pictures(), verbose=False)[0]
    finally:
        with torch.no_grad():
            captioner.decoder.to_words.bias[3] = first
    assert worse["test/exact_match"] == 0
    assert worse["test/novel_share"] == 1
    assert worse["test/unique_share"] == 0.25
    assert worse["test/self_bleu"] == pytest.approx(1)


def test_people_are_scored_by_their_first_caption_against_their_others(tmp_path: Path) -> None:
    data = Pictures()
    data.tables["train"] = CaptionTable(pixels(), [[s, s, "a square"] for s in SENTENCES], VOCAB)
    found = trainer(tmp_path).test(model(), datamodule=data, verbose=False)[0]
    assert found["test/people/bleu_4"] == pytest.approx(1)
    assert found["test/people/unique_share"] == 1
    assert "test/people/novel_share" not in found  # of a model that was not trained here


def scores_of_people(captions: list[list[str]], batch_size: int) -> dict[str, float]:
    data = Pictures()
    table = data.tables["train"] = CaptionTable(pixels(), captions, VOCAB)
    data.test_dataloader = lambda: TensorLoader(table, batch_size)  # type: ignore[method-assign]
    found = trainer(Path.cwd()).test(model(), datamodule=data, verbose=False)[0]
    return {name: value for name, value in found.items() if name.startswith("test/people")}


def test_people_are_scored_wherever_there_are_others() -> None:
    """Also beside images with a single caption, whatever the batches."""
    captions = [[s, "a square"] if place % 2 else [s] for place, s in enumerate(SENTENCES)]
    found = scores_of_people(captions, 4)
    assert found
    assert scores_of_people(captions, 1) == pytest.approx(found)


def people_on_a_rank(rank_captions: list[list[list[str]]]) -> dict[str, float]:
    """Of a metric to which this rank adds its own images only."""
    scores = CaptionScores(VOCAB)
    for captions in rank_captions[dist.get_rank()]:
        several = [[tuple(map(VOCAB.index, s.split())) for s in captions]] if len(captions) > 1 else []
        said, references = [each[0] for each in several], [each[1:] for each in several]
        nothing = torch.full((len(said), 5), -1)
        scores.update(said, references, nothing, nothing[:, 0], torch.zeros(len(said), dtype=torch.bool))
    return {name: float(value) for name, value in scores.compute().items()}


def test_a_rank_without_anybody_to_compare_does_not_leave_the_other_waiting() -> None:
    alone, in_company = [[SENTENCES[0]]] * 2, [[SENTENCES[1], SENTENCES[2]]] * 2
    first, second = on_two_ranks(people_on_a_rank, [alone, in_company])
    assert first == pytest.approx(second, nan_ok=True)
    assert first["length"] > 0
    assert on_two_ranks(people_on_a_rank, [alone, alone]) == [{}, {}]


def test_words_that_the_vocabulary_lacks_are_words_of_their_own_in_references() -> None:
    table = CaptionTable(pixels(2), [["a zebra", "a square"], ["a yak", "zebra"]], VOCAB)
    batch = table[torch.arange(2)]
    a, unknown = VOCAB.index("a"), VOCAB.index("<unk>")
    assert batch.captions.tolist() == [[a, unknown], [a, VOCAB.index("square")], [a, unknown], [unknown, 0]]
    yak, zebra = len(VOCAB), len(VOCAB) + 1
    assert batch.references.tolist() == [[a, zebra], [a, VOCAB.index("square")], [a, yak], [zebra, 0]]
    chosen = choose_captions(batch, torch.tensor([[0.9, 0.1], [0.1, 0.9]]), 1)
    assert chosen.references.tolist() == [[a, VOCAB.index("square")], [a, yak]]


def test_nats_are_the_mean_over_all_tokens(tmp_path: Path) -> None:
    captioner = model()
    found = trainer(tmp_path).test(captioner, datamodule=Pictures(), verbose=False)[0]
    table = Pictures().tables["train"]
    batch = table[torch.arange(4)]
    batch = batch._replace(images=batch.images.float() / 255)
    log_p, each = captioner(batch).log_softmax(2), []
    for n, length in enumerate(batch.lengths.tolist()):
        each += [-float(log_p[n, t, w]) for t, w in enumerate([*batch.captions[n, :length].tolist(), END])]
    assert found["test/nats_per_token"] == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_a_checkpoint_captions_without_data_and_knows_what_it_was_taught(
    taught: tuple[Captioner, Path], tmp_path: Path
) -> None:
    _, path = taught
    loaded = Captioner.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    assert loaded.caption(pixels()) == [[sentence] for sentence in SENTENCES]
    assert loaded.vocab == VOCAB
    assert loaded.longest == 6
    data = Pictures()
    del data.tables["train"]
    table = CaptionTable(pixels(), [[sentence] for sentence in SENTENCES], VOCAB)
    data.test_dataloader = lambda: TensorLoader(table, 3)  # type: ignore[method-assign]
    found = trainer(tmp_path).test(loaded, datamodule=data, verbose=False)[0]
    assert found["test/novel_share"] == 0
    content = torch.load(path, weights_only=True)
    assert not [name for name in content["state_dict"] if name.startswith(("scores", "compared"))]


def test_judging_counts_stated_and_true_facts() -> None:
    attributes = {"shape": ["circle", "square", "triangle"], "color": ["red", "green"]}
    objects = torch.tensor([[[0, 0, 20, 10], [1, 1, 20, 50]], [[2, 1, 30, 30], [-1, -1, -1, -1]]])
    stated, true, covered, coverable, parsed = judge(objects, attributes, ["a green circle", "a green triangle"]).T
    assert (stated > true).tolist() == [True, False]
    assert stated[1] == true[1] == 1
    assert covered.tolist()[1] == coverable.tolist()[1] == 2
    assert parsed.tolist() == [1, 1]
    assert judge(objects, attributes, ["red red a", "a circle a"])[:, 4].tolist() == [0, 0]
    assert judge(torch.zeros(2, 0, 4), attributes, ["a", "b"]).tolist() == [[-1] * 5] * 2


@pytest.mark.parametrize("options", KINDS)
def test_illustrating_gives_figures_and_leaves_mode_and_generator_alone(
    tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[Any] = []

    def watched(cells: Any, columns: int, note: str) -> Image.Image:
        pages.append(cells)
        return captioned_page(cells, columns, note=note)

    monkeypatch.setattr("lit_models.figures.captioner.captioned_page", watched)
    captioner, data = model(dropout=0.5, **options), Pictures()
    trainer(tmp_path).test(captioner, datamodule=data, verbose=False)
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    for mode in (True, False):
        captioner.train(mode)
        generator = torch.get_rng_state()
        figures = illustrate(captioner, batch)
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(module.training is mode for module in captioner.modules())
        expected = {"captions", "captions.txt", "length", "diversity"}
        assert set(figures) == expected | ({"attention"} if options["attention"] else set())
    assert len(pages[0]) == 3
    text = figures["captions.txt"]
    assert [line.split()[0] for line in text.splitlines() if line] == ["reference", "model"] * 3
    assert f"reference  {' '.join(VOCAB[word] for word in batch.captions[0, : batch.lengths[0]].tolist())}\n" in text
    if options["attention"]:
        said = [until_end(row) for row in captioner.decode(pixels(3) / 255)[:, 0].tolist()]
        over = [cell.above for cell in pages[1] if cell is not None and cell.above]
        assert over == [word for words in said for word in (*(VOCAB[token] for token in words), "(end)")]
