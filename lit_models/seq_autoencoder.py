"""The sequence autoencoder: one recurrent network reads a sequence into a code, another writes it from the code alone.

Cho et al., "Learning Phrase Representations using RNN Encoder–Decoder" (2014); Sutskever, Vinyals & Le, "Sequence to
Sequence Learning with Neural Networks" (2014); for reconstruction Srivastava, Mansimov & Salakhutdinov, "Unsupervised
Learning of Video Representations using LSTMs" (2015):

    h_1 … h_N = encoder(x_1 … x_N)        code = W_c [h→_N; h←_1] + b        s_0 = tanh(W_s code + b)
    s_t = decoder(s_{t-1}, [y_{t-1}; code])        p(y_t) or ŷ_t = W_o s_t + b

There is no attention, on purpose: the code is the only path from the encoder to the decoder, with the same size for
short and long sequences. With reversed targets, y = x_N … x_1, the decoder starts with what the encoder has read last,
for which short-term memory is enough.

y_{t-1} is the true element in training (teacher forcing), but the decoder's own in use, where it meets its own errors
for the first time. Scheduled sampling (Bengio et al. 2015) tosses a coin at each step: with probability ε the decoder
reads the true element, else its own prediction, and ε decays during training.

Text ends with a special token, and decoding also starts from it; each step of a sequence of real numbers says whether
it is the last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torchmetrics import MeanMetric, Metric

from common.checks import at_least, one_of, within
from common.distributed import global_mean
from common.randomness import uniform_of_samples
from common.vocabulary import decode_chars, encode_chars
from datamodules.sequences import SequenceBatch, positions_of
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.scheduled_sampling import Schedule, forcing_probability
from lit_models.parts.sequences import Cell, State, remember, split_state, step_mask, with_end
from lit_models.parts.sketch import Sketch, to_strokes
from lit_models.scores.pca import find_components

END_WEIGHT = 0.1
"""weight of the end's cross-entropy relative to the squared error, for sequences of real numbers"""

PCA_MOST = 4096
"""number of values in a sequence above which PCA, whose cost grows with its cube, is left out"""


def reverse(values: Tensor, lengths: Tensor) -> Tensor:
    """Reverses each sequence of (B, T, …); the padding after its end stays in place."""
    place = torch.arange(values.shape[1], device=values.device).expand(len(values), -1)
    source = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return values[torch.arange(len(values), device=values.device)[:, None], source]


def resample(values: Tensor, lengths: Tensor, new_lengths: Tensor) -> Tensor:
    """Resamples sequences (B, T, D) to another number of points: linear interpolation, evenly from first to last.

    Args:
        lengths, new_lengths: (B,) number of points before and after; a single new point is the middle.

    Returns:
        (B, max(new_lengths), D), 0 after the end.
    """
    steps = int(new_lengths.max())
    place = torch.arange(steps, dtype=values.dtype, device=values.device)
    share = place / (new_lengths[:, None] - 1).clamp_min(1).to(values.dtype)
    share = torch.where(new_lengths[:, None] == 1, 0.5, share)
    where = (share * (lengths[:, None] - 1)).clamp_max(values.shape[1] - 1)
    before = where.floor().long()
    after = torch.minimum(before + 1, lengths[:, None] - 1).clamp_min(0)
    row = torch.arange(len(values), device=values.device)[:, None]
    points = torch.lerp(values[row, before], values[row, after], (where - before)[:, :, None])
    return points * step_mask(new_lengths, steps)[:, :, None]


def squared_error(output: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """(B,): the mean over a sequence's points and their D numbers of (x̂ − x)²."""
    each = (output - values).square().mean(2) * step_mask(lengths, values.shape[1])
    return each.sum(1) / lengths


class MeanOfLength(Metric):
    """The mean of a score over the sequences of each length.

    Args:
        longest: lengths go from 0 to this; longer ones count as this.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, longest: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(longest + 1, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, scores: Tensor, lengths: Tensor) -> None:
        """Adds the scores (B,) of sequences with these lengths (B,)."""
        bins = lengths.clamp_max(len(self.total) - 1)
        self.total = self.total.index_add(0, bins, scores.to(self.total.dtype))
        self.count = self.count.index_add(0, bins, torch.ones_like(scores, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        """(longest + 1,): NaN if there is no sequence of that length."""
        return self.total / self.count


class SequenceAutoencoder(LightningModule):
    """A recurrent encoder and a recurrent decoder with a code of fixed size between them.

    Args:
        longest: number of elements in the longest sequence, where decoding stops.
        vocab: the characters, for text.
        sequence_dim: D, for sequences of real numbers.
        scale_factor: what 1 stands for in units of the drawings, for sketches.
        code_dim: size of the code.
        hidden, layers, cell: of the encoder (of each direction) and of the decoder; ``lstm`` or ``gru``.
        embedding_dim: of characters.
        bidirectional: add a second encoder that reads from the end.
        reverse_targets: write the sequence from its last element to its first. Results are in reading order.
        conditional: let the decoder read the element before the one that it writes, y_{t-1}. Otherwise it has only the
            code and its state, and training does not differ from use (both: Srivastava et al. 2015).
        schedule, schedule_steps, teacher_forcing: the probability that the decoder reads the true last element in
            training: see :func:`forcing_probability`; ``teacher_forcing`` is its floor. While it is 1, all steps are
            computed at once; below 1, one after the other.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: neither or both of ``vocab`` and ``sequence_dim``; an argument out of range.
    """

    pca_mean: Tensor
    pca_components: Tensor

    def __init__(
        self,
        longest: int,
        vocab: list[str] | None = None,
        sequence_dim: int | None = None,
        scale_factor: float | None = None,
        code_dim: int = 64,
        hidden: int = 256,
        layers: int = 1,
        cell: Cell = "lstm",
        embedding_dim: int = 32,
        bidirectional: bool = True,
        reverse_targets: bool = True,
        conditional: bool = True,
        schedule: Schedule = "constant",
        schedule_steps: float = 1000.0,
        teacher_forcing: float = 1.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=2e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer, warmup=0.02),
    ) -> None:
        super().__init__()
        at_least(1, longest=longest, sequence_dim=sequence_dim, code_dim=code_dim, hidden=hidden, layers=layers)
        at_least(1, embedding_dim=embedding_dim, schedule_steps=schedule_steps)
        one_of(Cell, cell=cell)
        one_of(Schedule, schedule=schedule)
        within("[0, 1]", teacher_forcing=teacher_forcing)
        if (vocab is None) == (sequence_dim is None):
            raise ValueError(
                f"vocab={'null' if vocab is None else '…'} with sequence_dim={sequence_dim}: expected exactly one of "
                "the two, which the data gives"
            )
        if not conditional and (schedule, teacher_forcing) != ("constant", 1.0):
            raise ValueError(
                f"schedule={schedule!r}, teacher_forcing={teacher_forcing}: expected 'constant' and 1 with "
                "conditional=false, where the decoder reads nothing"
            )
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.longest, self.scale_factor, self.code_dim = longest, scale_factor, code_dim
        self.vocab = None if vocab is None else list(vocab)
        self.dim = sequence_dim or 0
        self.layers, self.reverse_targets, self.conditional = layers, reverse_targets, conditional
        self.schedule, self.schedule_steps, self.teacher_forcing = schedule, schedule_steps, teacher_forcing
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        recurrent = nn.LSTM if cell == "lstm" else nn.GRU
        self.end = len(vocab or [])  # the token behind the last character, and before the first
        self.embedding = None if vocab is None else nn.Embedding(self.end + 1, embedding_dim)
        input_dim = embedding_dim if vocab is not None else self.dim
        self.encoder = recurrent(input_dim, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.to_code = nn.Linear(hidden * (1 + bidirectional), code_dim)
        self.states = 2 if cell == "lstm" else 1  # h, and c
        self.to_state = nn.Linear(code_dim, layers * self.states * hidden)
        self.decoder = recurrent(input_dim + code_dim, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, self.end + 1 if vocab is not None else self.dim + 1)
        for network in (self.encoder, self.decoder):
            remember(network)

        # For real numbers, of the training sequences resampled to the length of the longest: as many principal
        # components as the code has numbers; found when the training starts.
        numbers = longest * self.dim
        self.compares = 0 < numbers <= PCA_MOST
        self.register_buffer("pca_mean", torch.full((numbers * self.compares,), torch.nan))
        self.register_buffer("pca_components", torch.zeros(min(code_dim, numbers) * self.compares, numbers))

        names = ["loss", "nats_per_token", "token_accuracy", "exact_match"] if vocab is not None else ["loss", "mse"]
        if self.dim:
            names += ["length_accuracy"] + ["pca_mse"] * self.compares + ["resampled_mse"] * (code_dim >= self.dim)
        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in names})
        self.of_length = MeanOfLength(longest)
        self.by_length: Tensor | None = None  # what it said last, for the figures

    # ---- the model -----------------------------------------------------------------------------------------------

    def code_of(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T) or (B, T, D) → codes (B, code_dim)."""
        inputs, steps = self.with_end(values, lengths)
        # Packed, so that each direction reads a sequence and none of its padding.
        packed = pack_padded_sequence(self.embed(inputs), steps.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.encoder(packed)
        h = last[0] if self.states == 2 else last  # (layers · directions, B, H), of a layer one behind the other
        top = h.unflatten(0, (self.layers, -1))[-1]
        return self.to_code(top.transpose(0, 1).flatten(1))

    def with_end(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The elements to read or write and the number of steps: text (B, T + 1) is filled with end tokens."""
        if self.vocab is None:
            return values, lengths
        return with_end(values, lengths, self.end)

    def embed(self, inputs: Tensor) -> Tensor:
        return inputs if self.embedding is None else self.embedding(inputs)

    def start(self, values: Tensor) -> Tensor:
        """The decoder's first input, (B, 1) or (B, 1, D): the end token, or zeros."""
        return values.new_full((len(values), 1, *values.shape[2:]), self.end)

    def initial_state(self, code: Tensor) -> State:
        """tanh(W_s code + b), split into the states of the layers."""
        return split_state(self.to_state(code).tanh(), self.states, self.layers)

    def forward(self, previous: Tensor, code: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The elements before those to be written (B, T) or (B, T, D), codes → logits (B, T, V + 1), or the elements
        and the logit of the end (B, T, D + 1); and the state after the last step."""
        read = self.embed(previous)
        read = read if self.conditional else torch.zeros_like(read)
        inputs = torch.cat([read, code[:, None].expand(-1, previous.shape[1], -1)], 2)
        outputs, state = self.decoder(inputs, self.initial_state(code) if state is None else state)
        return self.head(outputs), state

    def guess(self, output: Tensor, draws: Tensor | None = None) -> Tensor:
        """The next element of one step's output (B, O): the likeliest character, (B,), or ŷ, (B, D).

        With ``draws`` (B,) in 0..1, a character is drawn from the model's distribution.
        """
        if self.vocab is None:
            return output[:, :-1]
        if draws is None:
            return output.argmax(1)
        below = output.softmax(1).cumsum(1) < draws[:, None]
        return below.sum(1).clamp_max(self.end)

    def targets_of(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's targets in the order of writing, as returned by :meth:`with_end`."""
        return self.with_end(reverse(values, lengths) if self.reverse_targets else values, lengths)

    def teacher_forced(self, targets: Tensor, code: Tensor) -> Tensor:
        """Outputs (B, T, O), all steps at once."""
        return self(torch.cat([self.start(targets), targets[:, :-1]], 1), code)[0]

    def scheduled(self, targets: Tensor, code: Tensor, probability: float, draws: Tensor) -> Tensor:
        """Outputs (B, T, O) if each step reads the true last element with ``probability``, else the model's own.

        Args:
            draws: (B, 2, at least T) in 0..1: for the coins, and for drawing characters.
        """
        previous, state, outputs = self.start(targets), None, []
        for t in range(targets.shape[1]):
            output, state = self(previous, code, state)
            outputs.append(output)
            # As in the paper, no gradient goes through what was predicted and read again.
            own = self.guess(output[:, 0].detach(), draws[:, 1, t])[:, None]
            forced = (draws[:, 0, t] < probability).view(-1, *[1] * (own.dim() - 1))
            previous = torch.where(forced, targets[:, t : t + 1], own)
        return torch.cat(outputs, 1)

    def losses(self, outputs: Tensor, targets: Tensor, steps: Tensor) -> Tensor:
        """(B,): the mean over a sequence's steps of −ln p of the token, or of the squared error (the mean over D) and
        :data:`END_WEIGHT` times the cross-entropy of whether it was the last."""
        if self.vocab is not None:
            each = F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
        else:
            place = torch.arange(targets.shape[1], device=steps.device)
            is_last = (place == steps[:, None] - 1).to(outputs.dtype)
            end = F.binary_cross_entropy_with_logits(outputs[..., -1], is_last, reduction="none")
            each = (outputs[..., :-1] - targets).square().mean(2) + END_WEIGHT * end
        return (each * step_mask(steps, targets.shape[1])).sum(1) / steps

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        code = self.code_of(batch.values, batch.lengths)
        targets, steps = self.targets_of(batch.values, batch.lengths)
        forcing = forcing_probability(
            self.trainer.global_step, self.schedule, self.schedule_steps, self.teacher_forcing
        )
        if forcing == 1:
            outputs = self.teacher_forced(targets, code)
        else:
            # For the longest sequence there is: a sequence's draws do not depend on who else is in the batch.
            count, key = 2 * (self.longest + 1), (self.seed, self.current_epoch, batch_idx)
            draws = uniform_of_samples(len(code), count, "scheduled", *key, device=code.device)
            outputs = self.scheduled(targets, code, forcing, draws.view(len(code), 2, -1))
        return {"loss": global_mean(self.losses(outputs, targets, steps))}

    # ---- decoding ------------------------------------------------------------------------------------------------

    def free_running(self, code: Tensor, steps: int, until_ended: bool = True) -> tuple[Tensor, Tensor]:
        """The decoder's output for codes (B, code_dim) when it reads its own elements, in the order of writing.

        Returns:
            values (B, T) or (B, T, D), T at most ``steps``, and the lengths (B,) at which the sequences end by
            themselves, or ``steps`` if they do not; ``until_ended`` stops when all have ended. A sequence of real
            numbers has at least one element.
        """
        dtype = torch.long if self.vocab is not None else code.dtype
        shape = () if self.vocab is not None else (self.dim,)
        previous = self.start(torch.zeros(len(code), 1, *shape, dtype=dtype, device=code.device))
        lengths = torch.full((len(code),), steps, device=code.device)
        state, written = None, []
        for t in range(steps):
            output, state = self(previous, code, state)
            own = self.guess(output[:, 0])
            written.append(own)
            previous = own[:, None]
            # An end token is no element, while the end of real numbers is said with the last one.
            ends, length = (own == self.end, t) if self.vocab is not None else (output[:, 0, -1] > 0, t + 1)
            lengths = torch.where(ends & (lengths == steps), length, lengths)
            if until_ended and bool((lengths < steps).all()):
                break
        return torch.stack(written, 1), lengths

    def decode(self, code: Tensor) -> SequenceBatch:
        """Codes (B, code_dim) → sequences in reading order, each up to its own end, at most ``longest``."""
        values, lengths = self.free_running(code, self.longest)
        values = values[:, : int(lengths.max())]
        inside = step_mask(lengths, values.shape[1]).view(*values.shape[:2], *[1] * (values.dim() - 2))
        values = values * inside
        values = reverse(values, lengths) if self.reverse_targets else values
        return SequenceBatch(values, lengths, torch.full_like(lengths, -1))

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Computes the principal components of the training sequences, unless a resumed run already has them."""
        if not self.compares or self.trainer.ckpt_path is not None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        same = (
            resample(batch.values, batch.lengths, torch.full_like(batch.lengths, self.longest))
            for batch in data.sequences("train")
        )
        find_components(same, self.pca_mean, self.pca_components)

    def pca_reconstruction(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T, D) reconstructed from as many principal components as the code has numbers."""
        same = torch.full_like(lengths, self.longest)
        flat = resample(values, lengths, same).flatten(1) - self.pca_mean
        restored = self.pca_mean + flat @ self.pca_components.T @ self.pca_components
        return self._with_steps(resample(restored.unflatten(1, (self.longest, -1)), same, lengths), values)

    def resampled_reconstruction(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T, D) reconstructed from ⌊code_dim / D⌋ of their points by linear interpolation."""
        few = torch.full_like(lengths, self.code_dim // self.dim)
        few = torch.minimum(few, lengths)  # a shorter sequence is kept as it is
        return self._with_steps(resample(resample(values, lengths, few), few, lengths), values)

    @staticmethod
    def _with_steps(values: Tensor, like: Tensor) -> Tensor:
        return F.pad(values, (0, 0, 0, like.shape[1] - values.shape[1]))

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        values, lengths, _ = batch
        code = self.code_of(values, lengths)
        targets, steps = self.targets_of(values, lengths)
        loss = self.losses(self.teacher_forced(targets, code), targets, steps)
        self.means["loss"].update(loss)
        if self.vocab is not None:
            self.means["nats_per_token"].update(loss, steps)
            right, exact = self.accuracy(code, targets, lengths)
            self.means["token_accuracy"].update(right, lengths)  # a character counts as much in a long line
            self.means["exact_match"].update(exact)
            self.of_length.update(exact, lengths)
            return
        # The decoder is told the length here, as its rivals are; whether it knows it itself counts apart.
        written, own_lengths = self.free_running(code, targets.shape[1], until_ended=False)
        error = squared_error(written, targets, lengths)
        self.means["mse"].update(error)
        self.of_length.update(error, lengths)
        self.means["length_accuracy"].update((own_lengths == lengths).to(error.dtype))
        if self.compares:
            self.means["pca_mse"].update(squared_error(self.pca_reconstruction(values, lengths), values, lengths))
        if "resampled_mse" in self.means:
            resampled = self.resampled_reconstruction(values, lengths)
            self.means["resampled_mse"].update(squared_error(resampled, values, lengths))

    test_step = validation_step

    def accuracy(self, code: Tensor, targets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The share of each line's characters (B,) that free running writes at their place, counted from where it
        starts, and whether the line is right as a whole, its end included. An empty line has no wrong character."""
        written, own_lengths = self.free_running(code, self.longest + 1)
        written = written.masked_fill(~step_mask(own_lengths, written.shape[1]), self.end)
        steps = targets.shape[1]
        written = F.pad(written, (0, max(0, steps - written.shape[1])), value=self.end)[:, :steps]
        right = ((written == targets) & step_mask(lengths, steps)).sum(1)
        exact = (right == lengths) & (own_lengths == lengths)
        dtype = code.dtype
        return torch.where(lengths > 0, right / lengths.clamp_min(1), 1).to(dtype), exact.to(dtype)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": metric.compute() for name, metric in self.means.items()})
        self.by_length = self.of_length.compute()
        for metric in (*self.means.values(), self.of_length):
            metric.reset()

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> list[list[float]]:
        """The code of each sequence of the batch."""
        return self.encode(batch).tolist()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use -----------------------------------------------------------------------------------------------------

    def encode(self, sequences: Any) -> Tensor:
        """Codes (B, code_dim) of sequences.

        Args:
            sequences: one or a list: lines of text, :class:`~lit_models.parts.sketch.Sketch`, or tensors (N, D); a
                tensor (B, T, D) of equally long ones; or a :class:`~datamodules.sequences.SequenceBatch`.

        Raises:
            ValueError: a wrong kind of sequence; a character is not in the vocabulary, unless that has ``<unk>``.
        """
        with evaluating(self):
            return self.code_of(*self._batch(sequences))

    @torch.inference_mode()
    def reconstruct(self, sequences: Any) -> Any:
        """The reconstruction of a sequence from its code, of the same kind; a list if a list is given."""
        is_one = isinstance(sequences, (str, Sketch)) or (isinstance(sequences, Tensor) and sequences.dim() < 3)
        with evaluating(self):
            made = self._sequences(self.decode(self.encode(sequences)), sequences)
        return made[0] if is_one else made

    @torch.inference_mode()
    def interpolate(self, a: Any, b: Any, steps: int = 8) -> list[Any]:
        """``steps`` sequences on the straight line from the code of ``a`` to that of ``b``, both ends included."""
        at_least(2, steps=steps)
        with evaluating(self):
            first, last = (self.encode(each)[0] for each in (a, b))
            t = torch.linspace(0, 1, steps, dtype=first.dtype, device=self.device)[:, None]
            return self._sequences(self.decode(torch.lerp(first, last, t)), a)

    def _batch(self, sequences: Any) -> tuple[Tensor, Tensor]:
        """Values and lengths of the input of :meth:`encode`, on the model's device."""
        if hasattr(sequences, "lengths"):
            return sequences.values.to(self.device), sequences.lengths.to(self.device)
        if isinstance(sequences, (str, Sketch)) or (isinstance(sequences, Tensor) and sequences.dim() == 2):
            sequences = [sequences]
        if not hasattr(sequences, "__len__") or len(sequences) == 0:
            raise ValueError(f"sequences={sequences!r}: expected a sequence, or a list of at least one")
        if isinstance(sequences[0], Sketch) and self.scale_factor is not None:
            strokes, lengths = to_strokes(sequences, self.scale_factor)
            values = positions_of(strokes, lengths)[:, :-1]
        else:
            for each in sequences:
                is_fit = isinstance(each, str if self.vocab is not None else Tensor)
                if not is_fit or (self.vocab is None and (each.shape[1:] != (self.dim,) or not len(each))):
                    found = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
                    what = "text" if self.vocab is not None else f"tensors (N, {self.dim}), N at least 1"
                    raise ValueError(f"a sequence of {found}: expected {what}")
            rows = [encode_chars(each, self.vocab) if self.vocab is not None else each for each in sequences]
            values, lengths = pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
        dtype = torch.long if self.vocab is not None else self.head.weight.dtype
        return values.to(self.device, dtype), lengths.to(self.device)

    def _sequences(self, batch: SequenceBatch, like: Any) -> list[Any]:
        """The sequences of a batch as text, as sketches where ``like`` is one or a list of them, or as tensors."""
        rows = [values[:length] for values, length in zip(batch.values, batch.lengths.tolist(), strict=True)]
        if self.vocab is not None:
            return [decode_chars(row.tolist(), self.vocab) for row in rows]
        is_sketch = isinstance(like, Sketch) or (isinstance(like, list) and isinstance(like[0], Sketch))
        return [self.to_sketch(row) for row in rows] if is_sketch else rows

    def to_sketch(self, points: Tensor) -> Sketch:
        """The drawing whose points are at (N, 3), as :func:`~datamodules.sequences.positions_of` has them."""
        assert self.scale_factor is not None
        points = points.float().cpu()
        offsets = points[:, :2].diff(dim=0, prepend=torch.zeros(1, 2)) * self.scale_factor
        return Sketch(torch.cat([offsets, (points[:, 2:] > 0.5).float()], 1))
