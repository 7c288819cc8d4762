"""The variational autoencoder: each image becomes a distribution of codes, which makes the code space continuous.

Kingma & Welling, "Auto-Encoding Variational Bayes" (2014). The encoder gives a mean and a (diagonal) covariance, the
decoder a distribution of images:

    q(z|x) = N(z; μ(x), diag σ²(x))        p(z) = N(z; 0, I)        p(x|z)

    log p(x)  ≥  ELBO  =  E_q[log p(x|z)]  −  KL(q(z|x) ‖ p(z))

that is reconstruction − KL, in nats. One cannot back-propagate through drawing z. The reparameterization trick instead
draws ε from a unit Gaussian, scales it by the deviation and shifts it by the mean, so that the gradient reaches both:

    z = μ + σ ⊙ ε        ε ~ N(0, I)

With k importance samples the bound is tighter (Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders" 2016):

    log p(x)  ≥  E[ log 1/k Σ_i w_i ]        w_i = p(x|z_i) p(z_i) / q(z_i|x)        z_i ~ q(z|x)

β weights the KL (Higgins et al. 2017), free bits let each dimension keep some of it at no cost (Kingma et al. 2016),
and it can be warmed up once or in cycles (Bowman et al. 2016; Fu et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.checks import at_least, more_than, one_of, within
from common.distributed import global_mean, mean_over_ranks
from common.pictures import Preprocessing
from common.randomness import coins_of_samples, normal_of_samples
from common.trainer import datamodule_of
from lit_models.networks.encoders import image_encoder
from lit_models.networks.image_coders import Activation, conv_decoder, conv_encoder, mlp
from lit_models.parts.evaluating import evaluating
from lit_models.parts.latent import gaussian_kl, slerp
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.pictures import takes_pictures
from lit_models.scores.vae import PosteriorScores

if TYPE_CHECKING:
    from datamodules.parts.image_sets import ImageBatch

LOG_2PI = math.log(2 * math.pi)
MEANS = ("elbo", "bound", "reconstruction", "kl", "nll")
Network = Literal["conv", "mlp"]
Likelihood = Literal["bernoulli", "gaussian", "discretized_logistic"]


def log_normal(z: Tensor, mean: Tensor | float = 0.0, log_var: Tensor | float = 0.0) -> Tensor:
    """log N(z; mean, exp(log_var)) of each element."""
    log_var = torch.as_tensor(log_var, dtype=z.dtype, device=z.device)
    return -0.5 * (LOG_2PI + log_var + (z - mean).square() * torch.exp(-log_var))


def importance_bound(log_weights: Tensor) -> Tensor:
    """log 1/k Σ_i w_i of log-weights (k, B) → (B,): the IWAE bound; for large k an estimate of log p(x).

    Its gradient, as autograd computes it, is Σ_i w̃_i ∇ log w_i, with the normalized weights w̃ as constants.
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def log_likelihood(kind: Likelihood, output: Tensor, images: Tensor, log_scale: Tensor) -> Tensor:
    """log p(x|z) in nats, including all constants, summed over an image: (…, B, C, H, W) → (…, B).

    ``bernoulli``: for binary pixels (or the cross-entropy with gray ones, which is not a likelihood), from logits.
    ``gaussian``: a density, so it can be positive, with mean ``output`` and deviation exp(log_scale).
    ``discretized_logistic``: the probability of each of the 256 pixel values (Salimans et al. 2017): the mass of a
    logistic distribution with mean ``output`` and scale exp(log_scale) between the value's bounds, which are open at 0
    and 255.
    """
    if kind == "bernoulli":
        cross_entropy = F.binary_cross_entropy_with_logits(output, images.expand_as(output), reduction="none")
        return -cross_entropy.flatten(-3).sum(-1)
    if kind == "gaussian":  # the deviation is that of all pixels, so the squares are summed first
        squares = (images - output).square().flatten(-3).sum(-1)
        pixels = math.prod(images.shape[-3:])
        return -0.5 * (pixels * (LOG_2PI + 2 * log_scale) + squares * torch.exp(-2 * log_scale))
    half, scale = 0.5 / 255, log_scale.exp()
    above, below = (images + half - output) / scale, (images - half - output) / scale
    # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)), whose logarithm does not cancel in the tails.
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log1p(-torch.exp(below - above))
    per_pixel = torch.where(images <= 0, F.logsigmoid(above), torch.where(images >= 1, F.logsigmoid(-below), inside))
    return per_pixel.flatten(-3).sum(-1)


def kl_weight(step: int, steps: int, beta: float, warmup: float, cycles: int) -> float:
    """The weight of the KL, rising linearly to β over the first ``warmup`` of each of ``cycles`` parts of training."""
    if warmup == 0:
        return beta
    place = (step * cycles / steps) % 1 if step < steps else 1.0
    return beta * min(1.0, place / warmup)


class VAE(LightningModule):
    """A variational autoencoder of images.

    Args:
        image_shape: (C, H, W).
        network: ``conv``, or the papers' ``mlp``.
        encoder, width: a network of :func:`lit_models.networks.encoders.image_encoder`, shared with contrastive
            techniques, and a linear layer as the encoder, with the convolutional decoder.
        channels: of the convolutional network, whose layers each halve the image.
        hidden: of the MLP's layers, in the decoder in reverse order.
        activation: of the MLP: ``tanh`` (IWAE's) or ``relu``.
        latent_dim: of the code z.
        likelihood: p(x|z): see :func:`log_likelihood`.
        sigma: the Gaussian's deviation, or the logistic's scale, in units of the brightness 0..1; ``null`` learns it.
        binarize: draw each pixel as black or white with its brightness as probability, again in each step (dynamic
            binarization), which makes ``bernoulli`` a true likelihood.
        samples: k, number of importance samples in the training bound; 1 is the ELBO with its KL in closed form.
        beta: weight of the KL.
        warmup, cycles: the weight rises over the first ``warmup`` (share) of each of ``cycles`` parts of training.
        free_bits: nats of the KL that cost nothing in each dimension.
        test_samples: number of importance samples for the test's log-likelihood; processed in chunks.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: an argument is out of range; ``beta``, ``warmup`` or ``free_bits`` with several ``samples``, whose
            bound has no separate KL.
    """

    adjustable: ClassVar = ("test_samples",)
    """arguments that may differ from a checkpoint's"""

    def __init__(
        self,
        image_shape: Sequence[int],
        network: Network = "conv",
        encoder: str | None = None,
        width: int | None = None,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (200, 200),
        activation: Activation = "tanh",
        latent_dim: int = 16,
        likelihood: Likelihood = "bernoulli",
        sigma: float | None = None,
        binarize: bool = False,
        samples: int = 1,
        beta: float = 1.0,
        warmup: float = 0.0,
        cycles: int = 1,
        free_bits: float = 0.0,
        test_samples: int = 500,
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3, eps=1e-4),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer, warmup=0.02),
    ) -> None:
        super().__init__()
        one_of(Network, network=network)
        one_of(Activation, activation=activation)
        one_of(Likelihood, likelihood=likelihood)
        at_least(1, latent_dim=latent_dim, samples=samples, cycles=cycles, test_samples=test_samples)
        at_least(0, beta=beta, free_bits=free_bits)
        within("[0, 1]", warmup=warmup)
        more_than(0, "or null to learn it", sigma=sigma)
        if encoder is not None and network != "conv":
            raise ValueError(f"encoder={encoder!r}: expected null with network={network!r}")
        if binarize and likelihood != "bernoulli":
            raise ValueError(
                f"likelihood={likelihood!r} with binarize=true: expected 'bernoulli', the likelihood of binary pixels"
            )
        if samples > 1 and (beta, warmup, free_bits) != (1.0, 0.0, 0.0):
            raise ValueError(
                f"samples={samples} with beta, warmup or free_bits: expected samples=1, whose bound has a KL of its own"
            )
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.image_shape, self.network = list(image_shape), network
        self.preprocess = Preprocessing(self.image_shape, **preprocessing or {})
        self.latent_dim, self.likelihood, self.binarize = latent_dim, likelihood, binarize
        self.samples, self.test_samples = samples, test_samples
        self.beta, self.warmup, self.cycles, self.free_bits = beta, warmup, cycles, free_bits
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        if network == "conv":
            if encoder is None:
                self.encoder = conv_encoder(self.image_shape, channels, 2 * latent_dim)
            else:
                features = image_encoder(encoder, self.image_shape, width=width)
                self.encoder = nn.Sequential(features, nn.Linear(features.out_dim, 2 * latent_dim))
            self.decoder = conv_decoder(self.image_shape, channels, latent_dim)
        else:
            pixels = math.prod(self.image_shape)
            self.encoder = nn.Sequential(nn.Flatten(), mlp([pixels, *hidden, 2 * latent_dim], activation))
            decode = mlp([latent_dim, *list(hidden)[::-1], pixels], activation)
            self.decoder = nn.Sequential(decode, nn.Unflatten(1, self.image_shape))
            for layer in self.modules():  # as the IWAE paper does: PyTorch's smaller weights start some epochs behind
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        # One deviation for all pixels: what is learned, as a variance of its own for each pixel collapses.
        scale = torch.tensor(math.log(sigma if sigma is not None else 0.1))
        self.log_scale = nn.Parameter(scale, requires_grad=sigma is None and likelihood != "bernoulli")

        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in MEANS})
        self.posterior = PosteriorScores()
        self.mean_kl: Tensor | None = None  # (D,) nats of each dimension in the last evaluation

    # ---- the model -----------------------------------------------------------------------------------------------

    def posterior_of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each (B, D)."""
        mean, log_var = self.encoder(images).chunk(2, 1)
        return mean, log_var

    def log_p_x_given_z(self, images: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): images (B, C, H, W) and codes (k, B, D) → (k, B)."""
        output = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return log_likelihood(self.likelihood, output, images, self.log_scale)

    def observed(self, images: Tensor, *key: int | str) -> Tensor:
        """The modeled images: the images themselves, or a binarization determined by ``key``."""
        if not self.binarize:
            return images
        return coins_of_samples(images, "binarize", *key)

    def draws(self, count: int, like: Tensor, *key: int | str) -> Tensor:
        """ε of ``count`` codes an image: (k, B, D)."""
        noise = normal_of_samples(len(like), count * self.latent_dim, "posterior", *key, device=like.device)
        return noise.to(like.dtype).view(len(like), count, self.latent_dim).transpose(0, 1)

    def on_fit_start(self) -> None:
        """Starts the decoder of a new MLP at the mean image, as IWAE's own code does."""
        if self.likelihood != "bernoulli" or self.network != "mlp":
            return
        bias = self.decoder[0][-1].bias.data  # type: ignore[index]
        if bias.any():  # the run goes on, or began with trained weights
            return
        data = datamodule_of(self.trainer)
        total, count = torch.zeros_like(bias), torch.zeros(1).to(bias)
        for batch in data.plain_batches("train", self.device):
            total += batch.images.to(bias).flatten(1).sum(0)
            count += len(batch.images)
        mean = mean_over_ranks(total) / mean_over_ranks(count)
        bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        key = (self.seed, self.current_epoch, batch_idx)
        return self._objective(batch.images, key)[0]

    def _objective(self, images: Tensor, key: tuple[int | str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss and its parts, and the values of each image (B, …) that evaluation averages."""
        x = self.observed(images, *key)
        mean, log_var = self.posterior_of(x)
        # The reparameterization trick: (k, B, D)
        z = mean + (0.5 * log_var).exp() * self.draws(self.samples, mean, *key)
        log_p_x = self.log_p_x_given_z(x, z)
        kl_of_dimensions = gaussian_kl(mean, log_var)
        reconstruction, kl = log_p_x.mean(0), kl_of_dimensions.sum(1)
        bound = elbo = reconstruction - kl
        if self.samples == 1:
            cost = kl if self.free_bits == 0 else self._after_free_bits(kl_of_dimensions)
            loss = global_mean(self._kl_weight() * cost - reconstruction)
        else:
            log_w = log_p_x + log_normal(z).sum(2) - log_normal(z, mean, log_var).sum(2)
            bound = importance_bound(log_w)
            loss = -global_mean(bound)
        parts = {"reconstruction": reconstruction.detach().mean(), "kl": kl.detach().mean()}
        parts["elbo"] = parts["reconstruction"] - parts["kl"]
        each = {"elbo": elbo, "bound": bound, "reconstruction": reconstruction, "kl": kl}
        return {"loss": loss, **parts}, {**each, "mean": mean, "log_var": log_var, "z": z[0], "x": x}

    def _kl_weight(self) -> float:
        if not self.training or self.warmup == 0:
            return self.beta
        steps = int(self.trainer.estimated_stepping_batches)
        return kl_weight(self.trainer.global_step, steps, self.beta, self.warmup, self.cycles)

    def _after_free_bits(self, kl: Tensor) -> Tensor:
        """Each image's share (B,) of Σ_d max(λ, mean KL_d): below λ, a dimension has no further cost.

        The mean is over the batch of all ranks.
        """
        costs = mean_over_ranks(kl.detach().mean(0)) > self.free_bits
        return torch.where(costs, kl, self.free_bits).sum(1)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        each = self._evaluate(batch, batch_idx, "test")
        x, mean, log_var = each["x"], each["mean"], each["log_var"]
        self.means["nll"].update(-self.log_likelihood_of(x, mean, log_var, batch_idx))

    def _evaluate(self, batch: ImageBatch, batch_idx: int, stage: str) -> dict[str, Tensor]:
        _, each = self._objective(batch.images, (0, stage, batch_idx))
        for name in ("elbo", "bound", "reconstruction", "kl"):
            self.means[name].update(each[name])
        self.posterior.update(each["mean"], each["log_var"], each["z"])
        return each

    def log_likelihood_of(self, x: Tensor, mean: Tensor, log_var: Tensor, batch_idx: int, chunk: int = 50) -> Tensor:
        """log p(x) (B,) in nats by importance sampling from q(z|x), with ``test_samples`` draws, ``chunk`` at once."""
        parts = []
        for first in range(0, self.test_samples, chunk):
            count = min(chunk, self.test_samples - first)
            z = mean + (0.5 * log_var).exp() * self.draws(count, mean, "test_samples", batch_idx, first)
            log_w = self.log_p_x_given_z(x, z) + (log_normal(z) - log_normal(z, mean, log_var)).sum(2)
            parts.append(log_w.logsumexp(0))
        return torch.stack(parts).logsumexp(0) - math.log(self.test_samples)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val", MEANS[:-1])

    def on_test_epoch_end(self) -> None:
        self._log_scores("test", MEANS)

    def _log_scores(self, stage: str, names: Sequence[str]) -> None:
        scores = {name: self.means[name].compute() for name in names}
        best = scores["nll"] if "nll" in scores else -scores["bound"]
        if self.likelihood != "gaussian":  # a density, whose bits depend on the unit of brightness
            scores["bits_per_dim"] = best / (math.log(2) * math.prod(self.image_shape))
        found = self.posterior.compute()
        self.mean_kl = found.kl
        # What training minimizes, of all images at once.
        free = self.beta * found.kl.clamp_min(self.free_bits).sum() - scores["reconstruction"]
        scores["loss"] = free if self.samples == 1 else -scores["bound"]
        scores |= {"active_units": found.active_units, "mutual_information": found.mutual_information}
        if found.active_units == 0:
            rank_zero_warn(
                f"posterior collapse: no dimension of the code depends on the image ({stage}, epoch "
                f"{self.current_epoch}); free_bits or a warm-up of the KL may help"
            )
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})
        for name in names:
            self.means[name].reset()
        self.posterior.reset()

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """The code of each image of the batch, the posterior's mean, and the image that is rebuilt from it."""
        code = self.encode(batch.images)
        return {"code": code, "reconstruction": self.decode(code)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- use -----------------------------------------------------------------------------------------------------

    @takes_pictures
    def encode(self, images: Tensor, sample: bool = False, seed: int | None = None) -> Tensor:
        """Images (B, C, H, W) in 0..1 → codes (B, D): the posterior's mean, or a draw from it."""
        mean, log_var = self.posterior_of(images)
        return mean + (0.5 * log_var).exp() * self._normal(mean.shape, seed) if sample else mean

    def decode(self, z: Tensor) -> Tensor:
        """Codes (B, D) → the expected images (B, C, H, W) in 0..1."""
        pixels: Tensor = self.decoder(z)
        return pixels.sigmoid() if self.likelihood == "bernoulli" else pixels.clamp(0, 1)

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0, seed: int | None = None) -> Tensor:
        """(count, C, H, W): the expected images of codes from the prior, its deviation times ``temperature``."""
        at_least(1, count=count)
        with evaluating(self):
            return self.decode(temperature * self._normal((count, self.latent_dim), seed))

    @torch.no_grad()
    def reconstruct(self, images: object, sample: bool = False, seed: int | None = None) -> Tensor:
        """(B, C, H, W) in 0..1: pictures, as :class:`common.pictures.Preprocessing` takes them, rebuilt."""
        with evaluating(self):
            return self.decode(self.encode(self._batch(images), sample, seed))

    @torch.no_grad()
    def interpolate(self, a: object, b: object, steps: int = 8) -> Tensor:
        """(steps, C, H, W): from one image to another on the great circle between their codes."""
        with evaluating(self):
            first, last = (self.encode(self._batch(image))[0] for image in (a, b))
            return self.decode(slerp(first, last, steps))

    @torch.no_grad()
    def traverse(self, image: object, dimension: int, values: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3)) -> Tensor:
        """(len(values), C, H, W): one dimension of the image's code set to each of the values."""
        if not 0 <= dimension < self.latent_dim:
            raise ValueError(f"dimension={dimension}: expected 0 to {self.latent_dim - 1}")
        with evaluating(self):
            z = self.encode(self._batch(image)).repeat(len(values), 1)
            z[:, dimension] = torch.tensor(values, dtype=z.dtype, device=z.device)
            return self.decode(z)

    def _normal(self, shape: Sequence[int], seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device, dtype=self.log_scale.dtype)

    def _batch(self, images: object) -> Tensor:
        return self.preprocess(images, self)
