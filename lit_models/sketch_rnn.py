"""Sketch-RNN: a variational autoencoder of drawings, each a sequence of pen moves.

Ha & Eck, "A Neural Representation of Sketch Drawings" (2017). A drawing is S_1 … S_N, each S = (Δx, Δy, p1, p2, p3):
where the pen goes, and then whether it stays down, is lifted, or the drawing has ended. A bidirectional LSTM reads it;
its two last states give the distribution of the code, from which the reparameterization trick draws:

    h = [h→; h←]      μ = W_μ h + b_μ      σ̂ = W_σ h + b_σ      z = μ + exp(σ̂/2) ⊙ ε      ε ~ N(0, I)

The decoder, an LSTM too, starts from [h_0; c_0] = tanh(W_z z + b_z). At each step it reads the last move and z, and
gives the distribution of the next move: a mixture of bivariate Gaussians, and a softmax over the pen's states
(:mod:`lit_models.networks.mixture_density`). With N_max the length of the longest drawing and N_z that of z,

    L_R  = −1/N_max [Σ_i ln Σ_j π_ij N(Δx_i, Δy_i; μ_ij, σ_ij, ρ_ij) + Σ_i ln q_i(pen)]
    L_KL = −1/(2 N_z) Σ (1 + σ̂ − μ² − exp σ̂)
    loss = L_R + w · max(L_KL, floor)                   w = end − (end − start) · decay^step

L_R is based on a density, so it can be negative. Since both the code and each move are drawn, one drawing gives several
similar ones; the temperature determines how similar. Without a code (``latent_dim: 0``), the decoder alone is an
unconditional model that starts from zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.checks import at_least, more_than, whole, within
from common.distributed import global_mean, mean_over_ranks
from common.randomness import normal_of_samples
from lit_models.networks.mixture_density import Mixture, draw_move, log_density, mixture_size, to_mixture
from lit_models.networks.recurrent import SteppedLSTM
from lit_models.parts.evaluating import evaluating
from lit_models.parts.latent import as_codes, gaussian_kl, slerp
from lit_models.parts.optim import DecayToFloor, configure_optimizers
from lit_models.parts.sampling import check_sampling, draw, seeded
from lit_models.parts.sequences import initialize_lstm
from lit_models.parts.sketch import Sketch, as_sketches, to_strokes
from lit_models.scores.vae import PosteriorScores

if TYPE_CHECKING:
    from datamodules.sketches import SketchBatch

START = (0.0, 0.0, 1.0, 0.0, 0.0)
"""the decoder's input before the first move"""
CANDIDATES = 512
"""number of codes that :meth:`SketchRNN.complete` chooses from"""
MAPPED = 300
"""number of evaluated drawings that are kept for the map of the codes"""
MEANS = ("reconstruction", "offset_reconstruction", "pen_reconstruction", "nats_per_point", "kl", "kl_nats")

Drawing = Sketch | str | Path
Drawings = Drawing | Sequence[Drawing]
LSTMState = tuple[Tensor, Tensor]
"""(h, c), each (1, B, H)"""


def nats_of_drawings(mixture: Mixture, strokes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """−ln p of the offsets and of the pen states, summed over each drawing: two tensors (B,), in nats.

    Offsets count at the N points of ``strokes`` (B, T, 5), the pen also at the end row after them.
    """
    # The paper counts the pen's loss over all N_max rows, the padding included. Here it ends with the one row that says
    # that the drawing has ended: batches are padded to their own longest drawing, which differs between ranks.
    place = torch.arange(strokes.shape[1], device=strokes.device)
    offsets = -log_density(mixture, strokes[..., :2]) * (place < lengths[:, None])
    pen = -(mixture.log_pen * strokes[..., 2:]).sum(-1) * (place <= lengths[:, None])
    return offsets.sum(1), pen.sum(1)


def kl_weight(step: int, end: float, start: float, decay: float) -> float:
    """end − (end − start)·decay^step: the KL's weight at ``step`` = 0, 1, …."""
    return end - (end - start) * decay**step


def kl_cost(kl: Tensor, floor: float) -> Tensor:
    """max(L_KL, floor), with L_KL the mean of ``kl`` (B,) over the drawings of all ranks.

    Below the floor it has no gradient.
    """
    mean = global_mean(kl)
    return torch.where(mean_over_ranks(mean.detach()) > floor, mean, floor)


class SketchRNN(LightningModule):
    """A sequence-to-sequence variational autoencoder of drawings.

    Args:
        scale_factor: what 1 means in a batch, in units of the data: the standard deviation of the training offsets.
        longest: N_max, number of points in the longest drawing; L_R is divided by it, and drawing stops there. Since
            the KL is not, a single long drawing makes the reconstruction cost less: the data leave it out.
        class_names: names of the data's labels, for the map of the codes.
        encoder_hidden, decoder_hidden: sizes of the LSTMs' states; the encoder has one for each direction.
        latent_dim: N_z, size of the code z; 0 for the unconditional model, a decoder alone.
        components: M, Gaussians of the mixture.
        layer_norm: normalize the gates and the cell of the decoder: :class:`lit_models.networks.recurrent.SteppedLSTM`.
        recurrent_dropout: share of the decoder's candidates that is dropped. Without layer norm and recurrent dropout,
            the decoder is PyTorch's fused LSTM, as the encoder always is.
        kl_weight, kl_weight_start, kl_decay: w goes from ``kl_weight_start`` to ``kl_weight``, ``kl_decay`` per step.
        kl_floor: of L_KL: the mean nats per dimension of z that cost nothing.
        optimizer, scheduler: callables, as Lightning's CLI makes them; by default the paper's.
        preparation: how a file becomes a drawing: arguments of :class:`common.drawings.Preparation`; by default files
            are in the data's unit.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        scale_factor: float,
        longest: int,
        class_names: list[str] | None = None,
        encoder_hidden: int = 256,
        decoder_hidden: int = 512,
        latent_dim: int = 128,
        components: int = 20,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        kl_weight: float = 0.5,
        kl_weight_start: float = 0.01,
        kl_decay: float = 0.99995,
        kl_floor: float = 0.2,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: DecayToFloor(optimizer, decay=0.9999, floor=1e-5),
        preparation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        at_least(1, longest=longest, encoder_hidden=encoder_hidden, decoder_hidden=decoder_hidden)
        at_least(1, components=components)
        at_least(0, "which is the unconditional model", latent_dim=latent_dim)
        more_than(0, scale_factor=scale_factor)
        at_least(0, kl_weight=kl_weight, kl_weight_start=kl_weight_start, kl_floor=kl_floor)
        within("(0, 1]", kl_decay=kl_decay)
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.scale_factor, self.longest, self.class_names = scale_factor, longest, class_names
        self.latent_dim, self.preparation = latent_dim, preparation
        self.kl_weight, self.kl_weight_start = kl_weight, kl_weight_start
        self.kl_decay, self.kl_floor = kl_decay, kl_floor
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        if latent_dim:
            directions = [nn.LSTM(5, encoder_hidden, batch_first=True) for _ in range(2)]
            self.encoder = nn.ModuleList(directions)
            self.to_posterior = nn.Linear(2 * encoder_hidden, 2 * latent_dim)
            self.to_state = nn.Linear(latent_dim, 2 * decoder_hidden)
            for direction in directions:
                initialize_lstm(direction)
        self.decoder: nn.LSTM = (
            SteppedLSTM(5 + latent_dim, decoder_hidden, layer_norm, recurrent_dropout)
            if layer_norm or recurrent_dropout
            else nn.LSTM(5 + latent_dim, decoder_hidden, batch_first=True)
        )
        initialize_lstm(self.decoder)
        self.head = nn.Linear(decoder_hidden, mixture_size(components))

        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in MEANS})
        self.posterior = PosteriorScores()
        self.mean_kl: Tensor | None = None  # (D,) nats of each dimension in the last evaluation
        self.evaluated: list[SketchBatch] = []  # its first batches, for the figures

    # ---- the model -----------------------------------------------------------------------------------------------

    def posterior_of(self, strokes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ̂ = log σ² of q(z|S), each (B, D), of strokes (B, T, 5)."""
        # Two LSTMs, of the points as they come and in reverse, each taken at the last point: what stands behind it does
        # not matter. A packed bidirectional LSTM is the same, but its backward pass is quadratic in T on a CPU.
        last = (lengths - 1)[:, None, None]
        places = torch.arange(strokes.shape[1], device=strokes.device)[None, :, None]
        reverse = strokes.gather(1, (last - places).clamp_min(0).expand_as(strokes))
        states = []
        for lstm, rows in zip(self.encoder, (strokes, reverse), strict=True):
            outputs, _ = lstm(rows)
            states.append(outputs.gather(1, last.expand(-1, 1, outputs.shape[2]))[:, 0])
        mean, log_var = self.to_posterior(torch.cat(states, 1)).chunk(2, 1)
        return mean, log_var

    def initial_state(self, z: Tensor) -> LSTMState:
        """[h_0; c_0] = tanh(W_z z + b_z), or zeros for the codes (B, 0) of the unconditional model."""
        if not self.latent_dim:
            zeros = z.new_zeros(1, len(z), self.decoder.hidden_size)
            return zeros, zeros
        h, c = self.to_state(z).tanh().chunk(2, 1)
        return h[None].contiguous(), c[None].contiguous()

    def forward(self, moves: Tensor, z: Tensor, state: LSTMState | None = None) -> tuple[Mixture, LSTMState]:
        """Moves (B, T, 5), start token first, and codes (B, D) → each next move's distribution, and the state."""
        inputs = torch.cat([moves, z[:, None].expand(-1, moves.shape[1], -1)], 2)
        outputs, state = self.decoder(inputs, self.initial_state(z) if state is None else state)
        return to_mixture(self.head(outputs)), state

    def nats(self, strokes: Tensor, lengths: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """−ln p(S|z), of the offsets and of the pen, each (B,): see :func:`nats_of_drawings`."""
        start = strokes.new_tensor(START).expand(len(strokes), 1, 5)
        mixture, _ = self(torch.cat([start, strokes[:, :-1]], 1), z)
        return nats_of_drawings(mixture, strokes, lengths)

    def training_step(self, batch: SketchBatch, batch_idx: int) -> dict[str, Tensor]:
        each = self._objective(batch, self.seed, self.current_epoch, batch_idx)
        weight = kl_weight(self.trainer.global_step, self.kl_weight, self.kl_weight_start, self.kl_decay)
        loss = global_mean(each["reconstruction"])
        if self.latent_dim:
            loss = loss + weight * kl_cost(each["kl"], self.kl_floor)
        parts: dict[str, Tensor] = {
            name: each[name].detach().mean() for name in ("reconstruction", "kl") if name in each
        }
        points = batch.lengths.to(loss.dtype).mean()
        parts["nats_per_point"] = parts["reconstruction"] * self.longest / points
        return {"loss": loss, **parts}

    def _objective(self, batch: SketchBatch, *key: int | str) -> dict[str, Tensor]:
        """The values of each drawing (B, …) that the loss and the evaluation average; ``key`` determines ε."""
        strokes, lengths, _ = batch
        if self.latent_dim:
            mean, log_var = self.posterior_of(strokes, lengths)
            noise = normal_of_samples(len(mean), self.latent_dim, "posterior", *key, device=mean.device)
            z = mean + (0.5 * log_var).exp() * noise.to(mean.dtype)  # the reparameterization trick
            kl = gaussian_kl(mean, log_var)  # its mean over z is the paper's L_KL
            code = {"mean": mean, "log_var": log_var, "z": z, "kl": kl.mean(1), "kl_nats": kl.sum(1)}
        else:
            z, code = strokes.new_zeros(len(strokes), 0), {}
        offsets, pen = self.nats(strokes, lengths, z)
        parts = {"offset_reconstruction": offsets / self.longest, "pen_reconstruction": pen / self.longest}
        nats = offsets + pen
        return {"reconstruction": nats / self.longest, "nats_per_point": nats / lengths, **parts, **code}

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: SketchBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: SketchBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: SketchBatch, batch_idx: int, stage: str) -> None:
        self.evaluated = self.evaluated if batch_idx else []
        if sum(len(seen.lengths) for seen in self.evaluated) < MAPPED:
            self.evaluated.append(batch)
        each = self._objective(batch, 0, stage, batch_idx)
        for name, metric in self.means.items():
            if name in each:  # a point weighs as much in a long drawing as in a short one
                metric.update(each[name], batch.lengths if name == "nats_per_point" else 1.0)
        if self.latent_dim:
            self.posterior.update(each["mean"], each["log_var"], each["z"])

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        names = [name for name in MEANS if self.latent_dim or not name.startswith("kl")]
        scores = {name: self.means[name].compute() for name in names}
        scores["loss"] = scores["reconstruction"]
        if self.latent_dim:
            # What training minimizes in the end, of all drawings at once.
            scores["loss"] = scores["reconstruction"] + self.kl_weight * scores["kl"].clamp_min(self.kl_floor)
            found = self.posterior.compute()
            self.mean_kl = found.kl
            scores |= {"active_units": found.active_units, "mutual_information": found.mutual_information}
            if found.active_units == 0:
                rank_zero_warn(
                    f"posterior collapse: no dimension of the code depends on the drawing ({stage}, epoch "
                    f"{self.current_epoch}); a lower kl_weight or a higher kl_floor may help"
                )
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})
        for name in names:
            self.means[name].reset()
        self.posterior.reset()

    def predict_step(self, batch: SketchBatch, batch_idx: int) -> dict[str, Any]:
        """How well each drawing of the batch is told, in nats a point; its code; and a drawing from that code.

        Without a code, how well it is told is all.
        """
        code = self.encode(batch) if self.latent_dim else batch.strokes.new_zeros(len(batch.strokes), 0)
        offsets, pen = self.nats(batch.strokes, batch.lengths, code)
        told = {"points": batch.lengths, "nats_per_point": (offsets + pen) / batch.lengths}
        return told | ({"code": code, "reconstruction": self.decode(code, seed=batch_idx)} if self.latent_dim else {})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use -----------------------------------------------------------------------------------------------------

    def encode(self, sketches: Drawings | SketchBatch, sample: bool = False, seed: int | None = None) -> Tensor:
        """Drawings → codes (B, D), in their order: the posterior's mean, or a draw from it.

        A drawing is a :class:`~lit_models.parts.sketch.Sketch`, or the path of an SVG file, which is read as the files
        of the training were.
        """
        return self._code(sketches, sample, seeded(seed, self.device, "code"))

    def decode(
        self, z: Tensor, temperature: float = 0.5, seed: int | None = None, max_points: int | None = None
    ) -> list[Sketch]:
        """Codes (B, D) → one drawing for each.

        Args:
            temperature: τ of :func:`lit_models.networks.mixture_density.draw_move`: near 0 the likeliest moves, 1 the
                model's own distribution.
            seed: the same seed gives the same drawings on the same device.
            max_points: where a drawing is cut off; by default ``longest``.

        Raises:
            ValueError: an argument out of range.
        """
        self._needs_code("decode")
        z = as_codes(z, self.latent_dim, self.head.weight)
        return self._drawn(z, None, temperature, seeded(seed, self.device), max_points)

    def generate(
        self, n: int = 1, temperature: float = 0.5, seed: int | None = None, max_points: int | None = None
    ) -> list[Sketch]:
        """``n`` drawings for codes from the prior, or, without a code, from the decoder alone; see :meth:`decode`."""
        generator = seeded(seed, self.device)
        return self._drawn(self._prior(n, generator), None, temperature, generator, max_points)

    def reconstruct(
        self, sketch: Drawings, temperature: float = 0.5, sample: bool = False, seed: int | None = None
    ) -> Sketch | list[Sketch]:
        """A drawing similar to ``sketch``, or to each of several: from the posterior's mean, or from a draw of it.

        Each seed gives a different one; only from the mean at temperature 0 are they all the same.
        """
        generator = seeded(seed, self.device)
        made = self._drawn(self._code(sketch, sample, generator), None, temperature, generator, None)
        return made if isinstance(sketch, (list, tuple)) else made[0]

    def interpolate(
        self, a: Drawing, b: Drawing, steps: int = 8, temperature: float = 0.1, seed: int | None = None
    ) -> list[Sketch]:
        """``steps`` drawings from ``a`` to ``b``, for codes on the great circle between theirs."""
        whole(2, steps=steps)
        first, last = self.encode([a, b])
        return self.decode(slerp(first, last, steps), temperature, seed)

    def complete(
        self,
        prefix: Sketch | Sequence[Sketch],
        n: int = 1,
        temperature: float = 0.5,
        seed: int | None = None,
        max_points: int | None = None,
    ) -> list[Sketch] | list[list[Sketch]]:
        """``n`` drawings that all start with ``prefix``, included in them, and end in different ways.

        The prefix is not a whole drawing, so the encoder cannot give its code. By Bayes' rule, p(z|prefix) is
        proportional to p(z) p(prefix|z): codes are drawn from the prior and chosen by how likely they make the prefix.
        A file is a whole drawing and is refused. Of several prefixes there is a list for each.

        Raises:
            ValueError: an argument out of range; the prefix leaves no room for an end.
        """
        generator = seeded(seed, self.device)
        several = isinstance(prefix, (list, tuple))
        prefixes: Any = prefix if several else [prefix]
        made = [self._completed(each, n, temperature, generator, max_points) for each in prefixes]
        return made if several else made[0]

    @torch.no_grad()
    def _completed(
        self, prefix: object, n: int, temperature: float, generator: torch.Generator | None, max_points: int | None
    ) -> list[Sketch]:
        if not isinstance(prefix, Sketch):
            raise ValueError(f"a prefix of type {type(prefix).__name__}: expected a Sketch, the beginning of a drawing")
        whole(1, max_points=max_points)
        if len(prefix) >= (limit := max_points or self.longest):
            asked = f"max_points={max_points}" if max_points else f"longest={limit}, or a larger max_points"
            raise ValueError(f"a prefix of {len(prefix)} points: expected fewer than {asked}")
        strokes, lengths = self._strokes(prefix)
        rows = strokes[:, :-1]
        z = self._prior(n, generator)
        if self.latent_dim:
            candidates = self._prior(CANDIDATES, generator)
            some = rows.expand(CANDIDATES, -1, -1)
            with evaluating(self):
                offsets, pen = self.nats(some, lengths.expand(CANDIDATES), candidates)
            z = candidates[draw(-(offsets + pen).expand(n, -1), generator=generator)]
        return self._drawn(z, rows, temperature, generator, max_points)

    @torch.no_grad()
    def _code(self, sketches: object, sample: bool, generator: torch.Generator | None) -> Tensor:
        self._needs_code("encode")
        strokes, lengths = self._strokes(sketches)
        with evaluating(self):
            mean, log_var = self.posterior_of(strokes, lengths)
        if not sample:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + (0.5 * log_var).exp() * noise

    @torch.no_grad()
    def _drawn(
        self,
        z: Tensor,
        prefix: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
        max_points: int | None,
    ) -> list[Sketch]:
        """One drawing for each code (B, D), all starting with the rows ``prefix`` (1, P, 5)."""
        check_sampling(temperature, None, None)
        whole(1, max_points=max_points)
        limit = max_points or self.longest
        inputs = z.new_tensor(START).expand(len(z), 1, 5)
        moves: list[Tensor] = []
        if prefix is not None:
            moves = list(prefix.expand(len(z), -1, -1).unbind(1))
            inputs = torch.stack([inputs[:, 0], *moves], 1)
        ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        state = None
        with evaluating(self):
            while len(moves) < limit and not ended.all():
                mixture, state = self(inputs, z, state)
                last = Mixture(*(part[:, -1] for part in mixture))
                if not moves:  # a drawing has at least one point
                    last.log_pen[:, 2] = -torch.inf
                move = draw_move(last, temperature, generator)
                ended |= move[:, 4] == 1
                moves.append(move)
                inputs = move[:, None].to(z.dtype)
        return [Sketch.from_rows(rows, self.scale_factor) for rows in torch.stack(moves, 1).float().cpu()]

    def _prior(self, count: int, generator: torch.Generator | None) -> Tensor:
        whole(1, n=count)
        dtype = self.head.weight.dtype
        return torch.randn(count, self.latent_dim, generator=generator, device=self.device, dtype=dtype)

    def _strokes(self, sketches: Any) -> tuple[Tensor, Tensor]:
        if hasattr(sketches, "strokes"):
            strokes, lengths = sketches.strokes, sketches.lengths
        else:
            strokes, lengths = to_strokes(as_sketches(sketches, self.preparation), self.scale_factor)
        return strokes.to(self.device, self.head.weight.dtype), lengths.to(self.device)

    def _needs_code(self, verb: str) -> None:
        if not self.latent_dim:
            raise ValueError(f"{verb} with latent_dim=0: expected a model with a code; this one only generates")
