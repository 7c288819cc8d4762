"""Character language models: a recurrent network reads a text and predicts each next character.

The simple recurrent network (Elman 1990) is a dynamical system. Its state s_t is its memory; U, V and W are the same at
every step, as unrolling the network along the sequence shows:

    s_t = f(U x_t + W s_{t-1})        o_t = g(V s_t)

Here x_t is a character, one-hot or embedded; f is tanh, and U, W are ``weight_ih``, ``weight_hh`` of ``nn.RNN``; V is
``decoder.weight``, and g a softmax over the next character. Each step multiplies the gradient by another f'·W, so it
vanishes (or explodes) with the lag. The LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)
carries an explicit memory C past these products:

    f_t = σ(U_f x_t + W_f h_{t-1})    what to drop            C̃_t = tanh(U_g x_t + W_g h_{t-1})
    i_t = σ(U_i x_t + W_i h_{t-1})    what to store           C_t = f_t ⊙ C_{t-1} + i_t ⊙ C̃_t
    o_t = σ(U_o x_t + W_o h_{t-1})    what to show            h_t = o_t ⊙ tanh C_t

One summand of ∂C_t/∂C_{t-1} is f_t alone (``networks.recurrent.cell_jacobian_terms``). The GRU (Cho et al. 2014) has
two gates and no cell.

Training is truncated back-propagation through time: the state carries over between windows, the gradient does not.
Recipes: Karpathy's char-rnn; Karpathy, Johnson & Fei-Fei, "Visualizing and Understanding Recurrent Networks" (2015).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.checks import at_least, whole
from common.distributed import gather_rows, global_mean, rows_of_this_rank
from common.vocabulary import UNK, decode_chars, encode_chars
from lit_models.networks.recurrent import Cell, RecurrentStack, State
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import DecayAfter, configure_optimizers
from lit_models.parts.sampling import check_sampling, draw, seeded

if TYPE_CHECKING:
    from datamodules.text import TextBatch

PASSAGE = 2000
"""characters of the evaluated text that are kept for the figures"""

PIECE = 4096
"""characters that are read at a time where a text may be of any length"""


def nats_per_character(logits: Tensor, targets: Tensor) -> Tensor:
    """−ln p of each target: logits (B, T, V), targets (B, T) → (B, T), with 0 where the target is −100."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def text_metrics(nats: Tensor) -> dict[str, Tensor]:
    """The mean of −ln p in the units of the literature: nats, bits and perplexity per character."""
    return {"nats_per_char": nats, "bits_per_char": nats / math.log(2), "perplexity": nats.exp()}


def carried(state: State | None, fresh: Tensor) -> State | None:
    """The state that a window starts from: that of the last window, with zeros in ``fresh`` rows (B,).

    It is ``None``, which means zeros, if there is no state yet or if its number of rows differs.
    """
    if state is None or state[0][0].shape[1] != len(fresh):
        return None
    zero = fresh[None, :, None]
    return [tuple(s.to(fresh.device).masked_fill(zero, 0) for s in layer) for layer in state]


class CharLM(LightningModule):
    """A recurrent character language model.

    Args:
        vocab: the characters, ``<unk>`` first if the data has it.
        cell: ``rnn`` (Elman's, with tanh), ``lstm`` or ``gru``.
        layers, hidden: recurrent layers and the size of the state of each.
        embedding_dim: size of a character's embedding; ``null`` means one-hot input.
        dropout: on the output of each layer, as in char-rnn (and on the embedding, if there is one).
        locked_dropout: use one dropout mask for all time steps of a window (Gal & Ghahramani 2016).
        weight_drop: DropConnect on the recurrent matrices (Merity et al. 2018).
        layer_norm: normalize the output of each layer.
        tied: use the embedding's matrix for the decoder (Press & Wolf 2017).
        forget_bias: initial forget bias of the LSTM; with 1 the cell remembers from the start (Jozefowicz et al. 2015).
        init_range: all weights start from U(−r, r); ``null`` leaves PyTorch's 1/√H.
        optimizer, scheduler: callables, as Lightning's CLI makes them; by default char-rnn's.

    Raises:
        ValueError: an unknown cell or a size out of range; ``tied`` where embedding and state differ in size.
    """

    def __init__(
        self,
        vocab: list[str],
        cell: Cell = "lstm",
        layers: int = 2,
        hidden: int = 128,
        embedding_dim: int | None = None,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        tied: bool = False,
        forget_bias: float = 1.0,
        init_range: float | None = 0.08,
        optimizer: OptimizerCallable = lambda params: torch.optim.RMSprop(params, lr=2e-3, alpha=0.95),
        scheduler: LRSchedulerCallable | None = lambda optimizer: DecayAfter(optimizer, after=10, factor=0.97),
    ) -> None:
        super().__init__()
        at_least(1, "or null for one-hot input", embedding_dim=embedding_dim)
        if tied and embedding_dim != hidden:
            raise ValueError(f"embedding_dim={embedding_dim} with tied=true: expected {hidden}, as hidden is")
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.vocab = list(vocab)
        self.optimizer, self.scheduler = optimizer, scheduler

        self.embedding = None if embedding_dim is None else nn.Embedding(len(vocab), embedding_dim)
        input_dim = len(vocab) if embedding_dim is None else embedding_dim
        self.recurrent = RecurrentStack(
            cell, input_dim, hidden, layers, dropout, locked_dropout, weight_drop, layer_norm
        )
        self.decoder = nn.Linear(hidden, len(vocab))
        if init_range is not None:
            for module in [*self.recurrent.layers, self.decoder, *([self.embedding] if self.embedding else [])]:
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -init_range, init_range)
        if cell == "lstm":
            for layer in self.recurrent.layers:
                with torch.no_grad():  # PyTorch adds two biases, of which one is enough
                    layer.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = forget_bias
                    layer.get_parameter("bias_hh_l0")[hidden : 2 * hidden] = 0
        if tied and self.embedding is not None:
            self.decoder.weight = self.embedding.weight

        self.nats = MeanMetric()  # over the characters of all ranks
        self._state: State | None = None  # of the training rows, carried from window to window
        self._evaluated: State | None = None  # likewise in evaluation
        self.passage: list[Tensor] = []  # the beginning of what was last evaluated, for the figures

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Codes (B, T) → logits of each next character (B, T, V), and the state after the last."""
        outputs, state = self.recurrent(self.embed(inputs), state)
        return self.decoder(outputs), state

    def embed(self, inputs: Tensor) -> Tensor:
        """Codes (B, T) → x (B, T, I)."""
        if self.embedding is None:
            return F.one_hot(inputs, len(self.vocab)).to(self.decoder.weight.dtype)
        return self.recurrent.drop(self.embedding(inputs))

    def training_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        logits, state = self(batch.inputs, carried(self._state, batch.fresh))
        self._state = [tuple(s.detach() for s in layer) for layer in state]
        return {"loss": global_mean(nats_per_character(logits, batch.targets))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._state is not None:
            checkpoint["recurrent_state"] = [tuple(gather_rows(s[0]) for s in layer) for layer in self._state]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "recurrent_state" in checkpoint:
            self._state = [tuple(rows_of_this_rank(s)[None] for s in layer) for layer in checkpoint["recurrent_state"]]

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def _evaluate(self, batch: TextBatch, batch_idx: int) -> None:
        logits, self._evaluated = self(batch.inputs, carried(self._evaluated, batch.fresh))
        nats = nats_per_character(logits, batch.targets)
        self.nats.update(nats[batch.targets != -100])
        if batch_idx == 0:
            self.passage = []
        if sum(map(len, self.passage)) < PASSAGE:
            self.passage.append(batch.inputs[0][batch.targets[0] != -100])

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = text_metrics(self.nats.compute())
        self.nats.reset()
        self._evaluated = None
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})

    def on_predict_start(self) -> None:
        self._evaluated = None

    def predict_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Any]:
        """How well the characters of each window are told, given all before them: their sum of −ln p, and their mean.

        The text of a window is what there was to predict in it.
        """
        logits, self._evaluated = self(batch.inputs, carried(self._evaluated, batch.fresh))
        told = batch.targets != -100
        nats, counts = nats_per_character(logits, batch.targets).sum(1), told.sum(1)
        texts = [decode_chars(row[mask], self.vocab) for row, mask in zip(batch.targets, told, strict=True)]
        bits = nats / counts.clamp_min(1) / math.log(2)
        return {"text": texts, "characters": counts, "nats": nats, "bits_per_char": bits}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use ----------------------------------------------------------------------------------------------------

    def _drawn(
        self,
        primes: Any,
        length: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> Iterator[Tensor]:
        """Codes (B,) of one character after the other, of a text a prime; arguments are checked at once."""
        whole(1, length=length)
        check_sampling(temperature, top_k, top_p)
        codes = [self.to_codes(_text(prime, "prime") or self.start) for prime in primes]
        generator = seeded(seed, self.device)
        return self._continued(codes, length, (temperature, top_k, top_p, generator))

    @torch.no_grad()
    def _continued(self, primes: Sequence[Tensor], length: int, how: tuple[Any, ...]) -> Iterator[Tensor]:
        with evaluating(self):
            # Primes differ in length, and a padded one would change the state: each is read by itself.
            read = [deque(self._read(prime), 1)[0] for prime in primes]
            logits = torch.cat([last[:, -1] for last, _ in read])
            state: State = [
                tuple(torch.cat(parts, 1) for parts in zip(*layer, strict=True))
                for layer in zip(*(state for _, state in read), strict=True)
            ]
            for _ in range(length):
                if UNK in self.vocab:
                    logits[:, self.vocab.index(UNK)] = -torch.inf  # stands for characters that it cannot write
                codes = draw(logits, *how)
                yield codes
                outputs, state = self(codes[:, None], state)
                logits = outputs[:, 0]

    def _read(self, codes: Tensor) -> Iterator[tuple[Tensor, State]]:
        """The logits (1, T, V) of each next character and the state after the last, for pieces of codes (N,)."""
        state = None
        for piece in codes.split(PIECE):
            logits, state = self(piece[None], state)
            yield logits, state

    @property
    def start(self) -> str:
        """The prime for texts without one: a newline, if the vocabulary has it."""
        return "\n" if "\n" in self.vocab else self.vocab[-1]

    def to_codes(self, text: str) -> Tensor:
        """Codes (T,) on the model's device.

        Raises:
            ValueError: a character is not in the vocabulary, unless that has ``<unk>``.
        """
        return encode_chars(text, self.vocab).to(self.device)

    def sample(
        self,
        prime: str | Sequence[str] = "",
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """Text that continues ``prime``, without the prime itself; a list if a list of primes is given.

        Args:
            length: number of characters of each text.
            temperature: below 1 safer, above 1 wilder; 0 takes the likeliest character each time.
            top_k, top_p: draw only from the k likeliest, or from the likeliest that together reach this probability.
            seed: the same seed gives the same text on the same device.

        Raises:
            ValueError: an argument is out of range; a character of the prime is not in the vocabulary.
        """
        several = isinstance(prime, (list, tuple))
        if several and not prime:
            return []
        primes = prime if several else [prime]
        codes = torch.stack(list(self._drawn(primes, length, temperature, top_k, top_p, seed)), 1).tolist()
        texts = ["".join(self.vocab[code] for code in row) for row in codes]
        return texts if several else texts[0]

    def stream(
        self,
        prime: str = "",
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Like :meth:`sample`, but yields each character as it is drawn."""
        drawn = self._drawn([prime], length, temperature, top_k, top_p, seed)
        return (self.vocab[int(codes)] for codes in drawn)

    @torch.no_grad()
    def score(self, text: str | Sequence[str], prime: str = "") -> Tensor | list[Tensor]:
        """(len(text),): −ln p of each character in nats, given those before it and ``prime``; a list for a list.

        A text is read in pieces of :data:`PIECE` characters, so that its length takes little memory.

        Raises:
            ValueError: it is no text, or empty; a character is not in the vocabulary, unless that has ``<unk>``.
        """
        if isinstance(text, (list, tuple)):
            return [self._score(each, prime) for each in text]
        return self._score(text, prime)

    def _score(self, text: Any, prime: str) -> Tensor:
        if not _text(text, "text"):
            raise ValueError("text='': expected at least one character")
        codes = self.to_codes((_text(prime, "prime") or self.start) + text)
        with evaluating(self):
            read = zip(self._read(codes[:-1]), codes[1:].split(PIECE), strict=True)
            nats = [nats_per_character(logits, targets[None])[0] for (logits, _), targets in read]
        return torch.cat(nats)[-len(text) :]


def _text(given: object, name: str) -> str:
    """Raises ValueError if it is none."""
    if not isinstance(given, str):
        raise ValueError(f"{name}={given!r:.60}: expected a text")
    return given
