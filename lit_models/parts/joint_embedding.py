"""Sentences and images in one space: a text encoder that has learned which sentence belongs to which image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from datamodules.loader import keyed_generator

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch


class TextEncoder(nn.Module):
    """φ: token ids (N, T) and lengths (N,) → the LSTM's last state (N, text_dim)."""

    trained: Tensor

    def __init__(self, num_tokens: int, embedding_dim: int, text_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(embedding_dim, text_dim, batch_first=True)
        self.register_buffer("trained", torch.tensor(False))

    def forward(self, captions: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(captions), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return hidden[-1]


def fit_text_encoder(
    encoder: TextEncoder,
    image_features: Callable[[Tensor], Tensor],
    batches: Iterable[CaptionBatch],
    epochs: int,
    device: torch.device,
    batch_size: int = 64,
    lr: float = 3e-3,
    temperature: float = 0.1,
) -> None:
    """Trains it to score each sentence highest with its own image, and each image with its own sentence.

    Reed et al. 2016 (eq. 2) train their text encoder so, on the features of an image classifier, before the GAN. Their
    two 0–1 losses over classes are here two cross-entropies over the images of a batch, as in CLIP (Radford et al.
    2021), of cosines over ``temperature``.

    A function of the data and of the encoder's first weights alone: every rank gets the same encoder, and the run's
    generators are left as they are.

    Args:
        image_features: images (B, C, H, W) in 0..1 → (B, F), which are not trained.
        batches: of all images, whose stored pixels are uint8. In each epoch one sentence is drawn of each image.
    """
    parts: list[CaptionBatch] = list(batches)
    with torch.no_grad():
        features = torch.cat([image_features(part.images.to(device).float() / 255) for part in parts])
    sentences = [(part.captions[row, : int(part.lengths[row])]) for part in parts for row in range(len(part.captions))]
    counts = torch.cat([torch.bincount(part.image_index, minlength=len(part.images)) for part in parts])
    starts = counts.cumsum(0) - counts
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        text_dim = encoder.lstm.hidden_size
        projection = nn.Linear(features.shape[1], text_dim).to(device)
        encoder.requires_grad_(True)
        trained = [*encoder.parameters(), *projection.parameters()]
        optimizer = torch.optim.AdamW(trained, lr)
        total = epochs * -(-len(features) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
        for epoch in range(epochs):
            generator = keyed_generator("text encoder", epoch)
            order = torch.randperm(len(features), generator=generator)
            which = (torch.rand(len(features), generator=generator) * counts).long() + starts
            for rows in order.split(batch_size):
                texts = [sentences[i] for i in which[rows].tolist()]
                lengths = torch.tensor([len(text) for text in texts])
                ids = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
                t = F.normalize(encoder(ids, lengths), dim=1)
                v = F.normalize(projection(features[rows.to(device)]), dim=1)
                scores = t @ v.T / temperature
                own = torch.arange(len(rows), device=device)
                optimizer.zero_grad()
                (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)).backward()
                optimizer.step()
                schedule.step()
    encoder.requires_grad_(False)
    encoder.trained.fill_(True)
