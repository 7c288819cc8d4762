"""What a run that starts from another's weights takes of them, and what it says about that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from experiments.mistakes import Mistake
from experiments.transfer import Transfer, start_from
from lit_models.captioner import Captioner
from lit_models.char_lm import CharLM
from lit_models.deep_image_prior import DeepImagePrior
from lit_models.linear_probe import LinearProbe
from lit_models.metric_learning import MetricLearning
from lit_models.moco import MoCo
from lit_models.seq_autoencoder import SequenceAutoencoder
from lit_models.simclr import SimCLR
from lit_models.text_to_image import TextToImageGAN
from lit_models.text_vae import TextVAE
from lit_models.vqa import VQA

SHAPE = [3, 16, 16]


def saved(module: LightningModule, file: str = "old.ckpt") -> Path:
    """A checkpoint as a run leaves it, of weights that are nobody's first ones."""
    with torch.no_grad():
        for value in module.state_dict().values():
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.full_like(value, 1))
    made_of = {**module.hparams, "_class_path": f"{type(module).__module__}.{type(module).__name__}"}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": made_of}, file)
    return Path(file)


def transfer(old: LightningModule, new: LightningModule, data: object = None) -> tuple[Transfer, dict[str, Any]]:
    """What becomes of each weight, and the new model's weights before it."""
    before = {name: value.clone() for name, value in new.state_dict().items()}
    return start_from(new, saved(old), data), before


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (lambda vocab: CharLM(vocab, hidden=8, layers=1), {}),
        (lambda vocab: CharLM(vocab, hidden=8, layers=1, embedding_dim=8, tied=True), {}),
        (lambda vocab: TextVAE(vocab, 9, latent_dim=4, hidden=8, embedding_dim=4), {"embedding": 2, "head": 1}),
        (lambda vocab: SequenceAutoencoder(9, vocab, code_dim=4, hidden=8), {"embedding": 1, "head": 1}),
    ],
    ids=["one-hot", "tied", "text VAE", "sequence autoencoder"],
)
def test_characters_keep_their_weights(
    make: Callable[[list[str]], LightningModule], extra: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As many characters, so that every shape is the same, and still each weight goes to its own character."""
    before, after = list("abcdef"), list("fxdcba")
    old, new = make(before), make(after)
    done, initial = transfer(old, new)
    assert done.mapped
    for name, value in new.state_dict().items():
        there = old.state_dict()[name]
        if name not in done.mapped:
            assert torch.equal(value, there), name
            continue
        dim = 1 if name.endswith("weight_ih_l0") else 0
        for place, char in enumerate(after):
            row, own = value.select(dim, place), initial[name].select(dim, place)
            assert torch.equal(row, own if char == "x" else there.select(dim, before.index(char))), (name, char)
        behind = extra.get(name.split(".")[0], 0)
        assert value.shape[dim] == len(after) + behind
        assert torch.equal(value[len(after) :], there[len(before) :]) or not behind
    said = capsys.readouterr().out
    assert f"mapped  {len(done.mapped)}: " in said
    assert "by name: 5 of 6 known" in said


@pytest.mark.parametrize("options", [{}, {"embedding_dim": 8, "tied": True}], ids=["one-hot", "tied"])
def test_a_vocabulary_grows(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """By what a new text has, and by ``<unk>``, which the old model was trained without."""
    before, after = list("abc"), ["<unk>", *"abcxy"]
    old, new = (CharLM(vocab, hidden=8, layers=1, **options) for vocab in (before, after))
    done, initial = transfer(old, new)
    for name in ("decoder.weight", "decoder.bias"):
        value, there = new.state_dict()[name], old.state_dict()[name]
        assert torch.equal(value[1:4], there)
        assert torch.equal(value[[0, 4, 5]], initial[name][[0, 4, 5]])
    assert not done.left_out
    assert "by name: 3 of 6 known" in capsys.readouterr().out


def test_series_of_another_length_take_every_weight() -> None:
    facts = {"sequence_dim": 2, "code_dim": 4, "hidden": 8}
    old = SequenceAutoencoder(9, scaling={"shift": [1.0, 2.0], "scale": [3.0, 4.0]}, **facts)
    new = SequenceAutoencoder(30, scaling={"shift": [0.0, 0.0], "scale": [1.0, 1.0]}, **facts)
    done, _ = transfer(old, new)
    assert set(done.taken) == {name for name, _ in new.named_parameters()}
    assert done.left_out == dict.fromkeys(("pca_mean", "pca_components"), "which every training starts anew")


def test_words_and_answers_of_other_data() -> None:
    facts = {"question_types": ["a"], "image_shape": SHAPE, "channels": [4, 8], "embedding_dim": 4, "hidden_dim": 8}
    old = VQA(["<pad>", "<unk>", "red", "what"], ["no", "yes"], **facts)  # type: ignore[arg-type]
    new = VQA(["<pad>", "<unk>", "blue", "red", "the", "what"], ["yes", "maybe", "no"], **facts)  # type: ignore[arg-type]
    done, initial = transfer(old, new)
    assert set(done.mapped) == {"embedding.weight", "classifier.4.weight", "classifier.4.bias"}
    assert not done.left_out
    assert torch.equal(new.embedding.weight[[0, 1, 3, 5]], old.embedding.weight)
    assert torch.equal(new.embedding.weight[[2, 4]], initial["embedding.weight"][[2, 4]])
    assert torch.equal(new.classifier[4].bias[[2, 0]], old.classifier[4].bias)
    assert torch.equal(new.classifier[4].bias[1], initial["classifier.4.bias"][1])
    assert torch.equal(new.lstm.weight_ih_l0, old.lstm.weight_ih_l0)


def test_the_encoder_alone_where_the_rest_is_another() -> None:
    options = {"longest": 9, "image_shape": SHAPE, "channels": [4, 8], "embedding_dim": 4, "hidden_dim": 8}
    words = ["<pad>", "<unk>", "a"]
    old, new = Captioner(words, **options), Captioner(words, **options | {"hidden_dim": 12})  # type: ignore[arg-type]
    done, _ = transfer(old, new)
    encoder = {name for name in new.state_dict() if name.startswith("encoder.")}
    assert encoder <= set(done.taken)
    assert done.left_out["decoder.lstm.weight_hh"] == "(32, 8) in it and (48, 12) in the model"


def probe(names: list[str]) -> LinearProbe:
    encoder = {"image_shape": SHAPE, "encoder": "conv", "width": 4}
    made_of = {"class_path": "lit_models.simclr.SimCLR", "init_args": encoder}
    return LinearProbe(SHAPE, len(names), class_names=names, encoder=made_of)


def test_classes_by_name() -> None:
    old, new = probe(["cat", "cow", "dog"]), probe(["dog", "cat", "emu"])
    done, initial = transfer(old, new)
    assert set(done.mapped) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(new.classifier.weight[:2], old.classifier.weight[[2, 0]])
    assert torch.equal(new.classifier.weight[2], initial["classifier.weight"][2])
    done, _ = transfer(old, probe(["ant", "bee", "wasp"]))
    assert done.left_out["classifier.weight"] == "of which no name is the same"
    done, _ = transfer(old, probe(["cat", "cow", "dog"]))
    assert not done.mapped
    assert len(done.taken) == len(old.state_dict())


def test_classes_without_names_are_not_taken_for_the_same() -> None:
    options = {"encoder": "conv", "width": 4, "loss": {"name": "ClassificationLoss"}}
    old, new = (MetricLearning(SHAPE, 3, **options) for _ in range(2))  # type: ignore[arg-type]
    done, _ = transfer(old, new)
    assert {"loss.classifier.weight", "threshold"} <= set(done.left_out)
    assert new.threshold.isnan()
    assert torch.equal(next(new.encoder.parameters()), next(old.encoder.parameters()))


@pytest.mark.parametrize(
    ("make", "anew"),
    [
        (
            lambda: MoCo(SHAPE, "conv", width=4, queue_size=8, out_dim=4),
            {"queue.keys", "queue.steps", "queue.enqueued"},
        ),
        (
            lambda: DeepImagePrior(SHAPE, down=(4,), up=(4,), skip=(2,), input_channels=3),
            {"frames", "stop.mean", "stop.spread", "stop.kept", "stop.lowest", "stop.steps"},
        ),
        (lambda: SequenceAutoencoder(5, sequence_dim=2, code_dim=3, hidden=4), {"pca_mean", "pca_components"}),
    ],
    ids=["queue", "stop", "components"],
)
def test_a_finished_state_is_left_behind(make: Callable[[], LightningModule], anew: set[str]) -> None:
    old, new = make(), make()
    done, initial = transfer(old, new)
    assert anew <= set(done.left_out)
    for name, value in new.state_dict().items():
        expected = initial[name] if name in done.left_out else old.state_dict()[name]
        assert torch.equal(value, expected) or (value.isnan().all() and expected.isnan().all()), name
    assert all(done.left_out[name] == "which every training starts anew" for name in anew)


def test_what_was_trained_beforehand_is_taken_whole_or_not_at_all() -> None:
    words = ["<pad>", "<unk>", "red", "blue"]
    options = {"image_shape": SHAPE, "width": 8, "text_dim": 8, "embedding_dim": 4}

    def made(vocab: list[str], colors: list[str]) -> TextToImageGAN:
        return TextToImageGAN(vocab, {"color": colors}, **options)  # type: ignore[arg-type]

    old, same = made(words, ["red", "blue"]), made(words, ["red", "blue"])
    transfer(old, same)
    assert same.embedding.trained
    assert same.classifier.trained
    other = made([*words, "green"], ["blue", "red"])
    done, initial = transfer(old, other)
    assert not other.embedding.trained
    assert not other.classifier.trained
    for name in ("embedding.text.lstm.weight_hh_l0", "classifier.heads.0.weight"):
        assert torch.equal(other.state_dict()[name], initial[name])
        assert name in done.left_out
    pairs = zip(other.generator.parameters(), old.generator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_scale_of_pixels_comes_along() -> None:
    options = {"image_shape": [3, 32, 32], "encoder": "resnet18", "width": 4}
    old, new = SimCLR(**options), SimCLR(**options)  # type: ignore[arg-type]
    scale = next(name for name in new.state_dict() if name.endswith(".mean")).removesuffix(".mean")
    old.get_submodule(scale).register_buffer("mean", torch.zeros(3, 1, 1))
    done, _ = transfer(old, new)
    assert f"{scale}.mean" in done.taken
    assert torch.equal(new.get_submodule(scale).mean, old.get_submodule(scale).mean)  # type: ignore[arg-type]

    file = saved(old)
    content = torch.load(file)
    for name in ("mean", "std"):  # as before they were part of the weights
        del content["state_dict"][f"{scale}.{name}"]
    torch.save(content, file)
    another = SimCLR(**options)  # type: ignore[arg-type]
    done = start_from(another, file)
    assert done.new == [f"{scale}.mean", f"{scale}.std"]
    assert torch.equal(another.get_submodule(scale).mean, torch.full((3, 1, 1), 0.5))  # type: ignore[arg-type]


def test_nothing_in_common() -> None:
    file = saved(CharLM(list("abc"), hidden=8))
    with pytest.raises(Mistake) as error:
        start_from(SimCLR(SHAPE, "conv", width=4), file)
    assert str(error.value).startswith(
        "init_from=old.ckpt: nothing in it fits SimCLR: it holds lit_models.char_lm.CharLM with recurrent.layers.0"
    )
    assert "\n" not in str(error.value)


def test_the_generators_go_on_where_they_were() -> None:
    new = CharLM(list("abcx"), hidden=8)
    file = saved(CharLM(list("abc"), hidden=8))
    state = torch.get_rng_state()
    start_from(new, file)
    assert torch.equal(torch.get_rng_state(), state)
