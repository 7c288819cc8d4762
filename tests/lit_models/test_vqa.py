"""VQA: its maths against naive loops, and what it answers to pictures from anywhere."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn

from datamodules.parts.loader import TensorLoader
from datamodules.parts.visual_questions import VQABatch
from lit_models.figures import vqa as figures
from lit_models.figures.canvas import Captioned, attended, captioned_page, matrix_page
from lit_models.vqa import (
    VQA,
    AttentionFact,
    ConcatFact,
    ProductFact,
    RelationFact,
    answer_loss,
    with_coordinates,
)

VOCAB = ["<pad>", "<unk>", "is", "it", "red", "what", "color"]
ANSWERS = ["yes", "no", "red", "blue"]
TYPES = ["yes_no", "color"]
FUSIONS = ["product", "concat", "attention", "relation"]
QUESTION = "what color is it?"


def model(**options: Any) -> VQA:
    """A small one in evaluation mode, with batch statistics and biases that matter."""
    torch.manual_seed(0)
    sizes = {"image_shape": [3, 16, 16], "channels": [4, 6], "embedding_dim": 5, "hidden_dim": 7, "fact_dim": 8}
    made = VQA(VOCAB, ANSWERS, TYPES, **{**sizes, "classifier_dim": 9, "relation_layers": 2, **options})
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made.eval()


def made_up(soft: bool = False, seed: int = 0) -> VQABatch:
    """Three images, four questions of different lengths, eight pairs."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 1, 4, 2])
    questions = torch.randint(1, len(VOCAB), (4, 4), generator=generator)
    questions[torch.arange(4) >= lengths[:, None]] = 0
    index = torch.tensor([2, 0, 3, 1, 1, 0, 2, 3])
    return VQABatch(
        images=torch.rand(3, 3, 16, 16, generator=generator),
        questions=questions,
        lengths=lengths,
        image_index=torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]),
        question_index=index,
        answers=torch.rand(8, 4, generator=generator) if soft else torch.randint(4, (8,), generator=generator),
        question_types=torch.tensor([0, 1, 0, 1, 1, 0, 1, 0]),
        question_ids=index,
        prior_answers=torch.zeros(8, dtype=torch.long),
        unseen=torch.arange(8) % 4 == 0,
    )


# The fact embedding.


@pytest.fixture
def facts_input() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Grid (I, C, h, w), question (D, E), and the pairs' two indices."""
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, 2), torch.randn(3, 5), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([2, 0, 1, 1, 2])


def pooled(grid: Tensor, how: str) -> Tensor:
    """One vector of one image's grid (4, 3, 2)."""
    if how == "flatten":
        return torch.stack([grid[c, y, x] for c in range(4) for y in range(3) for x in range(2)])
    return torch.stack([grid[c].max() if how == "max" else grid[c].sum() / 6 for c in range(4)])


POOLINGS = [("max", 4), ("mean", 4), ("flatten", 24)]


@pytest.mark.parametrize(("pooling", "size"), POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_product_fact_equals_a_naive_loop(facts_input: Any, pooling: Any, size: int, normalize: bool) -> None:
    fact = ProductFact(size, 5, 6, pooling=pooling, normalize=normalize)
    grid, question, images, questions = facts_input
    rows = []
    for i, d in zip(images.tolist(), questions.tolist(), strict=True):
        v = pooled(grid[i], pooling)
        v = v / v.norm() if normalize else v
        rows.append((fact.image.weight @ v + fact.image.bias).tanh() * fact.question(question[d]).tanh())
    torch.testing.assert_close(fact(*facts_input), torch.stack(rows))
    assert fact.out_dim == 6


@pytest.mark.parametrize(("pooling", "size"), POOLINGS)
def test_concat_fact_equals_a_naive_loop(facts_input: Any, pooling: Any, size: int) -> None:
    fact = ConcatFact(size, 5, 6, pooling=pooling)
    grid, question, images, questions = facts_input
    rows = []
    for i, d in zip(images.tolist(), questions.tolist(), strict=True):
        v = pooled(grid[i], pooling)
        rows.append(torch.cat([fact.image(v).clamp_min(0), fact.question(question[d]).clamp_min(0)]))
    torch.testing.assert_close(fact(*facts_input), torch.stack(rows))
    assert fact.out_dim == 12


def test_attention_fact_equals_a_naive_loop_and_its_shares_sum_to_one(facts_input: Any) -> None:
    fact = AttentionFact(4, 5, 6)
    grid, question, images, questions = facts_input
    shares = fact.attend(*facts_input)
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    for pair, (i, d) in enumerate(zip(images.tolist(), questions.tolist(), strict=True)):
        cells = [grid[i, :, y, x] for y in range(3) for x in range(2)]
        scores = [fact.score((fact.image_key(cell) + fact.question_key(question[d])).tanh()).exp() for cell in cells]
        share = torch.cat(scores) / sum(scores)
        torch.testing.assert_close(shares[pair], share)
        seen = sum(s * cell for s, cell in zip(share, cells, strict=True))
        expected = fact.image(seen).tanh() * fact.question(question[d]).tanh()
        torch.testing.assert_close(fact(*facts_input)[pair], expected)
    assert fact.out_dim == 6


@pytest.mark.parametrize("layers", [1, 3])
def test_relation_fact_equals_one_network_on_each_concatenated_pair(facts_input: Any, layers: int) -> None:
    fact = RelationFact(4, 5, 6, layers)
    grid, question, images, questions = facts_input
    first = nn.Linear(6 + 6 + 5, 6)
    with torch.no_grad():
        first.weight.copy_(torch.cat([fact.first.weight, fact.second.weight, fact.question.weight], 1))
        first.bias.copy_(fact.first.bias)
    g = [first, *(layer for layer in fact.rest if isinstance(layer, nn.Linear))]
    assert len(g) == layers
    rows = []
    for i, d in zip(images.tolist(), questions.tolist(), strict=True):
        objects = []
        for y in range(3):
            for x in range(2):
                objects.append(torch.cat([grid[i, :, y, x], torch.tensor([-1.0 + y, -1.0 + 2 * x])]))
        total = torch.zeros(6)
        for first_place, a in enumerate(objects):
            for b in objects[first_place:]:  # two objects meet once, and each meets itself
                hidden = torch.cat([a, b, question[d]])
                for layer in g:
                    hidden = layer(hidden).clamp_min(0)
                total = total + hidden
        rows.append(total / 6)  # by the number of objects
    torch.testing.assert_close(fact(*facts_input), torch.stack(rows))
    assert fact.out_dim == 6


def test_coordinates_are_those_of_rows_and_columns() -> None:
    grid = torch.randn(2, 3, 5, 3)
    more = with_coordinates(grid)
    assert torch.equal(more[:, :3], grid)
    for image in more:
        assert image[3].tolist() == [[row] * 3 for row in (-1, -0.5, 0, 0.5, 1)]
        assert image[4].tolist() == [[-1, 0, 1]] * 5


# The loss.


def test_soft_loss_equals_a_naive_loop() -> None:
    logits, answers = torch.randn(5, 4), torch.rand(5, 4).round(decimals=1)
    for row, target, loss in zip(logits.tolist(), answers.tolist(), answer_loss(logits, answers), strict=True):
        expected = 0.0
        for z, y in zip(row, target, strict=True):
            p = 1 / (1 + math.exp(-z))
            expected -= y * math.log(p) + (1 - y) * math.log(1 - p)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_hard_loss_equals_a_naive_loop() -> None:
    logits, answers = torch.randn(5, 4), torch.tensor([3, 0, 1, 1, 2])
    for row, target, loss in zip(logits.tolist(), answers.tolist(), answer_loss(logits, answers), strict=True):
        assert float(loss) == pytest.approx(math.log(sum(map(math.exp, row))) - row[target], rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_training_minimizes_the_mean_over_all_pairs(soft: bool) -> None:
    vqa, batch = model(), made_up(soft)
    result = vqa.training_step(batch, 0)
    logits = vqa(batch)
    torch.testing.assert_close(result["loss"], answer_loss(logits, batch.answers).mean())
    best = logits.argmax(1)
    scores = [float(a[i] if soft else a == i) for a, i in zip(batch.answers, best, strict=True)]
    assert float(result["accuracy"]) == pytest.approx(sum(scores) / 8)
    assert not result["accuracy"].requires_grad


# The whole model.


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_pair_is_answered_as_if_it_were_alone(fusion: Any) -> None:
    vqa, batch = model(fusion=fusion), made_up()
    logits = vqa(batch)
    assert logits.shape == (8, 4)
    for pair in range(8):
        image, row = batch.image_index[pair], batch.question_index[pair]
        length = batch.lengths[row]
        alone = batch._replace(
            images=batch.images[image][None],
            questions=batch.questions[row, :length][None],
            lengths=length[None],
            image_index=torch.tensor([0]),
            question_index=torch.tensor([0]),
        )
        torch.testing.assert_close(vqa(alone)[0], logits[pair])
    assert (logits[0] - logits[6]).abs().max() > 1e-4  # one question about two images
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # two questions about one image


@pytest.mark.parametrize("fusion", FUSIONS)
def test_permuting_images_and_pairs_permutes_the_logits(fusion: Any) -> None:
    vqa, batch = model(fusion=fusion).train(), made_up()
    logits = vqa(batch)
    order, place = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    images = batch._replace(images=batch.images[order], image_index=place[batch.image_index])
    torch.testing.assert_close(vqa(images), logits)
    pairs = torch.tensor([5, 3, 0, 7, 1, 6, 2, 4])
    shuffled = batch._replace(
        image_index=batch.image_index[pairs], question_index=batch.question_index[pairs], answers=batch.answers[pairs]
    )
    torch.testing.assert_close(vqa(shuffled), logits[pairs])


@pytest.mark.parametrize("layers", [1, 2])
def test_padding_does_not_matter(layers: int) -> None:
    vqa, batch = model(lstm_layers=layers), made_up()
    with torch.no_grad():
        vqa.embedding.weight[0] = 5.0  # so that padding, if it were read, would show
    longer = batch._replace(questions=torch.cat([batch.questions, torch.zeros(4, 3, dtype=torch.long)], 1))
    torch.testing.assert_close(vqa(longer), vqa(batch))
    garbage = batch._replace(questions=torch.where(batch.questions == 0, 4, batch.questions))
    torch.testing.assert_close(vqa(garbage), vqa(batch))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_question_is_its_last_words_state_in_the_last_layer(layers: int) -> None:
    vqa, batch = model(lstm_layers=layers), made_up()
    states = vqa.encode_question(batch.questions, batch.lengths)
    for question, length, state in zip(batch.questions, batch.lengths, states, strict=True):
        output, _ = vqa.lstm(vqa.embedding(question[:length][None]))
        torch.testing.assert_close(state, output[0, -1])


def test_word_order_matters() -> None:
    vqa = model()
    states = vqa.encode_question(torch.tensor([[2, 3, 4], [4, 3, 2]]), torch.tensor([3, 3]))
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_blind_ignores_images_and_has_no_encoder() -> None:
    vqa, batch = model(blind=True), made_up()
    assert vqa.encoder is None
    assert torch.equal(vqa(batch), vqa(batch._replace(images=torch.rand(3, 3, 16, 16))))
    other = vqa(batch._replace(questions=batch.questions.roll(1, 0), lengths=batch.lengths.roll(1, 0)))
    assert (other - vqa(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_image_only_ignores_questions(fusion: Any) -> None:
    vqa, batch = model(image_only=True, fusion=fusion), made_up()
    other = batch._replace(questions=batch.questions.roll(1, 0), lengths=batch.lengths.roll(1, 0))
    assert torch.equal(vqa(batch), vqa(other))
    assert (vqa(batch._replace(images=batch.images.roll(1, 0))) - vqa(batch)).abs().max() > 1e-4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_image_and_question_is_encoded_once(fusion: Any) -> None:
    vqa, batch = model(fusion=fusion), made_up()
    assert vqa.encoder is not None
    images: list[int] = []
    questions: list[int] = []
    vqa.encoder.register_forward_hook(lambda module, inputs, output: images.append(len(inputs[0])))
    vqa.lstm.register_forward_hook(lambda module, inputs, output: questions.append(output[1][0].shape[1]))
    vqa(batch)
    assert images == [3]
    assert questions == [4]


def test_features_are_taken_as_they_are() -> None:
    vqa = model(encoder="features", image_shape=[10, 2, 2], fusion="product")
    assert not list(vqa.encoder.parameters())  # type: ignore[union-attr]
    batch = made_up()._replace(images=torch.randn(3, 10, 2, 2))
    assert vqa(batch).shape == (8, 4)
    assert vqa.fact.image.in_features == 10  # type: ignore[union-attr]


def test_predictions_are_answers_in_words() -> None:
    vqa, batch = model(), made_up()
    found = vqa.predict_step(batch, 0)
    assert found["answer"] == [ANSWERS[i] for i in vqa(batch).argmax(1)]
    assert torch.allclose(found["probability"], vqa(batch).softmax(1).amax(1))
    scored = batch._replace(answers=torch.zeros(len(batch.answers), len(ANSWERS)))
    assert torch.allclose(vqa.predict_step(scored, 0)["probability"], vqa(batch).sigmoid().amax(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blind": True, "image_only": True}, "blind=true with image_only=true: expected at most one"),
        ({"fusion": "sum"}, "fusion='sum'"),
        ({"encoder": "resnet19"}, "encoder='resnet19'"),
        ({"norm": "layer"}, "norm='layer': expected 'batch', 'group' or 'none'"),
        ({"pooling": "avg"}, "pooling='avg': expected 'max', 'mean' or 'flatten'"),
        ({"relation_layers": 0}, "relation_layers=0: expected at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: expected a number in \[0, 1\)"),
    ],
)
def test_mistakes_name_the_argument(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**options)


@pytest.mark.parametrize("fusion", ["product", "concat"])
@pytest.mark.parametrize("pooling", ["max", "mean", "flatten"])
def test_any_pooling_fits_the_encoder(fusion: Any, pooling: Any) -> None:
    vqa, batch = model(fusion=fusion, pooling=pooling, image_shape=[3, 16, 18]), made_up()
    batch = batch._replace(images=torch.rand(3, 3, 16, 18))
    assert vqa(batch).shape == (8, 4)
    assert vqa.fact.image.in_features == (6 * 4 * 5 if pooling == "flatten" else 6)  # type: ignore[union-attr]


# Answering.


@pytest.fixture
def pixels() -> np.ndarray:
    """(16, 16, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def same(a: list[tuple[str, float]], b: list[tuple[str, float]]) -> bool:
    return [x for x, _ in a] == [x for x, _ in b] and [p for _, p in a] == pytest.approx([p for _, p in b], abs=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_answer_is_that_of_the_forward_pass(fusion: Any, pixels: np.ndarray) -> None:
    vqa = model(fusion=fusion)
    tokens = torch.tensor([[5, 6, 2, 3]])
    first = torch.tensor([0])
    batch = made_up()._replace(
        images=torch.tensor(pixels).movedim(2, 0)[None] / 255,
        questions=tokens,
        lengths=torch.tensor([4]),
        image_index=first,
        question_index=first,
    )
    p = vqa(batch)[0].softmax(0).tolist()
    expected = sorted(zip(ANSWERS, p, strict=True), key=lambda pair: -pair[1])
    given = vqa.answer(pixels, QUESTION, top=4)
    assert same(given, expected)
    assert sum(p for _, p in given) == pytest.approx(1)
    assert vqa.answer(pixels, QUESTION) == given[:3]
    assert vqa.answer(pixels, QUESTION, top=99) == given
    assert vqa.answer(pixels, "  WHAT color is  it", 4) == given


def test_a_picture_is_answered_alike_in_whatever_form_it_comes(pixels: np.ndarray) -> None:
    vqa = model()
    expected = vqa.answer(pixels, QUESTION, 4)
    tensor = torch.tensor(pixels).movedim(2, 0)
    opaque = np.concatenate([pixels, np.full((16, 16, 1), 255, np.uint8)], 2)
    forms = [
        Image.fromarray(pixels),
        Image.fromarray(opaque),
        opaque,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        pixels.astype(np.int64),
        tensor,
        tensor / 255,
        (tensor / 255).double(),
        tensor.movedim(0, 2).contiguous().movedim(2, 0),
    ]
    for form in forms:
        assert same(vqa.answer(form, QUESTION, 4), expected)
    other = vqa.answer(255 - pixels, QUESTION, 4)
    assert not same(other, expected)
    several = (
        vqa.answer([pixels, 255 - pixels], QUESTION, 4),
        vqa.answer(np.stack([pixels, 255 - pixels]), [QUESTION] * 2, 4),
    )
    for found in several:
        assert len(found) == 2
        assert same(found[0], expected)
        assert same(found[1], other)
    asked = vqa.answer(pixels, [QUESTION, "what zzz it"], 4)
    assert same(asked[0], expected)
    assert same(asked[1], vqa.answer(pixels, "what zzz it", 4))


def test_each_of_soft_answers_has_a_probability_of_its_own(pixels: np.ndarray) -> None:
    vqa = model(soft_answers=True)
    with torch.no_grad():
        vqa.classifier[-1].bias += 20  # all of them are right
    assert [p > 0.99 for _, p in vqa.answer(pixels, QUESTION, 4)] == [True] * 4


def test_gray_and_palette_pictures_count_as_the_colors_they_show(pixels: np.ndarray) -> None:
    vqa = model()
    gray = pixels[:, :, 0]
    expected = vqa.answer(np.stack([gray] * 3, 2), QUESTION, 4)
    for form in (
        Image.fromarray(gray),
        gray,
        gray[:, :, None],
        torch.tensor(gray),
        torch.tensor(gray)[None],
        gray / 255,
    ):
        assert same(vqa.answer(form, QUESTION, 4), expected)
    palette = Image.fromarray(pixels).quantize(16)
    assert palette.mode == "P"
    assert same(vqa.answer(palette, QUESTION, 4), vqa.answer(np.array(palette.convert("RGB")), QUESTION, 4))


def test_what_is_transparent_shows_white(pixels: np.ndarray) -> None:
    vqa = model()
    alpha = np.zeros((16, 16, 1), np.uint8)
    alpha[:8] = 255
    white = np.where(alpha > 0, pixels, np.uint8(255))
    see_through = np.concatenate([pixels, alpha], 2)
    for form in (see_through, Image.fromarray(see_through), torch.tensor(see_through).movedim(2, 0)):
        assert same(vqa.answer(form, QUESTION, 4), vqa.answer(white, QUESTION, 4))


def test_other_sizes_are_resized(pixels: np.ndarray) -> None:
    vqa = model()
    expected = vqa.answer(np.full((16, 16, 3), 77, np.uint8), QUESTION, 4)
    for size in ((5, 9), (64, 40), (1, 1)):
        assert same(vqa.answer(np.full((*size, 3), 77, np.uint8), QUESTION, 4), expected)
    smooth = Image.fromarray(pixels).resize((4, 4)).resize((16, 16), Image.Resampling.BICUBIC)
    large = smooth.resize((64, 64), Image.Resampling.BICUBIC)
    for (_, a), (_, b) in zip(
        sorted(vqa.answer(smooth, QUESTION, 4)), sorted(vqa.answer(large, QUESTION, 4)), strict=True
    ):
        assert a == pytest.approx(b, abs=0.01)


def test_answering_leaves_mode_weights_statistics_and_generator_alone(pixels: np.ndarray) -> None:
    vqa = model(dropout=0.5)
    expected = vqa.answer(pixels, QUESTION)
    for mode in (True, False):
        vqa.train(mode)
        before = {name: value.clone() for name, value in vqa.state_dict().items()}
        generator = torch.get_rng_state()
        assert vqa.answer(pixels, QUESTION) == expected  # without dropout or batch statistics in either mode
        assert all(module.training is mode for module in vqa.modules())
        assert all(torch.equal(value, before[name]) for name, value in vqa.state_dict().items())
        assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(ValueError, match="at least one word"):
        vqa.train().answer(pixels, "?")
    assert vqa.training


def test_unknown_words_count_as_unknown(pixels: np.ndarray) -> None:
    vqa = model()
    given = vqa.answer(pixels, "what frobnicates it?", 4)
    assert same(given, vqa.answer(pixels, "what zzz it", 4))
    assert not same(given, vqa.answer(pixels, "what is it", 4))


def test_blind_model_answers_too(pixels: np.ndarray) -> None:
    vqa = model(blind=True)
    assert same(vqa.answer(pixels, QUESTION, 4), vqa.answer(255 - pixels, QUESTION, 4))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"question": ""}, ValueError, "at least one word"),
        ({"question": " ? "}, ValueError, "at least one word"),
        ({"question": 3}, TypeError, "question of type int"),
        ({"question": None}, TypeError, "question of type NoneType"),
        ({"top": 0}, ValueError, "top=0"),
        ({"top": None}, TypeError, "top=None: expected a whole number"),
        ({"image": "cat.jpg"}, FileNotFoundError, "image=cat.jpg: no such file"),
        ({"image": None}, TypeError, "image of type NoneType"),
        ({"image": np.full((4, 4), np.nan)}, ValueError, "nan"),
        ({"image": torch.full((3, 4, 4), float("inf"))}, ValueError, "inf"),
        ({"image": np.full((4, 4), 200.0)}, ValueError, "200"),
        ({"image": np.full((4, 4), -1)}, ValueError, r"0\.\.255"),
        ({"image": np.full((4, 4), 256)}, ValueError, r"0\.\.255"),
        ({"image": np.zeros((4, 4, 5))}, ValueError, r"\(4, 4, 5\)"),
        ({"image": torch.zeros(4, 4, 3)[None, None]}, ValueError, "shape"),
        ({"image": [np.zeros((4, 4))] * 2, "question": [QUESTION] * 3}, ValueError, "2 images and 3 questions"),
        ({"image": np.zeros((0, 4, 3))}, ValueError, r"\(0, 4, 3\)"),
        ({"image": np.zeros(4)}, ValueError, r"\(4,\)"),
    ],
)
def test_what_cannot_be_answered_is_said(
    change: dict[str, Any], error: type[Exception], words: str, pixels: np.ndarray
) -> None:
    with pytest.raises(error, match=words):
        model().answer(**{"image": pixels, "question": QUESTION, **change})


# Figures and checkpoints.


class Batches:
    """A source whose every sample is one whole batch."""

    def __init__(self, soft: bool) -> None:
        self.soft = soft

    def __len__(self) -> int:
        return 3

    def __getitem__(self, indices: Tensor) -> VQABatch:
        return made_up(self.soft, seed=int(indices[0]))


def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


@pytest.mark.parametrize("options", [{"fusion": fusion} for fusion in FUSIONS] + [{"blind": True}])
@pytest.mark.parametrize("soft", [False, True])
def test_illustrating_gives_figures_and_leaves_mode_and_generator_alone(
    tmp_path: Path, options: Any, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Captioned]] = []
    titles: list[str] = []

    def watched_page(cells: list[Captioned], columns: int, note: str) -> Image.Image:
        asked.append(cells)
        return captioned_page(cells, columns, note=note)

    def watched_matrix(shares: Any, names: Any, title: str, *words: str) -> Image.Image:
        titles.append(title.split(":")[0])
        return matrix_page(shares, names, title, *words)

    monkeypatch.setattr(figures, "captioned_page", watched_page)
    monkeypatch.setattr(figures, "matrix_page", watched_matrix)
    heat = Mock(wraps=attended)
    monkeypatch.setattr(figures, "attended", heat)
    vqa = model(dropout=0.5, **options)
    trainer(tmp_path).validate(vqa, TensorLoader(Batches(soft), 1), verbose=False)
    for mode in (True, False):
        vqa.train(mode)
        generator = torch.get_rng_state()
        before = {name: value.clone() for name, value in vqa.state_dict().items()}
        made = figures.illustrate(vqa, made_up(soft, seed=0))
        assert all(torch.equal(value, before[name]) for name, value in vqa.state_dict().items())
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(module.training is mode for module in vqa.modules())
        assert set(made) == {"confusion", "questions"}
    assert [len(cells) for cells in asked] == [3, 3], "one question an image"
    assert heat.call_count == (6 if vqa.hparams["fusion"] == "attention" and vqa.encoder else 0)
    assert titles == 2 * TYPES


def test_validation_logs_the_scores_of_all_batches(tmp_path: Path) -> None:
    vqa = model()
    metrics = trainer(tmp_path).validate(vqa, TensorLoader(Batches(False), 1), verbose=False)[0]
    right, losses = [], []
    for seed in range(3):
        batch = made_up(seed=seed)
        logits = vqa(batch)
        right.append((logits.argmax(1) == batch.answers).double())
        losses.append(answer_loss(logits, batch.answers).detach())
    assert metrics["val/accuracy"] == pytest.approx(float(torch.cat(right).mean()))
    assert metrics["val/loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    types = torch.cat([made_up(seed=seed).question_types for seed in range(3)])
    assert metrics["val/accuracy_color"] == pytest.approx(float(torch.cat(right)[types == 1].mean()))
    assert "val/accuracy_unseen" in metrics
    with torch.no_grad():
        vqa.classifier[-1].weight.zero_()  # type: ignore[operator]
        vqa.classifier[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # type: ignore[operator]
    again = trainer(tmp_path).test(vqa, TensorLoader(Batches(False), 1), verbose=False)[0]
    truth = torch.cat([made_up(seed=seed).answers for seed in range(3)])
    assert again["test/accuracy"] == pytest.approx(float((truth == 1).double().mean()))  # of this evaluation alone


@pytest.mark.parametrize("options", [{"fusion": fusion} for fusion in FUSIONS] + [{"blind": True}])
def test_a_checkpoint_answers_without_data_or_trust(tmp_path: Path, options: Any, pixels: np.ndarray) -> None:
    vqa = model(optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=None, **options)  # code, which is not saved
    run = trainer(tmp_path)
    before = vqa.answer(pixels, QUESTION)
    run.fit(vqa.train(), TensorLoader(Batches(False), 1), TensorLoader(Batches(False), 1))
    run.save_checkpoint(tmp_path / "model.ckpt")
    expected = vqa.answer(pixels, QUESTION, 4)
    assert expected[:3] != before
    loaded = VQA.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True, map_location="cpu")
    assert loaded.answer(pixels, QUESTION, 4) == expected
    assert (loaded.vocab, loaded.answers, loaded.question_types) == (VOCAB, ANSWERS, TYPES)
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["hyper_parameters"]["vocab"] == VOCAB
    assert not [name for name in content["state_dict"] if name.startswith("scores")]


def test_an_unknown_word_of_a_question_is_named() -> None:
    asked = model()
    known = next(word for word in asked.vocab if word.isalpha())
    with pytest.warns(UserWarning, match="'zyx' is in no training question, read as <unk>"):
        asked.answer(np.zeros((8, 8, 3), np.uint8), f"{known} zyx")
