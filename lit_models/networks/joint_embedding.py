"""Sentences and images in one space: two encoders that learn which sentence belongs to which image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from common.randomness import keyed_generator
from lit_models.networks.attribute_classifier import whole_image_encoder

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch

TEMPERATURE = 0.1


class TextEncoder(nn.Module):
    """φ: token ids (N, T) and lengths (N,) → the LSTM's last state (N, text_dim)."""

    def __init__(self, num_tokens: int, embedding_dim: int, text_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(embedding_dim, text_dim, batch_first=True)

    def forward(self, captions: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(captions), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        output: Tensor = hidden[-1]
        return output


class JointEmbedding(nn.Module):
    """A text encoder and an image encoder into one space (…, text_dim), where matching pairs are close."""

    taken_whole: ClassVar = True
    """of another run's weights: ``trained`` is true of all of it, or of nothing"""
    trained: Tensor

    def __init__(self, num_tokens: int, embedding_dim: int, text_dim: int, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.text = TextEncoder(num_tokens, embedding_dim, text_dim)
        self.image = whole_image_encoder(image_shape, text_dim)
        self.register_buffer("trained", torch.tensor(False))

    def matching(self, images: Tensor, sentences: Tensor, own: Tensor) -> Tensor:
        """(N,) nats: −log of the probability of choosing an image's own sentence among all sentences.

        Args:
            images: (N, C, H, W) in 0..1.
            sentences: (M, text_dim), encoded.
            own: (N,) the row of each image's own sentence.
        """
        return F.cross_entropy(self.scores(self.image(images), sentences), own, reduction="none")

    @staticmethod
    def scores(images: Tensor, sentences: Tensor) -> Tensor:
        """(N, M): cosines of encoded images and sentences over :data:`TEMPERATURE`."""
        return F.normalize(images, dim=1) @ F.normalize(sentences, dim=1).T / TEMPERATURE


def fit_joint_embedding(
    embedding: JointEmbedding,
    batches: Iterable[CaptionBatch],
    epochs: int,
    device: torch.device,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> None:
    """Trains it to score each sentence highest with its own image, and each image with its own sentence.

    Reed et al. 2016 (eq. 2) also train their text encoder before the GAN, on the features of an image classifier. Here
    the image encoder is trained too, on the same pairs; and two cross-entropies over the images of a batch, as in CLIP
    (Radford et al. 2021), replace their two 0–1 losses over classes.

    The result depends only on the data and the initial weights: every rank gets the same, and the run's generators are
    unchanged.

    Args:
        batches: of all images, stored as uint8. In each epoch one sentence per image is drawn.
    """
    parts = list(batches)
    images = torch.cat([part.images for part in parts])
    sentences = [part.captions[row, : int(part.lengths[row])] for part in parts for row in range(len(part.captions))]
    counts = torch.cat([torch.bincount(part.image_index, minlength=len(part.images)) for part in parts])
    starts = counts.cumsum(0) - counts
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        embedding.requires_grad_(True)
        optimizer = torch.optim.AdamW(embedding.parameters(), lr)
        total = epochs * -(-len(images) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
        for epoch in range(epochs):
            generator = keyed_generator("joint embedding", epoch)
            order = torch.randperm(len(images), generator=generator)
            which = (torch.rand(len(images), generator=generator) * counts).long() + starts
            for rows in order.split(batch_size):
                texts = [sentences[i] for i in which[rows].tolist()]
                lengths = torch.tensor([len(text) for text in texts])
                ids = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
                pixels = images[rows].to(device).float() / 255
                scores = embedding.scores(embedding.image(pixels), embedding.text(ids, lengths))
                own = torch.arange(len(rows), device=device)
                optimizer.zero_grad()
                (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)).backward()
                optimizer.step()
                schedule.step()
    embedding.requires_grad_(False)
    embedding.trained.fill_(True)
