"""The LSTMs that write captions, with attention and without, by the equations of :mod:`lit_models.captioner`.

Both ``read`` an image into a state and into what they look at again, and then process words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lit_models.parts.beam_search import State

END = 0
"""the token after the last word and before the first: ``<pad>``"""


class Heard(NamedTuple):
    """A decoder's output for at most T words of N sentences."""

    features: Tensor
    """(N, T, F) the features that predict each next word"""
    attention: Tensor | None
    """(N, T, L) the share of each image cell in each step, for a decoder with attention"""
    state: State
    """after the last word of each"""


class ShowAndTell(nn.Module):
    """The LSTM of Vinyals et al. 2015: image first, then words."""

    def __init__(self, image_dim: int, vocab_size: int, embedding_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.image = nn.Linear(image_dim, embedding_dim)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.to_words = nn.Linear(hidden_dim, vocab_size)

    def read(self, image: Tensor) -> tuple[State, State]:
        """Image vectors (I, D) → the state after x_{-1}; this decoder looks at nothing again."""
        _, (h, c) = self.lstm(self.dropout(self.image(image))[:, None])
        return (h[0], c[0]), ()

    def forward(self, words: Tensor, state: State, memory: State = (), lengths: Tensor | None = None) -> Heard:
        """Words (N, T), as many as ``lengths`` (N,) says, all by default, after the states of N sentences."""
        h, c = (s[None] for s in state)
        packed = pack(self.dropout(self.embedding(words)), lengths)
        outputs, (h, c) = self.lstm(packed, (h, c))
        return Heard(self.dropout(unpack(outputs.data, packed, words.shape[1])), None, (h[0], c[0]))


class ShowAttendAndTell(nn.Module):
    """The LSTM of Xu et al. 2015, with soft attention over the image's grid."""

    def __init__(
        self,
        image_dim: int,
        vocab_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int,
        word_query: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.initial = nn.Linear(image_dim, 2 * hidden_dim)  # f_h and f_c
        self.key = nn.Linear(image_dim, attention_dim)  # these three: f_att
        self.query = nn.Linear(hidden_dim, attention_dim)
        self.word_query = nn.Linear(embedding_dim, attention_dim, bias=False) if word_query else None
        self.score = nn.Linear(attention_dim, 1, bias=False)  # a bias would not change a softmax
        self.gate = nn.Linear(hidden_dim, 1)  # f_β
        self.lstm = nn.LSTMCell(embedding_dim + image_dim, hidden_dim)
        self.from_state = nn.Linear(hidden_dim, embedding_dim)  # L_h
        self.from_glimpse = nn.Linear(image_dim, embedding_dim)  # L_z
        self.dropout = nn.Dropout(dropout)
        self.to_words = nn.Linear(embedding_dim, vocab_size)  # L_o

    def read(self, annotations: Tensor) -> tuple[State, State]:
        """Annotations (I, L, D) → (h_0, c_0), and what attention sees: the annotations and their keys (I, L, A)."""
        h, c = self.initial(annotations.mean(1)).tanh().chunk(2, 1)
        return (h, c), (annotations, self.key(annotations))

    def attend(self, h: Tensor, word: Tensor, keys: Tensor) -> Tensor:
        """α_t (N, L) of the state h_{t-1} (N, H), and of E y_{t-1} (N, E) where that is to be known."""
        query = self.query(h) if self.word_query is None else self.query(h) + self.word_query(word)
        output: Tensor = self.score(torch.tanh(keys + query[:, None]))[:, :, 0].softmax(1)
        return output

    def forward(self, words: Tensor, state: State, memory: State, lengths: Tensor | None = None) -> Heard:
        """Words (N, T), as many as ``lengths`` (N,) says, all by default, after the states of N sentences."""
        packed = pack(self.dropout(self.embedding(words)), lengths)
        # The longest sentences first: a step computes those that have not ended, which are the first ones.
        order = packed.sorted_indices
        assert order is not None
        h, c, annotations, keys = (s.index_select(0, order) for s in (*state, *memory))
        states, glimpses, shares, ended = [], [], [], []
        for word in packed.data.split(packed.batch_sizes.tolist()):
            going = len(word)
            ended.append((h[going:], c[going:]))
            h, c, annotations, keys = (s[:going] for s in (h, c, annotations, keys))
            share = self.attend(h, word, keys)
            glimpse = torch.bmm(share[:, None], annotations)[:, 0] * self.gate(h).sigmoid()
            h, c = self.lstm(torch.cat([word, glimpse], 1), (h, c))
            states.append(h)
            glimpses.append(glimpse)
            shares.append(share)
        told = self.from_state(self.dropout(torch.cat(states))) + self.from_glimpse(torch.cat(glimpses))
        features = unpack(self.dropout(packed.data + told), packed, words.shape[1])
        h, c = (torch.cat(parts)[packed.unsorted_indices] for parts in zip((h, c), *ended[::-1], strict=True))
        return Heard(features, unpack(torch.cat(shares), packed, words.shape[1]), (h, c))


def pack(sequences: Tensor, lengths: Tensor | None) -> PackedSequence:
    """Packs sequences (N, T, D) without their padding, longest first; ``lengths`` (N,), by default T."""
    if lengths is None:
        lengths = torch.full((len(sequences),), sequences.shape[1])
    return pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)


def unpack(data: Tensor, like: PackedSequence, steps: int) -> Tensor:
    """The reverse of :func:`pack` for other values in the same places: (N, steps, D), 0 after the ends."""
    packed = PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
    return pad_packed_sequence(packed, batch_first=True, total_length=steps)[0]


def rows(state: State, index: Tensor) -> State:
    """The rows ``index`` of each tensor."""
    return tuple(s.index_select(0, index) for s in state)


def repeated(state: State, times: int) -> State:
    """Repeats each row of each tensor a number of times, one after the other."""
    return state if times == 1 else tuple(s.repeat_interleave(times, 0) for s in state)


def until_end(tokens: Sequence[int]) -> list[int]:
    """The words before the first :data:`END`."""
    words = list(tokens)
    return words[: words.index(END)] if END in words else words
