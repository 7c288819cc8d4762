"""Text to image: a sentence and noise become an image, by a conditional GAN whose discriminator reads the sentence too.

Reed et al., "Generative Adversarial Text to Image Synthesis" (ICML 2016), GAN-CLS, with the conditioning augmentation
of Zhang et al., "StackGAN" (ICCV 2017). With φ the text encoder, t the sentence of an image x, and t̂ that of another:

    c ~ N(μ(φ(t)), σ(φ(t))²)      x̂ = G(z, c)                                    a point near the sentence; its image
    s_r = D(x, φ(t))     s_w = D(x, φ(t̂))     s_f = D(x̂, φ(t))                   right, wrong sentence, fake image
    L_D = −log s_r − ½ (log(1 − s_w) + log(1 − s_f))                              Algorithm 1
    L_G = −log s_f + kl_weight · KL(N(μ, σ²) ‖ N(0, 1))

Without s_w the discriminator would have no reason to read: any real image would do.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from common.checks import at_least, more_than, nearest, within
from common.distributed import (
    gather_rows,
    places_of_this_rank,
    rows_of_this_rank,
    take_from_first_rank,
    world_size,
)
from common.randomness import normal_of_samples
from common.trainer import datamodule_of
from common.vocabulary import encode, tokenize
from lit_models.networks.attribute_classifier import AttributeClassifier, choices, fit_classifier
from lit_models.networks.gan_networks import Discriminator, Generator
from lit_models.networks.joint_embedding import JointEmbedding, fit_joint_embedding
from lit_models.parts.checkpoints import rebuilt, trained_module
from lit_models.parts.evaluating import evaluating
from lit_models.parts.latent import gaussian_kl
from lit_models.parts.optim import configure_optimizers
from lit_models.scores.generation import GenerationScores, agreeing
from lit_models.scores.sentence_retrieval import SentenceRetrieval

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch


def discriminator_loss(real: Tensor, wrong: Tensor, fake: Tensor) -> Tensor:
    """(B,): −log s_r − ½ (log(1 − s_w) + log(1 − s_f)) of logits (B,), s being their sigmoid.

    ``wrong`` may be (K, B) for K wrong sentences per image, whose terms are averaged.
    """
    of_wrong = F.softplus(wrong)
    return F.softplus(-real) + 0.5 * (of_wrong if wrong.dim() == 1 else of_wrong.mean(0)) + 0.5 * F.softplus(fake)


def generator_loss(fake: Tensor) -> Tensor:
    """(B,): −log s_f of logits (B,)."""
    return F.softplus(-fake)


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """(B,): ½ ‖∇_x D(x)‖² at real images, which needs a gradient: R1 of Mescheder et al. 2018, eq. 9."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1)


class TextToImageGAN(LightningModule):
    """GAN-CLS on captioned images, such as those of :mod:`datamodules.captions`.

    Validation, checkpoints and use refer to the generator's moving average. Before the GAN's first step, an embedding
    learns which sentences and images belong together, and a classifier learns the attributes of the real training
    images, if the data have any; then both are frozen, and both are part of the checkpoint. The classifier, which gives
    the GAN no gradient, judges generated images: see :class:`lit_models.scores.generation.GenerationScores`. Without
    attributes the embedding does: see :class:`lit_models.scores.sentence_retrieval.SentenceRetrieval`.

    One step of the Trainer is a step of both networks.

    Args:
        vocab: the words of sentences, ``<pad>`` and ``<unk>`` first.
        attributes: the values of each attribute that the classifier distinguishes; {} for none, as of photographs.
        image_shape: (C, S, S), S a power of two, at least 8.
        embedding_dim, text_dim: of words and of sentences.
        condition_dim: of the conditioning augmentation, and of the sentence within the discriminator.
        noise_dim: of z.
        width: channels next to the image, in both networks.
        wrong_sentences: number of wrong sentences per image, taken from the images before it in the batch. One in the
            paper; more cost little, since the image is processed once.
        kl_weight: of the conditioning augmentation's divergence (StackGAN: 2 on the mean over dimensions).
        matching_weight: λ of the generator's second loss: among the sentences of the batch, the frozen embedding should
            match its image to its own. Not in Reed et al.; modeled on AttnGAN's L_DAMSM (Xu et al. 2018).
        spectral_norm: use spectral norm in the discriminator's layers instead of batch norm.
        r1_weight: γ of the gradient penalty on real images; 0 means none.
        ema_decay: share of the past that each step keeps in the generator's average.
        accumulate_grad_batches: number of batches whose gradients make one step.
        gradient_clip_norm: largest norm of either network's gradient; null means no limit.
        classifier_epochs, embedding_epochs: length of their pre-training.
        captioner: a checkpoint of :class:`lit_models.captioner.Captioner` that also judges the test's images.
        optimizer, scheduler: callables, as Lightning's CLI makes them, called once for each network.

    Raises:
        ValueError: an argument is out of range; the data have several objects in an image, or several sentences per
            image in a batch; the precision is not 32-true, 64-true or bf16-mixed; ``ReduceLROnPlateau``.
    """

    adjustable: ClassVar = ("captioner",)
    """arguments that may differ from a checkpoint's"""

    def __init__(
        self,
        vocab: list[str],
        attributes: dict[str, list[str]],
        image_shape: Sequence[int] = (3, 64, 64),
        embedding_dim: int = 64,
        text_dim: int = 128,
        condition_dim: int = 64,
        noise_dim: int = 100,
        width: int = 64,
        wrong_sentences: int = 1,
        kl_weight: float = 0.02,
        matching_weight: float = 0.0,
        spectral_norm: bool = False,
        r1_weight: float = 0.0,
        ema_decay: float = 0.999,
        accumulate_grad_batches: int = 1,
        gradient_clip_norm: float | None = None,
        classifier_epochs: int = 8,
        embedding_epochs: int = 20,
        captioner: str | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=2e-4, betas=(0.5, 0.999)),
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if captioner is not None and not attributes:
            raise ValueError(f"captioner={captioner}: expected data with attributes, by which it judges images")
        at_least(1, embedding_dim=embedding_dim, text_dim=text_dim, condition_dim=condition_dim, noise_dim=noise_dim)
        at_least(1, width=width, wrong_sentences=wrong_sentences, accumulate_grad_batches=accumulate_grad_batches)
        at_least(1, classifier_epochs=classifier_epochs, embedding_epochs=embedding_epochs)
        at_least(0, kl_weight=kl_weight, matching_weight=matching_weight, r1_weight=r1_weight)
        within("[0, 1)", ema_decay=ema_decay)
        more_than(0, "or null for no limit", gradient_clip_norm=gradient_clip_norm)
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        # Two losses of which each trains one network do not go into one call of an optimizer.
        self.automatic_optimization = False
        self.vocab, self.attributes, self.image_shape = list(vocab), dict(attributes), list(image_shape)
        self.wrong_sentences, self.ema_decay = wrong_sentences, ema_decay
        self.kl_weight, self.matching_weight, self.r1_weight = kl_weight, matching_weight, r1_weight
        self.accumulate_grad_batches, self.gradient_clip_norm = accumulate_grad_batches, gradient_clip_norm
        self.classifier_epochs, self.embedding_epochs, self.captioner = classifier_epochs, embedding_epochs, captioner
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        self.embedding = JointEmbedding(len(vocab), embedding_dim, text_dim, image_shape).requires_grad_(False)
        self.generator = Generator(image_shape, text_dim, condition_dim, noise_dim, width)
        self.discriminator = Discriminator(image_shape, text_dim, condition_dim, width, spectral_norm)
        for network in (self.generator, self.discriminator):
            network.to(memory_format=torch.channels_last)  # the faster layout for convolutions
        self.average = deepcopy(self.generator).requires_grad_(False)
        self.classifier: AttributeClassifier | None = None
        self.scores: Any = SentenceRetrieval()
        if attributes:
            self.classifier = AttributeClassifier(image_shape, {name: len(attributes[name]) for name in attributes})
            self.classifier.requires_grad_(False)
            self.scores = GenerationScores(self.attributes)
        self.agreement = MeanMetric()
        self._captioners: list[Any] = []  # in a list, so that its weights are no part of this module's

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> dict[str, Tensor]:
        x = 2 * batch.images[batch.image_index] - 1
        x.requires_grad_(self.r1_weight > 0)
        text = self.embedding.text(batch.captions, batch.lengths)
        everyones = gather_rows(text)
        others = [rows_of_this_rank(everyones.roll(i + 1, 0)) for i in range(self.wrong_sentences)]
        z = self.noise(len(batch.images), self.seed, "noise", self.current_epoch, batch_idx)[batch.image_index]

        mean, log_var = self.generator.condition(text)
        fake = self.generator(mean, log_var, z.to(x.dtype))

        features = self.discriminator.trunk(x)
        s_r = self.discriminator.judge(features, text)
        s_w = torch.stack([self.discriminator.judge(features, another) for another in others])
        s_f = self.discriminator(fake.detach(), text)
        d_loss = discriminator_loss(s_r, s_w, s_f).mean()
        penalty = gradient_penalty(s_r, x).mean() if self.r1_weight else d_loss.new_zeros(())

        # Each loss reaches its own network only, so one backward pass, which is what DDP expects, serves both.
        self.discriminator.requires_grad_(False)
        g_loss = generator_loss(self.discriminator(fake, text)).mean()
        self.discriminator.requires_grad_(True)
        kl = gaussian_kl(mean, log_var).sum(1).mean()
        matching = d_loss.new_zeros(())
        if self.matching_weight:
            own = places_of_this_rank(len(text), text.device)
            matching = self.embedding.matching((fake + 1) / 2, everyones, own).mean()

        total = d_loss + self.r1_weight * penalty
        total = total + g_loss + self.kl_weight * kl + self.matching_weight * matching
        self.manual_backward(total / self.accumulate_grad_batches)
        if (batch_idx + 1) % self.accumulate_grad_batches == 0 or self.trainer.is_last_batch:
            self.step_both()
        losses = {"generator_loss": g_loss, "kl": kl, "matching": matching, "penalty": penalty.detach()}
        right = {"d_right_real": s_r > 0, "d_right_wrong": s_w < 0, "d_right_fake": s_f < 0}
        return {"loss": d_loss, **losses, **{name: share.float().mean() for name, share in right.items()}}

    def noise(self, num_images: int, *key: int | str) -> Tensor:
        """(num_images, noise_dim + condition_dim), standard normal: a function of ``key`` and each image's place."""
        width = self.generator.noise_dim + self.generator.condition_dim
        return normal_of_samples(num_images, width, *key, device=self.device)

    # ---- optimization --------------------------------------------------------------------------------------------

    def step_both(self) -> None:
        """A step of both networks from gradients at the same point, as in Algorithm 1, and of the average."""
        optimizers: Any = self.optimizers()
        of_generator, of_discriminator = optimizers
        # Lightning counts each optimizer's steps, but max_steps, checkpoints and logs are to count batches.
        of_discriminator._on_before_step = of_discriminator._on_after_step = lambda: None
        for optimizer in (of_discriminator, of_generator):
            optimizer.step()
            optimizer.zero_grad()
        self.step_schedules("step")
        self.follow()

    def on_train_epoch_end(self) -> None:
        self.step_schedules("epoch")

    def step_schedules(self, interval: str) -> None:
        for schedule in self.trainer.lr_scheduler_configs:
            if schedule.interval == interval:
                schedule.scheduler.step()  # type: ignore[call-arg]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.gradient_clip_norm is not None:
            self.clip_gradients(optimizer, self.gradient_clip_norm, "norm")

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the averaged generator toward the trained one, including its batch-norm statistics."""
        networks = self.average, self.generator
        mine, theirs = ([t for t in n.state_dict().values() if t.is_floating_point()] for n in networks)
        torch._foreach_lerp_(mine, theirs, 1 - self.ema_decay)

    def configure_optimizers(self) -> Any:
        made: list[Any] = [
            configure_optimizers(
                self, self.optimizer, self.scheduler, parts=[network], accumulate=self.accumulate_grad_batches
            )
            for network in (self.generator, self.discriminator)
        ]
        if any(
            isinstance(of_network.get("lr_scheduler", {}).get("scheduler"), ReduceLROnPlateau) for of_network in made
        ):
            raise ValueError("scheduler ReduceLROnPlateau: expected one by steps or epochs; a GAN has no loss for it")
        return made

    # ---- before the first step -----------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self.trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
            raise ValueError(
                f"trainer.precision={self.trainer.precision!r}: expected '32-true', '64-true' or 'bf16-mixed'; "
                "float16 has only one scale for the losses of both networks"
            )
        data: Any = datamodule_of(self.trainer)
        if getattr(data, "captions_per_image", None) != 1:
            raise ValueError(
                f"captions_per_image={getattr(data, 'captions_per_image', None)}: expected 1, so that the sentences of "
                "a batch belong to different images"
            )
        if self.classifier is not None and data.tables["train"].objects.shape[1] != 1:
            raise ValueError("the training images show several objects: expected one in each, as with max_objects=1")
        if self.wrong_sentences >= (size := data.batch_size * world_size()):
            raise ValueError(f"wrong_sentences={self.wrong_sentences}: expected less than the global batch of {size}")
        # All of the training part on each rank, where the loader would give each its share.
        everything = data.tables["train"]
        batches = [everything[rows] for rows in torch.arange(len(everything)).split(1024)]
        if self.classifier is not None and not self.classifier.trained:  # it comes with a checkpoint
            fit_classifier(self.classifier, batches, self.classifier_epochs, self.device)
        if not self.embedding.trained:
            fit_joint_embedding(self.embedding, batches, self.embedding_epochs, self.device)
        for network in filter(None, (self.classifier, self.embedding)):
            take_from_first_rank(network)  # on GPUs equal trainings may end a little apart

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self._captioners = []
        if self.captioner is not None:  # also before a training, so that a mistake is not noticed at its end
            made_of, weights = trained_module(self.captioner, "captioner")
            captioner = rebuilt(made_of)
            if not hasattr(captioner, "caption"):
                raise ValueError(f"captioner={self.captioner}: holds a {made_of['class_path']}, expected a captioner")
            captioner.load_state_dict(weights)
            self._captioners = [captioner.requires_grad_(False)]

    def on_test_start(self) -> None:
        for captioner in self._captioners:
            captioner.to(self.device)

    def validation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        fake = self._evaluate(batch, batch_idx)
        for captioner in self._captioners:
            captions = captioner.caption(fake, method="greedy")
            self.agreement.update(agreeing(captions, batch.stated, self.attributes))
            self.log("test/captioner_agreement", self.agreement)

    def _images_of(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """One generated image for each sentence, with the same noise in every evaluation."""
        text = self.embedding.text(batch.captions, batch.lengths)
        return self.draw(text, self.noise(len(batch.images), "evaluate", batch_idx)[batch.image_index])

    def _evaluate(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """Adds a batch to the scores; the generated images."""
        fake = self._images_of(batch, batch_idx)
        if self.classifier is None:
            self.scores.update(
                images=batch.image_ids[batch.image_index],
                sentences=self.embedding.text(batch.captions, batch.lengths),
                real=self.embedding.image(batch.images)[batch.image_index],
                fake=self.embedding.image(fake),
            )
            return fake
        real_logits, real_features = self.classifier(batch.images)
        fake_logits, fake_features = self.classifier(fake)
        self.scores.update(
            objects=batch.objects[:, 0, : len(self.attributes)],
            judged_real=choices(real_logits),
            judged_fake=choices(fake_logits),
            stated=batch.stated,
            image_index=batch.image_index,
            unseen=batch.unseen,
            real_features=real_features,
            fake_features=fake_features,
        )
        return fake

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        # Every rank computes the same figures from what all have gathered.
        scores = self.scores.compute()
        self.scores.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})

    # ---- use -----------------------------------------------------------------------------------------------------

    def draw(self, text: Tensor, noise: Tensor) -> Tensor:
        """Images (N, C, S, S) in 0..1 from the averaged generator; the ε of ``noise`` is not used: c is the mean."""
        mean, _ = self.average.condition(text)
        images = self.average(mean, torch.full_like(mean, -torch.inf), noise.to(mean.dtype))
        output: Tensor = (images.float() + 1) / 2
        return output

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences → (N, text_dim). A word that is in no training sentence is left out with a warning.

        Raises:
            ValueError: a sentence has no known word.
        """
        known = set(self.vocab)
        kept = []
        for text in texts:
            words = tokenize(text)
            strange = [word for word in words if word not in known]
            if len(strange) == len(words):
                raise ValueError(
                    f"text={text!r}: expected a sentence with at least one of the {len(known) - 2} known words"
                )
            for word in strange:
                hint = nearest(word, self.vocab, cutoff=0.6)
                warnings.warn(f"text={text!r}: drawn without {word!r}, an unknown word{hint}", stacklevel=3)
            kept.append(" ".join(word for word in words if word in known))
        ids, lengths = encode(kept, self.vocab)
        output: Tensor = self.embedding.text(ids.to(self.device), lengths)
        return output

    @torch.no_grad()
    def generate(self, text: str | Sequence[str], n: int = 1, seed: int | None = None) -> Tensor:
        """``n`` images in 0..1 for a sentence (n, C, S, S), or for each of several (len(text), n, C, S, S).

        Sample i of every sentence uses the same noise, so differences are due to the words.

        Raises:
            ValueError: ``n`` is below 1; a sentence has no known word.
        """
        at_least(1, n=n)
        texts = [text] if isinstance(text, str) or not isinstance(text, Sequence) else list(text)
        for each in texts:
            if not isinstance(each, str):
                raise TypeError(f"text of type {type(each).__name__}: expected a sentence, or a list of them")
        if not texts:
            raise ValueError("text=[]: expected at least one sentence")
        with evaluating(self):
            encoded = self.encode_text(texts)
            noise = self._noise_of_seed(n, seed).repeat(len(texts), 1)
            images = self.draw(encoded.repeat_interleave(n, 0), noise).unflatten(0, (len(texts), n))
        output: Tensor = images[0] if isinstance(text, str) else images
        return output

    @torch.no_grad()
    def interpolate(self, a: str, b: str, steps: int = 8, seed: int | None = None) -> Tensor:
        """Images (steps, C, S, S) in 0..1 on the straight line between two sentences' encodings, at one noise."""
        at_least(2, steps=steps)
        with evaluating(self):
            start, end = self.encode_text([a, b])
            share = torch.linspace(0, 1, steps, dtype=start.dtype, device=self.device)[:, None]
            return self.draw(start.lerp(end, share), self._noise_of_seed(1, seed).expand(steps, -1))

    def _noise_of_seed(self, n: int, seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        width = self.generator.noise_dim + self.generator.condition_dim
        return torch.randn(n, width, generator=generator, device=self.device)

    def predict_step(self, batch: CaptionBatch, batch_idx: int) -> dict[str, Any]:
        """The image generated for each sentence of the batch, and the attributes that the classifier sees in it."""
        images = self._images_of(batch, batch_idx)
        words = zip(batch.captions.tolist(), batch.lengths.tolist(), strict=True)
        said = {
            "row": batch.image_ids[batch.image_index],  # an image has several sentences
            "sentence": [" ".join(self.vocab[word] for word in row[:length]) for row, length in words],
        }
        if self.classifier is not None:
            seen = choices(self.classifier(images)[0]).T.tolist()
            for (name, values), of_all in zip(self.attributes.items(), seen, strict=True):
                said[f"{name}_seen"] = [values[i] for i in of_all]
        return {**said, "image": images}
