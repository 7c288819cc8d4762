"""The text VAE: a language model that first decides what to say, as a code drawn from a unit Gaussian.

Bowman, Vilnis, Vinyals, Dai, Jozefowicz & Bengio, "Generating Sentences from a Continuous Space" (2016). A recurrent
language model writes a line token by token and plans nothing; here a code z of the whole line comes first:

    q(z|x) = N(z; μ(h_N), diag σ²(h_N))       h_1 … h_N = encoder(x_1 … x_N)       z = μ + σ ⊙ ε,  ε ~ N(0, I)
    p(x|z) = Π_t softmax(W_o s_t + b)_{x_t}   s_0 = tanh(W_s z + b_s)              s_t = decoder(s_{t-1}, [x_{t-1}; z])

    log p(x)  ≥  ELBO  =  E_q[log p(x|z)]  −  KL(q(z|x) ‖ N(0, I))

Such a decoder does well without a code, since it has the previous tokens. Then z only costs its KL, the posterior
collapses to the prior, and a plain language model remains. The paper has two remedies:

- KL cost annealing: the KL's weight goes from 0 to 1 along a sigmoid, so that z is used before it costs anything.
- word dropout: each token that the decoder reads is kept with probability k, else replaced by one that says nothing.
  Evaluation and use drop none, but with k = 0, the inputless decoder, they too have only z.

``latent_dim: 0`` is the rival, the same decoder as a language model without a code. Tokens are characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric

from common.checks import at_least, more_than, one_of, whole, within
from common.distributed import global_mean
from common.randomness import normal_of_samples, uniform_of_samples
from common.vocabulary import UNK, encode_chars
from datamodules.sequences import SequenceBatch
from lit_models.parts.evaluating import evaluating
from lit_models.parts.latent import as_codes, gaussian_kl
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.sampling import check_sampling, draw, seeded
from lit_models.parts.sequences import Cell, State, remember, split_state, step_mask, with_end
from lit_models.scores.vae import PosteriorScores

Annealing = Literal["logistic", "linear", "none"]
MEANS = ("elbo", "reconstruction", "nats_per_token", "kl")


def kl_weight(step: int, annealing: Annealing, center: float, width: float) -> float:
    """The KL's weight at ``step`` = 0, 1, …, ½ at ``center``.

    ``logistic``: σ((step − center) / width), the paper's curve. ``linear``: step / (2 · center), at most 1. ``none``:
    always 1.
    """
    if annealing == "none":
        return 1.0
    if annealing == "linear":
        return min(1.0, step / (2 * center))
    return 0.5 + 0.5 * math.tanh((step - center) / (2 * width))  # the same as σ, and does not overflow


def drop_words(tokens: Tensor, draws: Tensor, keep_rate: float, unknown: int) -> Tensor:
    """Replaces tokens (B, T) by ``unknown`` if their draws (B, T) in [0, 1) are not below ``keep_rate``."""
    return torch.where(draws < keep_rate, tokens, unknown)


class TextVAE(LightningModule):
    """A variational autoencoder of lines of text.

    Args:
        vocab: the characters.
        longest: number of characters in the longest line, where decoding stops.
        latent_dim: D, size of the code z; 0 for the language model, a decoder alone.
        hidden, cell: of the encoder and of the decoder; ``lstm`` or ``gru``.
        embedding_dim: of characters, the same for encoder and decoder.
        keep_rate: k, the share of the characters that the decoder still reads in training; 1 drops none; with 0 the
            decoder reads none at all, in training, evaluation and use.
        annealing, kl_center, kl_width: the KL's weight in training, over the optimizer's steps: see :func:`kl_weight`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        vocab: list[str],
        longest: int,
        latent_dim: int = 32,
        hidden: int = 256,
        cell: Cell = "lstm",
        embedding_dim: int = 64,
        keep_rate: float = 0.75,
        annealing: Annealing = "logistic",
        kl_center: float = 1500.0,
        kl_width: float = 250.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer, warmup=0.02),
    ) -> None:
        super().__init__()
        at_least(1, longest=longest, hidden=hidden, embedding_dim=embedding_dim)
        at_least(0, "which is the language model", latent_dim=latent_dim)
        one_of(Cell, cell=cell)
        one_of(Annealing, annealing=annealing)
        within("[0, 1]", keep_rate=keep_rate)
        more_than(0, kl_center=kl_center, kl_width=kl_width)
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.vocab, self.longest, self.latent_dim, self.keep_rate = list(vocab), longest, latent_dim, keep_rate
        self.annealing, self.kl_center, self.kl_width = annealing, kl_center, kl_width
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        recurrent = nn.LSTM if cell == "lstm" else nn.GRU
        self.end = len(vocab)  # the token behind the last character, and before the first
        self.unknown = len(vocab) + 1  # in the place of a dropped character; never written
        self.embedding = nn.Embedding(len(vocab) + 2, embedding_dim)
        self.states = 2 if cell == "lstm" else 1  # h, and c
        if latent_dim:
            self.encoder = recurrent(embedding_dim, hidden, batch_first=True)
            self.to_posterior = nn.Linear(hidden, 2 * latent_dim)
            self.to_state = nn.Linear(latent_dim, self.states * hidden)
            remember(self.encoder)
        self.decoder = recurrent(embedding_dim + latent_dim, hidden, batch_first=True)
        self.head = nn.Linear(hidden, len(vocab) + 1)
        remember(self.decoder)

        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in (MEANS if latent_dim else MEANS[:-1])})
        self.posterior = PosteriorScores()
        self.mean_kl: Tensor | None = None  # (D,) nats of each dimension in the last evaluation

    # ---- the model -----------------------------------------------------------------------------------------------

    def posterior_of(self, lines: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each (B, D), of lines (B, T)."""
        tokens, steps = with_end(lines, lengths, self.end)
        outputs, _ = self.encoder(self.embedding(tokens))
        # At the end of each line: what stands behind it is read later.
        last = outputs.gather(1, (steps - 1)[:, None, None].expand(-1, 1, outputs.shape[2]))[:, 0]
        mean, log_var = self.to_posterior(last).chunk(2, 1)
        return mean, log_var

    def forward(self, previous: Tensor, z: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The tokens before those to be written (B, T), codes (B, D) → logits (B, T, V + 1), and the state."""
        if state is None and self.latent_dim:  # the language model starts from zeros
            state = split_state(self.to_state(z).tanh(), self.states)
        previous = previous if self.keep_rate else torch.full_like(previous, self.unknown)
        inputs = torch.cat([self.embedding(previous), z[:, None].expand(-1, previous.shape[1], -1)], 2)
        outputs, state = self.decoder(inputs, state)
        return self.head(outputs), state

    def log_likelihood(self, lines: Tensor, lengths: Tensor, z: Tensor, read: Tensor | None = None) -> Tensor:
        """log p(x|z) of lines (B, T), in nats with their ends, (B,), by teacher forcing.

        Args:
            read: (B, T) the decoder's input instead of the lines, if words are dropped.
        """
        targets, steps = with_end(lines, lengths, self.end)
        start = torch.full_like(targets[:, :1], self.end)
        logits, _ = self(torch.cat([start, targets[:, :-1] if read is None else read], 1), z)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        return -(nats * step_mask(steps, targets.shape[1])).sum(1)

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        key = (self.seed, self.current_epoch, batch_idx)
        lines, read = batch.values, None
        if 0 < self.keep_rate < 1:
            # For the longest line there is: a line's draws do not depend on who else is in the batch.
            draws = uniform_of_samples(len(lines), self.longest, "word_dropout", *key, device=lines.device)
            read = drop_words(lines, draws[:, : lines.shape[1]], self.keep_rate, self.unknown)
        each = self._objective(batch, key, read)
        parts = {name: each[name].detach().mean() for name in ("elbo", "reconstruction")}
        parts["nats_per_token"] = -parts["elbo"] / (batch.lengths + 1).to(parts["elbo"].dtype).mean()
        if not self.latent_dim:
            return {"loss": -global_mean(each["reconstruction"]), **parts}
        weight = kl_weight(self.trainer.global_step, self.annealing, self.kl_center, self.kl_width)
        loss = global_mean(weight * each["kl"] - each["reconstruction"])
        return {"loss": loss, **parts, "kl": each["kl"].detach().mean(), "kl_weight": loss.new_full((), weight)}

    def _objective(
        self, batch: SequenceBatch, key: tuple[int | str, ...], read: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The values of each line (B, …) that the loss and the evaluation average; ``key`` determines ε."""
        lines, lengths, _ = batch
        if not self.latent_dim:
            exact = self.log_likelihood(lines, lengths, self.head.weight.new_zeros(len(lines), 0), read)
            return {"elbo": exact, "reconstruction": exact}
        mean, log_var = self.posterior_of(lines, lengths)
        noise = normal_of_samples(len(mean), self.latent_dim, "posterior", *key, device=mean.device)
        z = mean + (0.5 * log_var).exp() * noise.to(mean.dtype)  # the reparameterization trick
        reconstruction, kl = self.log_likelihood(lines, lengths, z, read), gaussian_kl(mean, log_var).sum(1)
        code = {"mean": mean, "log_var": log_var, "z": z}
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, **code}

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: SequenceBatch, batch_idx: int, stage: str) -> None:
        each = self._objective(batch, (0, stage, batch_idx))
        tokens = batch.lengths + 1  # the end is one
        each["nats_per_token"] = -each["elbo"] / tokens
        for name, metric in self.means.items():  # a token weighs as much in a long line as in a short one
            metric.update(each[name], tokens if name == "nats_per_token" else 1.0)
        if self.latent_dim:
            self.posterior.update(each["mean"], each["log_var"], each["z"])

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = {name: metric.compute() for name, metric in self.means.items()}
        scores["loss"] = -scores["elbo"]  # what training ends with
        scores["perplexity"] = scores["nats_per_token"].exp()
        if self.latent_dim:
            found = self.posterior.compute()
            self.mean_kl = found.kl
            scores |= {"active_units": found.active_units, "mutual_information": found.mutual_information}
            if found.active_units == 0:
                rank_zero_warn(
                    f"posterior collapse: no dimension of the code depends on the line ({stage}, epoch "
                    f"{self.current_epoch}); a lower keep_rate or a later kl_center may help"
                )
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})
        for metric in (*self.means.values(), self.posterior):
            metric.reset()

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Any]:
        """The code of each line of the batch, the posterior's mean, and the line that is written from it."""
        code = self.encode(batch)
        return {"code": code, "reconstruction": self.decode(code)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use -----------------------------------------------------------------------------------------------------

    def encode(
        self, lines: str | Sequence[str] | SequenceBatch, sample: bool = False, seed: int | None = None
    ) -> Tensor:
        """Lines → codes (B, D): the posterior's mean, or a draw from it.

        Raises:
            ValueError: no line, or not text; a character is not in the vocabulary, unless that has ``<unk>``.
        """
        return self._code(lines, sample, seeded(seed, self.device, "code"))

    def decode(self, z: Tensor, temperature: float = 0.0, seed: int | None = None) -> list[str]:
        """Codes (B, D) → one line for each.

        Args:
            temperature: 0 writes the likeliest character at each place, 1 draws from the model's own distribution.
            seed: the same seed gives the same lines on the same device.
        """
        self._needs_code("decode")
        z = as_codes(z, self.latent_dim, self.head.weight)
        return self._written(z, temperature, seeded(seed, self.device))

    def sample(self, n: int = 1, temperature: float = 1.0, seed: int | None = None) -> list[str]:
        """``n`` lines for codes from the prior, or, without a code, from the decoder alone; see :meth:`decode`."""
        whole(1, n=n)
        generator = seeded(seed, self.device)
        return self._written(self._normal((n, self.latent_dim), generator), temperature, generator)

    def reconstruct(
        self, lines: object, temperature: float = 0.0, sample: bool = False, seed: int | None = None
    ) -> str | list[str]:
        """The reconstruction of a line, or of each line in a list, from its code: the posterior's mean, or a draw."""
        generator = seeded(seed, self.device)
        made = self._written(self._code(lines, sample, generator), temperature, generator)
        return made[0] if isinstance(lines, str) else made

    def interpolate(
        self, a: str, b: str, steps: int = 8, temperature: float = 0.0, seed: int | None = None
    ) -> list[str]:
        """A homotopy: ``steps`` lines on the straight line from the code of ``a`` to that of ``b``, ends included."""
        whole(2, steps=steps)
        generator = seeded(seed, self.device)
        first, last = self._code([a, b], False, generator)
        t = torch.linspace(0, 1, steps, dtype=first.dtype, device=self.device)[:, None]
        return self._written(torch.lerp(first, last, t), temperature, generator)

    @torch.no_grad()
    def _code(self, lines: object, sample: bool, generator: torch.Generator | None) -> Tensor:
        self._needs_code("encode")
        with evaluating(self):
            mean, log_var = self.posterior_of(*self._tokens(lines))
        return mean + (0.5 * log_var).exp() * self._normal(mean.shape, generator) if sample else mean

    @torch.no_grad()
    def _written(self, z: Tensor, temperature: float, generator: torch.Generator | None) -> list[str]:
        check_sampling(temperature, None, None)
        previous = torch.full((len(z), 1), self.end, device=z.device)
        ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        state, written = None, list[Tensor]()
        with evaluating(self):
            while len(written) < self.longest and not ended.all():
                logits, state = self(previous, z, state)
                if UNK in self.vocab:  # stands for characters that it cannot write
                    logits[..., self.vocab.index(UNK)] = -torch.inf
                previous = draw(logits[:, -1], temperature, generator=generator)[:, None]
                written.append(previous)
                ended |= previous[:, 0] == self.end
        rows = torch.cat(written, 1).tolist()
        return ["".join(self.vocab[code] for code in takewhile(lambda code: code != self.end, row)) for row in rows]

    def _tokens(self, lines: Any) -> tuple[Tensor, Tensor]:
        """Lines as codes of characters (B, T) and lengths (B,), on the model's device."""
        if hasattr(lines, "lengths"):
            return lines.values.to(self.device), lines.lengths.to(self.device)
        lines = list(lines) if isinstance(lines, (list, tuple)) else [lines]
        if not lines or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"lines={lines!r:.60}: expected a line of text, or a list of at least one")
        rows = [encode_chars(line, self.vocab) for line in lines]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return pad_sequence(rows, batch_first=True).to(self.device), lengths

    def _normal(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return torch.randn(*shape, generator=generator, device=self.device, dtype=self.head.weight.dtype)

    def _needs_code(self, verb: str) -> None:
        if not self.latent_dim:
            raise ValueError(f"{verb} with latent_dim=0: expected a model with a code; this one only samples")
