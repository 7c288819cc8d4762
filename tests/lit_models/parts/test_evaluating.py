from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lit_models.autoencoder import Autoencoder
from lit_models.captioner import Captioner
from lit_models.char_lm import CharLM
from lit_models.linear_probe import LinearProbe
from lit_models.metric_learning import MetricLearning
from lit_models.parts.evaluating import evaluating
from lit_models.seq_autoencoder import SequenceAutoencoder
from lit_models.sketch_rnn import SketchRNN
from lit_models.text_to_image import TextToImageGAN
from lit_models.text_vae import TextVAE
from lit_models.vae import VAE
from lit_models.vqa import VQA

WORDS, CHARS, SHAPE = ["<pad>", "<unk>", "a", "circle"], ["a", "b"], [3, 16, 16]
ENCODER = {"class_path": "lit_models.simclr.SimCLR", "init_args": {"image_shape": SHAPE, "encoder": "conv", "width": 4}}
IMAGE = torch.zeros(*SHAPE)

USES: dict[str, tuple[Callable[[], LightningModule], Callable[[Any], object]]] = {
    "VQA.answer": (
        lambda: VQA(WORDS, ["yes"], ["shape"], SHAPE, channels=(4, 4)),
        lambda m: m.answer(IMAGE, "a circle", 1),
    ),
    "Captioner.caption": (lambda: Captioner(WORDS, 3, SHAPE, channels=(4, 4)), lambda m: m.caption(IMAGE)),
    "CharLM.sample": (lambda: CharLM(CHARS, hidden=4), lambda m: m.sample("a", 3)),
    "CharLM.stream": (lambda: CharLM(CHARS, hidden=4), lambda m: list(m.stream("a", 3))),
    "CharLM.score": (lambda: CharLM(CHARS, hidden=4), lambda m: m.score("ab")),
    "Autoencoder.reconstruct": (lambda: Autoencoder(SHAPE, channels=(4, 4)), lambda m: m.reconstruct(IMAGE)),
    "VAE.sample": (lambda: VAE(SHAPE, channels=(4, 4)), lambda m: m.sample(1)),
    "VAE.reconstruct": (lambda: VAE(SHAPE, channels=(4, 4)), lambda m: m.reconstruct(IMAGE)),
    "TextVAE.reconstruct": (lambda: TextVAE(CHARS, 5, hidden=4), lambda m: m.reconstruct("ab")),
    "SequenceAutoencoder.reconstruct": (lambda: SequenceAutoencoder(5, CHARS, hidden=4), lambda m: m.reconstruct("ab")),
    "SketchRNN.generate": (lambda: SketchRNN(1.0, 5, encoder_hidden=4, decoder_hidden=4), lambda m: m.generate(1)),
    "TextToImageGAN.generate": (
        lambda: TextToImageGAN(WORDS, {"shape": ["circle"]}, SHAPE, width=4),
        lambda m: m.generate("a circle"),
    ),
    "LinearProbe.classify": (lambda: LinearProbe(SHAPE, 2, encoder=ENCODER), lambda m: m.classify(IMAGE)),
    "MetricLearning.embedding": (
        lambda: MetricLearning(SHAPE, 2, encoder="conv", width=4),
        lambda m: m.embedding(IMAGE),
    ),
}


@pytest.mark.parametrize("verb", USES)
def test_use_leaves_each_part_in_its_mode(verb: str) -> None:
    make, use = USES[verb]
    model = make().train()
    for part in list(model.modules())[1::2]:  # frozen by the user, part by part
        part.training = False
    before = [part.training for part in model.modules()]
    use(model)
    assert [part.training for part in model.modules()] == before


def test_the_modes_are_restored_when_something_goes_wrong() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    network[1].eval()
    modes = []

    def fail() -> None:
        with evaluating(network):
            modes.extend(part.training for part in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modes == [False] * 4
    assert [part.training for part in network.modules()] == [True, True, False, False]
