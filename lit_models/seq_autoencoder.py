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

The loss is the mean over a sequence's steps of −ln p(y_t) for text, which ends with a special token that decoding also
starts from; for real numbers, of the squared error of ŷ_t and a cross-entropy, since each step says whether it is the
last. These are all that differs between them: see :mod:`lit_models.networks.sequence_elements`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchmetrics import MeanMetric

from common.checks import at_least, one_of, within
from common.distributed import global_mean
from common.randomness import uniform_of_samples
from common.trainer import datamodule_of
from datamodules.sequences import SequenceBatch
from lit_models.networks.sequence_elements import Points, Symbols
from lit_models.parts.evaluating import evaluating
from lit_models.parts.latent import as_codes
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.scheduled_sampling import Schedule, forcing_probability
from lit_models.parts.sequences import Cell, State, remember, split_state, step_mask
from lit_models.parts.sketch import Sketch
from lit_models.scores.pca import find_components
from lit_models.scores.sequences import MeanOfLength, from_components, from_points, resample, squared_error

PCA_MOST = 4096
"""number of values in a sequence above which PCA, whose cost grows with its cube, is left out"""


def reverse(values: Tensor, lengths: Tensor) -> Tensor:
    """Reverses each sequence of (B, T, …); the padding after its end stays in place."""
    place = torch.arange(values.shape[1], device=values.device).expand(len(values), -1)
    source = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return values[torch.arange(len(values), device=values.device)[:, None], source]


class SequenceAutoencoder(LightningModule):
    """A recurrent encoder and a recurrent decoder with a code of fixed size between them.

    The data are as :class:`~datamodules.sequences.SequenceData` describes them.

    Args:
        longest: number of elements in the longest sequence, where decoding stops.
        vocab: the characters, for text.
        sequence_dim: D, for sequences of real numbers.
        scale_factor: what 1 stands for in units of the drawings, for sketches.
        scaling: from the units of series to those of the network, for series: see :class:`common.scaling.Scaling`.
        channel_names: of the D numbers, if they have names.
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

    not_transferred: ClassVar = ("pca_mean", "pca_components")
    """buffers that a run which starts from another's weights leaves out"""

    pca_mean: Tensor
    pca_components: Tensor

    def __init__(
        self,
        longest: int,
        vocab: list[str] | None = None,
        sequence_dim: int | None = None,
        scale_factor: float | None = None,
        scaling: dict[str, list[float]] | None = None,
        channel_names: list[str] | None = None,
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
        self.dim, self.channel_names = sequence_dim or 0, list(channel_names or ())
        self.layers, self.reverse_targets, self.conditional = layers, reverse_targets, conditional
        self.schedule, self.schedule_steps, self.teacher_forcing = schedule, schedule_steps, teacher_forcing
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        points = Points(self.dim, scale_factor, scaling)
        self.elements = points if vocab is None else Symbols(vocab, embedding_dim)
        recurrent = nn.LSTM if cell == "lstm" else nn.GRU
        input_dim = self.elements.input_dim
        self.embedding = self.elements.embedding()
        self.encoder = recurrent(input_dim, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.to_code = nn.Linear(hidden * (1 + bidirectional), code_dim)
        self.states = 2 if cell == "lstm" else 1  # h, and c
        self.to_state = nn.Linear(code_dim, layers * self.states * hidden)
        self.decoder = recurrent(input_dim + code_dim, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, self.elements.output_dim)
        for network in (self.encoder, self.decoder):
            remember(network)

        # For real numbers, of the training sequences resampled to the length of the longest: as many principal
        # components as the code has numbers; found when the training starts.
        numbers = longest * self.dim
        self.compares = 0 < numbers <= PCA_MOST
        self.register_buffer("pca_mean", torch.full((numbers * self.compares,), torch.nan))
        self.register_buffer("pca_components", torch.zeros(min(code_dim, numbers) * self.compares, numbers))

        names = ["loss", *self.elements.logged]
        names += ["pca_mse"] * self.compares + ["resampled_mse"] * (code_dim >= self.dim > 0)
        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in names})
        self.of_length = MeanOfLength(longest)
        self.by_length: Tensor | None = None  # what it said last, for the figures

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

    # ---- the model -----------------------------------------------------------------------------------------------

    def code_of(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T) or (B, T, D) → codes (B, code_dim)."""
        inputs, steps = self.with_end(values, lengths)
        # Packed, so that each direction reads a sequence and none of its padding.
        packed = pack_padded_sequence(self.embedding(inputs), steps.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.encoder(packed)
        h = last[0] if self.states == 2 else last  # (layers · directions, B, H), of a layer one behind the other
        top = h.unflatten(0, (self.layers, -1))[-1]
        output: Tensor = self.to_code(top.transpose(0, 1).flatten(1))
        return output

    def with_end(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The elements to read or write and the number of steps: text (B, T + 1) is filled with end tokens."""
        return self.elements.with_end(values, lengths)

    def targets_of(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's targets in the order of writing, as returned by :meth:`with_end`."""
        return self.with_end(reverse(values, lengths) if self.reverse_targets else values, lengths)

    def initial_state(self, code: Tensor) -> State:
        """tanh(W_s code + b), split into the states of the layers."""
        return split_state(self.to_state(code).tanh(), self.states, self.layers)

    def forward(self, previous: Tensor, code: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What the decoder writes after the elements ``previous``, (B, T) or (B, T, D), and its state after the last.

        Returns:
            Logits (B, T, V + 1), or the elements and the logit of the end (B, T, D + 1).
        """
        read = self.embedding(previous)
        read = read if self.conditional else torch.zeros_like(read)
        inputs = torch.cat([read, code[:, None].expand(-1, previous.shape[1], -1)], 2)
        outputs, state = self.decoder(inputs, self.initial_state(code) if state is None else state)
        return self.head(outputs), state

    def teacher_forced(self, targets: Tensor, code: Tensor) -> Tensor:
        """Outputs (B, T, O), all steps at once."""
        output: Tensor = self(torch.cat([self.elements.start(targets), targets[:, :-1]], 1), code)[0]
        return output

    def guess(self, output: Tensor, draws: Tensor | None = None) -> Tensor:
        """The next element of one step's output (B, O): the likeliest character, (B,), or ŷ, (B, D).

        With ``draws`` (B,) in 0..1, a character is drawn from the model's distribution.
        """
        return self.elements.guess(output, draws)

    def scheduled(self, targets: Tensor, code: Tensor, probability: float, draws: Tensor) -> Tensor:
        """Outputs (B, T, O) if each step reads the true last element with ``probability``, else the model's own.

        Args:
            draws: (B, 2, at least T) in 0..1: for the coins, and for drawing characters.
        """
        previous, state, outputs = self.elements.start(targets), None, []
        for t in range(targets.shape[1]):
            output, state = self(previous, code, state)
            outputs.append(output)
            # As in the paper, no gradient goes through what was predicted and read again.
            own = self.guess(output[:, 0].detach(), draws[:, 1, t])[:, None]
            forced = (draws[:, 0, t] < probability).view(-1, *[1] * (own.dim() - 1))
            previous = torch.where(forced, targets[:, t : t + 1], own)
        return torch.cat(outputs, 1)

    def losses(self, outputs: Tensor, targets: Tensor, steps: Tensor) -> Tensor:
        """(B,): the mean over a sequence's steps of what the elements' ``losses`` are."""
        each = self.elements.losses(outputs, targets, steps)
        return (each * step_mask(steps, targets.shape[1])).sum(1) / steps

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- decoding ------------------------------------------------------------------------------------------------

    def free_running(self, code: Tensor, steps: int, until_ended: bool = True) -> tuple[Tensor, Tensor]:
        """The decoder's output for codes (B, code_dim) when it reads its own elements, in the order of writing.

        Returns:
            values (B, T) or (B, T, D), T at most ``steps``, and the lengths (B,) at which the sequences end by
            themselves, or ``steps`` if they do not; ``until_ended`` stops when all have ended. A sequence of real
            numbers has at least one element.
        """
        previous, state, written = self.elements.start(code), None, []
        lengths = torch.full((len(code),), steps, device=code.device)
        for t in range(steps):
            output, state = self(previous, code, state)
            own = self.guess(output[:, 0])
            written.append(own)
            previous = own[:, None]
            ends = self.elements.ends(output[:, 0], own) & (lengths == steps)
            lengths = torch.where(ends, t + self.elements.last_counts, lengths)
            if until_ended and bool((lengths < steps).all()):
                break
        return torch.stack(written, 1), lengths

    def decoded(self, code: Tensor) -> SequenceBatch:
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
        data = datamodule_of(self.trainer)
        if not hasattr(data, "sequences"):
            raise ValueError(
                f"data: {type(data).__name__} has no sequences(part), of which PCA is computed; expected data as "
                "datamodules.sequences.SequenceData describes them"
            )
        same = (
            resample(batch.values, batch.lengths, torch.full_like(batch.lengths, self.longest))
            for batch in data.sequences("train")
        )
        find_components(same, self.pca_mean, self.pca_components)

    def pca_reconstruction(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T, D) reconstructed from as many principal components as the code has numbers."""
        return from_components(values, lengths, self.pca_mean, self.pca_components)

    def resampled_reconstruction(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, T, D) reconstructed from ⌊code_dim / D⌋ of their points by linear interpolation."""
        return from_points(values, lengths, self.code_dim // self.dim)

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """The loss is that of teacher forcing, and all other scores are of free running."""
        values, lengths, _ = batch
        code = self.code_of(values, lengths)
        targets, steps = self.targets_of(values, lengths)
        loss = self.losses(self.teacher_forced(targets, code), targets, steps)
        # One step more where the last element says that it is the last: a sequence that does not end in time then has
        # another length than any of the batch, however long the longest of them is.
        most = targets.shape[1]
        written, own_lengths = self.free_running(code, most + self.elements.last_counts, until_ended=False)
        scores = self.elements.scores(loss, written[:, :most], own_lengths, targets, lengths)
        self.of_length.update(scores[self.elements.by_length][0], lengths)
        self.means["loss"].update(loss)
        for name, (score, weight) in scores.items():
            self.means[name].update(score, weight)
        for name, reconstruction in (("pca", self.pca_reconstruction), ("resampled", self.resampled_reconstruction)):
            if f"{name}_mse" in self.means:
                self.means[f"{name}_mse"].update(squared_error(reconstruction(values, lengths), values, lengths))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": metric.compute() for name, metric in self.means.items()})
        self.by_length = self.of_length.compute()
        for metric in (*self.means.values(), self.of_length):
            metric.reset()

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Any]:
        """The code of each sequence of the batch, and the line or the drawing that is written from it."""
        code = self.encode(batch)
        if self.vocab is None and self.scale_factor is None:
            return {"code": code}
        like = Sketch([[0, 0, 0]]) if self.vocab is None else ""
        return {"code": code, "reconstruction": self._sequences(self.decoded(code), like)}

    # ---- use -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, sequences: object) -> Tensor:
        """Codes (B, code_dim) of sequences.

        Args:
            sequences: one or a list: lines of text, :class:`~lit_models.parts.sketch.Sketch`, or NumPy arrays or
                tensors (N, D) in the units of the data; an array or a tensor (B, N, D) of equally long ones; where D is
                1, also (N,) and (B, N). Or a :class:`~datamodules.sequences.SequenceBatch` of the data module.

        Raises:
            ValueError: a wrong kind of sequence; a character is not in the vocabulary, unless that has ``<unk>``; a
                number is not finite.
        """
        with evaluating(self):
            return self.code_of(*self._batch(sequences))

    def decode(self, code: object) -> Any:
        """Codes (B, code_dim) → sequences, each up to its own end, at most ``longest``.

        Returns:
            of a model of series a list of arrays (N, D), float64, in the units of the data, or of tensors if the codes
            are a tensor; of any other model a :class:`~datamodules.sequences.SequenceBatch`.
        """
        with evaluating(self):
            batch = self.decoded(as_codes(code, self.code_dim, self.head.weight))
        if self.elements.scaling is None:
            return batch
        like = torch.zeros(1, self.dim, dtype=torch.float64)
        return self._sequences(batch, like.numpy() if isinstance(code, np.ndarray) else like)

    @torch.no_grad()
    def reconstruct(self, sequences: object) -> Any:
        """The reconstruction of a sequence from its code, of the same kind and unit; a list if several are given.

        It ends where the decoder says so, at ``longest`` at the latest, and therefore may be shorter or longer than its
        input; compare the steps that both have. Numbers are float32 at least.
        """
        with evaluating(self):
            made = self._sequences(self.decoded(self.encode(sequences)), sequences)
        return made[0] if self.elements.is_one(sequences) else made

    @torch.no_grad()
    def interpolate(self, a: object, b: object, steps: int = 8) -> list[Any]:
        """``steps`` sequences on the straight line from the code of ``a`` to that of ``b``, both ends included."""
        at_least(2, steps=steps)
        with evaluating(self):
            first, last = (self.encode(each)[0] for each in (a, b))
            t = torch.linspace(0, 1, steps, dtype=first.dtype, device=self.device)[:, None]
            return self._sequences(self.decoded(torch.lerp(first, last, t)), a)

    def _batch(self, sequences: Any) -> tuple[Tensor, Tensor]:
        """Values and lengths of the input of :meth:`encode`, on the model's device."""
        if hasattr(sequences, "lengths"):
            return sequences.values.to(self.device), sequences.lengths.to(self.device)
        if self.elements.is_one(sequences) or isinstance(sequences, (str, Sketch)):
            sequences = [sequences]
        if not hasattr(sequences, "__len__") or len(sequences) == 0:
            raise ValueError(f"sequences={sequences!r}: expected a sequence, or a list of at least one")
        return self.elements.read(sequences, self.head.weight)

    def _sequences(self, batch: SequenceBatch, like: object) -> list[Any]:
        """The sequences of a batch in the form of ``like``, which a person gave; see the elements' ``write``."""
        rows = [values[:length] for values, length in zip(batch.values, batch.lengths.tolist(), strict=True)]
        return self.elements.write(rows, like)

    def to_sketch(self, points: Tensor) -> Sketch:
        """The drawing whose points are at (N, 3), as :func:`~datamodules.sequences.positions_of` has them."""
        assert isinstance(self.elements, Points)
        return self.elements.to_sketch(points)
