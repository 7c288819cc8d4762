"""What the sequences of a sequence autoencoder consist of: characters, or vectors of real numbers.

:class:`Symbols` and :class:`Points` have one interface: how an element is read, how the decoder's output is scored and
becomes the next element, how a sequence says that it ends, and what people give and get. B sequences of T steps are
``values``, (B, T) int64 of symbols or (B, T, D) of points; the decoder's outputs are (B, T, O), O being ``output_dim``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from common.scaling import Scaling
from common.vocabulary import decode_chars, encode_chars
from datamodules.sequences import positions_of
from lit_models.parts.sequences import step_mask, with_end
from lit_models.parts.sketch import Sketch, to_strokes
from lit_models.scores.sequences import squared_error

END_WEIGHT = 0.1
"""weight of the end's cross-entropy relative to the squared error, for sequences of real numbers"""

Score = tuple[Tensor, Tensor | float]
"""(B,) values and their weights in the mean over all sequences"""


class Symbols:
    """Characters. A token of its own ends a line, and is what the decoder reads before the first character.

    Args:
        vocab: the characters; the end token's id is behind theirs.
        embedding_dim: of a character.
    """

    logged = ("nats_per_token", "token_accuracy", "exact_match")
    by_length = "exact_match"
    scaling = None
    last_counts = False  # the step that says that a sequence ends is no element of it

    def __init__(self, vocab: Sequence[str], embedding_dim: int) -> None:
        self.vocab, self.end = list(vocab), len(vocab)
        self.input_dim, self.output_dim = embedding_dim, self.end + 1

    def embedding(self) -> nn.Module:
        """Makes the network that an element goes through before it is read."""
        return nn.Embedding(self.end + 1, self.input_dim)

    def start(self, like: Tensor) -> Tensor:
        """What the decoder reads first, (B, 1), for as many rows as ``like`` has."""
        return torch.full((len(like), 1), self.end, device=like.device)

    def with_end(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The elements to read or write, (B, T + 1), filled with end tokens, and the number of steps (B,)."""
        return with_end(values, lengths, self.end)

    def losses(self, outputs: Tensor, targets: Tensor, steps: Tensor) -> Tensor:
        """(B, T): −ln p of each token."""
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")

    def guess(self, output: Tensor, draws: Tensor | None = None) -> Tensor:
        """The next element (B,) from a step's output (B, O): the likeliest, or drawn with ``draws`` (B,) in 0..1."""
        if draws is None:
            return output.argmax(1)
        below = output.softmax(1).cumsum(1) < draws[:, None]
        return below.sum(1).clamp_max(self.end)

    def ends(self, output: Tensor, own: Tensor) -> Tensor:
        """(B,) bool: whether the sequence ends at this step, of output (B, O) and the element that was made of it."""
        return own == self.end

    def scores(
        self, loss: Tensor, written: Tensor, own_lengths: Tensor, targets: Tensor, lengths: Tensor
    ) -> dict[str, Score]:
        """The scores of each sequence in free running, under the names that are ``logged``.

        Args:
            loss: (B,) with teacher forcing.
            written, own_lengths: as many steps as the targets have, and where each sequence ended by itself.
            targets, lengths: what should have been written, and the number of elements of each sequence.
        """
        right, exact = self.accuracy(written, own_lengths, targets, lengths)
        return {
            "nats_per_token": (loss, lengths + 1),
            "token_accuracy": (right, lengths),  # a character counts as much in a long line
            "exact_match": (exact, 1.0),
        }

    def accuracy(self, written: Tensor, own_lengths: Tensor, targets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """How much of each line was written: (B,) the share of its characters, and (B,) whether all of it is right.

        A character counts at its place, counted from where the decoder starts. A line is right with its end included.
        An empty line has no wrong character.
        """
        steps = targets.shape[1]
        written = written.masked_fill(~step_mask(own_lengths, steps), self.end)
        right = ((written == targets) & step_mask(lengths, steps)).sum(1)
        exact = (right == lengths) & (own_lengths == lengths)
        return torch.where(lengths > 0, right / lengths.clamp_min(1), 1), exact.float()

    def is_one(self, given: object) -> bool:
        """Whether a person gave one sequence, and not several."""
        return isinstance(given, str)

    def read(self, sequences: Sequence[Any], like: Tensor) -> tuple[Tensor, Tensor]:
        """Values and lengths of sequences that a person gave, on the device of ``like``.

        Raises:
            ValueError: a wrong kind of sequence; a character is not in the vocabulary, unless that has ``<unk>``.
        """
        for each in sequences:
            if not isinstance(each, str):
                raise ValueError(f"a sequence of {kind_of(each)}: expected text")
        return padded([encode_chars(each, self.vocab) for each in sequences], like.device)

    def write(self, rows: Sequence[Tensor], like: object) -> list[Any]:
        """Sequences, one tensor each, in the form in which a person gives them."""
        return [decode_chars(row.tolist(), self.vocab) for row in rows]


class Points:
    """Vectors of real numbers. A flag beside each says whether it is the last.

    Args:
        dim: D, the numbers of a vector.
        scale_factor: what 1 stands for in units of the drawings, for sketches.
        scaling: from the units of series to those of the network: :class:`common.scaling.Scaling`; without it, vectors
            are read and written as they are.
    """

    logged: tuple[str, ...] = ("mse", "length_accuracy")
    by_length = "mse"
    last_counts = True  # the end is said with the last element

    def __init__(
        self, dim: int, scale_factor: float | None = None, scaling: Mapping[str, list[float]] | None = None
    ) -> None:
        self.dim, self.scale_factor = dim, scale_factor
        self.scaling = None if scaling is None else Scaling(**scaling)
        self.input_dim, self.output_dim = dim, dim + 1

    def embedding(self) -> nn.Module:
        return nn.Identity()

    def start(self, like: Tensor) -> Tensor:
        """Zeros (B, 1, D)."""
        return like.new_zeros(len(like), 1, self.dim)

    def with_end(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Both unchanged."""
        return values, lengths

    def losses(self, outputs: Tensor, targets: Tensor, steps: Tensor) -> Tensor:
        """(B, T): the squared error and :data:`END_WEIGHT` times the cross-entropy of whether a step is the last.

        The squared error is the mean over the D numbers of a step.
        """
        place = torch.arange(targets.shape[1], device=steps.device)
        is_last = (place == steps[:, None] - 1).to(outputs.dtype)
        end = F.binary_cross_entropy_with_logits(outputs[..., -1], is_last, reduction="none")
        return (outputs[..., :-1] - targets).square().mean(2) + END_WEIGHT * end

    def guess(self, output: Tensor, draws: Tensor | None = None) -> Tensor:
        """ŷ, (B, D); nothing is drawn."""
        return output[:, :-1]

    def ends(self, output: Tensor, own: Tensor) -> Tensor:
        return output[:, -1] > 0

    def scores(
        self, loss: Tensor, written: Tensor, own_lengths: Tensor, targets: Tensor, lengths: Tensor
    ) -> dict[str, Score]:
        # The decoder is told the length here, as its rivals are; whether it knows it itself counts apart.
        error = squared_error(written, targets, lengths)
        return {"mse": (error, 1.0), "length_accuracy": ((own_lengths == lengths).to(error.dtype), 1.0)}

    def is_one(self, given: object) -> bool:
        """Whether a person gave one sequence: (N, D), or (N,) where D is 1; (B, N) with D = 1 are B sequences."""
        if not isinstance(given, (Tensor, np.ndarray)):
            return isinstance(given, Sketch)
        return given.ndim < 2 or (given.ndim == 2 and (self.dim > 1 or given.shape[1] == 1))

    def read(self, sequences: Sequence[Any], like: Tensor) -> tuple[Tensor, Tensor]:
        """Values, in the type of ``like`` too, and lengths of sketches, or of arrays or tensors (N, D)."""
        if isinstance(sequences[0], Sketch) and self.scale_factor is not None:
            strokes, lengths = to_strokes(sequences, self.scale_factor)
            return positions_of(strokes, lengths)[:, :-1].to(like), lengths.to(like.device)
        values, lengths = padded([self._vectors(each) for each in sequences], like.device)
        return values.to(like), lengths

    def _vectors(self, given: object) -> Tensor:
        """(N, D) in the network's units."""
        numbers = torch.from_numpy(given) if isinstance(given, np.ndarray) and given.dtype.kind in "biuf" else given
        if isinstance(numbers, Tensor) and numbers.dim() == self.dim == 1:
            numbers = numbers[:, None]
        if not isinstance(numbers, Tensor) or numbers.shape[1:] != (self.dim,) or not len(numbers):
            or_flat = " or (N,)" if self.dim == 1 else ""
            raise ValueError(
                f"a sequence of {kind_of(given)}: expected tensors or arrays (N, {self.dim}){or_flat}, N at least 1"
            )
        if not (finite := numbers.isfinite().all(1)).all():
            step = int(finite.int().argmin())
            raise ValueError(f"a sequence of {kind_of(given)}: step {step} has nan or inf, expected finite numbers")
        if self.scaling is None:
            return numbers
        return torch.from_numpy(self.scaling.apply(numbers.detach().cpu().double().numpy()))

    def write(self, rows: Sequence[Tensor], like: Any) -> list[Any]:
        """Sequences in the form and the type of ``like``, or of its first one if it is a list; in their own units.

        Types of less than 32 bits, which end at 65,504 or have three digits, become float32.

        Args:
            like: a sketch, an array or a tensor. None leaves them as the network has them.
        """
        form = like[0] if isinstance(like, (list, tuple)) else like
        if isinstance(form, Sketch):
            return [self.to_sketch(row) for row in rows]
        if self.dim == 1 and form is not None and (form.ndim == 1 or (form.ndim == 2 and not self.is_one(form))):
            return [row[:, 0] for row in self.write(rows, form[..., None])]
        if isinstance(form, np.ndarray):
            numbers = np.promote_types(form.dtype, np.float32) if form.dtype.kind == "f" else np.float64
            return [self.in_own_units(row).astype(numbers) for row in rows]
        if form is None or self.scaling is None:
            return list(rows)
        kind = torch.promote_types(form.dtype, torch.float32) if form.is_floating_point() else torch.float64
        return [torch.from_numpy(self.in_own_units(row)).to(form.device, kind) for row in rows]

    def in_own_units(self, values: Tensor) -> np.ndarray:
        """Values (…, D) of the network in the units of the data, float64."""
        numbers = values.detach().cpu().double().numpy()
        return numbers if self.scaling is None else self.scaling.undo(numbers)

    def to_sketch(self, points: Tensor) -> Sketch:
        """The drawing whose points are at (N, 3), as :func:`~datamodules.sequences.positions_of` has them."""
        assert self.scale_factor is not None
        points = points.float().cpu()
        offsets = points[:, :2].diff(dim=0, prepend=torch.zeros(1, 2)) * self.scale_factor
        return Sketch(torch.cat([offsets, (points[:, 2:] > 0.5).float()], 1))


def kind_of(sequence: object) -> str:
    """What a person gave, for messages."""
    if isinstance(sequence, np.ndarray) and sequence.dtype.kind not in "biuf":
        return f"{sequence.dtype} of shape {sequence.shape}"
    return str(tuple(sequence.shape)) if isinstance(sequence, (Tensor, np.ndarray)) else type(sequence).__name__


def padded(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences (N, …) as one tensor, filled with 0, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(list(rows), batch_first=True).to(device), lengths.to(device)
