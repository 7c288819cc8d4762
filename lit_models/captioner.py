"""Image captioning: a CNN reads the image, an LSTM writes a sentence about it.

*Show and Tell* (Vinyals et al., CVPR 2015) lets the LSTM read the image once, as if it were a word before the first:

    x_{-1} = W_i CNN(I)        x_t = W_e S_t        p_{t+1} = softmax(W LSTM(x_t))

*Show, Attend and Tell* (Xu et al., ICML 2015, with soft attention) lets it look at the image again for each word. With
annotations a_i, one for each of the L cells of the CNN's grid:

    e_ti = f_att(a_i, h_{t-1})        α_t = softmax(e_t)        ẑ_t = β_t Σ_i α_ti a_i            (4), (5), (13)
    h_t = LSTM([E y_{t-1}; ẑ_t], h_{t-1})        β_t = σ(f_β(h_{t-1}))                            (1), section 4.2.1
    p(y_t) = softmax(L_o(E y_{t-1} + L_h h_t + L_z ẑ_t))                                          (7)
    h_0 = f_h(1/L Σ_i a_i)        c_0 = f_c(1/L Σ_i a_i)                                          section 3.1.2

Training minimizes −Σ_t log p(y_t | y_1 … y_{t-1}, I) over the true words, to which attention adds the doubly stochastic
regularizer λ Σ_i (1 − Σ_t α_ti)², eq. (14): over a whole sentence, each cell should get equal attention.

A sentence ends with a special token, and also starts from it. That token is ``<pad>``, which follows the end of each
sentence anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.checks import at_least, one_of, within
from common.distributed import global_mean, world_size
from common.pictures import Preprocessing, are_several
from common.randomness import uniform_of_samples
from common.vocabulary import UNK, as_sentence
from lit_models.networks.caption_decoders import END, Heard, ShowAndTell, ShowAttendAndTell, repeated, rows, until_end
from lit_models.networks.encoders import Norm, Pooling, grid_encoder, grid_size, pool, with_coordinates
from lit_models.parts.beam_search import State, beam_search
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.parts.sampling import check_sampling, cut, inverse_cdf
from lit_models.parts.scheduled_sampling import Schedule, forcing_probability
from lit_models.scores.captions import COMPARED, CaptionScores, fingerprints, judge, novelty

if TYPE_CHECKING:
    from datamodules.captions import CaptionBatch
    from datamodules.parts.image_sets import ImageBatch

Method = Literal["greedy", "beam", "nucleus", "sample"]


def shifted(captions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's inputs and targets, (N, T + 1) each, and which steps exist, (N, T + 1) bool.

    A caption of n words takes n + 1 steps: it reads :data:`END` and the words, and writes the words and :data:`END`.
    """
    inside = torch.arange(captions.shape[1] + 1, device=captions.device) <= lengths[:, None]
    return F.pad(captions, (1, 0), value=END), F.pad(captions, (0, 1), value=END), inside


def doubly_stochastic(attention: Tensor, inside: Tensor) -> Tensor:
    """(N,): the mean over cells of (1 − Σ_t α_ti)², for attention (N, T, L) in the existing steps (N, T).

    Xu et al. 2015, eq. (14), have the sum over the cells; the mean lets λ mean the same for every size of the grid.
    """
    return (1 - (attention * inside[:, :, None]).sum(1)).square().mean(1)


class Captioner(LightningModule):
    """CNN → LSTM → sentence.

    Args:
        vocab: the words of captions, ``<pad>`` and ``<unk>`` first.
        longest: number of words at which a caption is cut off: that of the longest training caption.
        image_shape: (C, H, W) of an image, or of cached image features.
        attributes: the attributes of the objects in the images with their values, if there is a ground truth for
            checking captions.
        encoder: ``conv``, a small CNN; a ResNet of torchvision or ``timm/<name>``; ``features`` if the data have cached
            image features.
        channels, norm: of the small CNN, each layer of stride 2; ``batch``, ``group`` or ``none``.
        pretrained, frozen: of a torchvision or timm encoder.
        annotation_dim: apply a 3×3 convolution with ReLU and this many channels to the grid, and add the coordinates of
            each cell, for images in which places matter; ``null`` uses the grid unchanged, as the papers do.
        attention: look at the image for each word (Xu et al.), or only once at the start (Vinyals et al.).
        pooling: without attention, how the grid becomes one vector.
        embedding_dim, hidden_dim: of words and of the LSTM.
        attention_dim: width of the network that scores cells.
        word_query: give the attention the last word, y_{t-1}, too. The paper's f_att(a_i, h_{t-1}) does not have it,
            since the state h_{t-1} predates the choice of that word. If several things can be described, "a yellow" may
            then continue with the shape of another thing.
        attention_weight: λ of the doubly stochastic regularizer.
        dropout: on word embeddings and on the features that predict the next word.
        label_smoothing: share of a target's probability that is spread over all words.
        schedule, schedule_steps, teacher_forcing: the probability that the decoder reads the true last word in training
            (scheduled sampling): see :func:`~lit_models.parts.scheduled_sampling.forcing_probability`;
            ``teacher_forcing`` is its floor.
        beam_size, length_penalty: of beam search, see :func:`~lit_models.parts.beam_search.beam_search`.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`; by
            default whole pictures are squashed to it.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: an unknown encoder; an argument out of range.
    """

    adjustable: ClassVar = ("beam_size", "length_penalty")
    """arguments that may differ from a checkpoint's"""

    def __init__(
        self,
        vocab: list[str],
        longest: int,
        image_shape: Sequence[int] = (3, 64, 64),
        attributes: dict[str, list[str]] | None = None,
        encoder: str = "conv",
        channels: Sequence[int] = (32, 64, 64),
        norm: Norm = "batch",
        pretrained: bool = False,
        frozen: bool = False,
        annotation_dim: int | None = None,
        attention: bool = True,
        pooling: Pooling = "mean",
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        attention_dim: int = 64,
        word_query: bool = False,
        attention_weight: float = 0.0,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        schedule: Schedule = "constant",
        schedule_steps: float = 1000.0,
        teacher_forcing: float = 1.0,
        beam_size: int = 5,
        length_penalty: float = 1.0,
        preprocessing: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer, warmup=0.05),
    ) -> None:
        super().__init__()
        one_of(Norm, norm=norm)
        one_of(Pooling, pooling=pooling)
        one_of(Schedule, schedule=schedule)
        at_least(1, longest=longest, embedding_dim=embedding_dim, hidden_dim=hidden_dim, attention_dim=attention_dim)
        at_least(1, annotation_dim=annotation_dim, beam_size=beam_size, schedule_steps=schedule_steps)
        at_least(0, attention_weight=attention_weight, length_penalty=length_penalty)
        within("[0, 1)", dropout=dropout, label_smoothing=label_smoothing)
        within("[0, 1]", teacher_forcing=teacher_forcing)
        if attention_weight and not attention:
            raise ValueError(f"attention_weight={attention_weight} with attention=false: expected 0")
        if word_query and not attention:
            raise ValueError("word_query=true with attention=false: expected false")
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"], logger=False)
        self.vocab, self.longest, self.image_shape = list(vocab), longest, list(image_shape)
        self.preprocess = Preprocessing(self.image_shape, **preprocessing or {"fit": "squash"})
        self.attributes = dict(attributes or {})
        self.pooling, self.attention_weight, self.label_smoothing = pooling, attention_weight, label_smoothing
        self.schedule, self.schedule_steps, self.teacher_forcing = schedule, schedule_steps, teacher_forcing
        self.beam_size, self.length_penalty = beam_size, length_penalty
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # of seed_everything

        self.encoder, image_dim = grid_encoder(encoder, self.image_shape, channels, norm, pretrained, frozen)
        self.annotate: nn.Module | None = None
        cells = 0 if attention or pooling != "flatten" else grid_size(self.encoder, self.image_shape) // image_dim
        if annotation_dim is not None:
            self.annotate = nn.Sequential(nn.Conv2d(image_dim, annotation_dim, 3, 1, 1), nn.ReLU(inplace=True))
            image_dim = annotation_dim + 2
        self.decoder: ShowAndTell | ShowAttendAndTell
        if attention:
            self.decoder = ShowAttendAndTell(
                image_dim, len(vocab), embedding_dim, hidden_dim, attention_dim, word_query, dropout
            )
        else:
            self.decoder = ShowAndTell(image_dim * max(1, cells), len(vocab), embedding_dim, hidden_dim, dropout)

        self.nats = MeanMetric()  # over the tokens of all ranks
        self.scores = CaptionScores(vocab)
        self.compared: Any = nn.ModuleDict()  # in the test: scores of each other way to decode
        self.taught: Tensor | None = None  # fingerprints of the training captions, to know which caption is novel
        # Of the last evaluation, for its figures:
        self.by_length: dict[int, tuple[int, float, float]] = {}  # how good captions of each length were
        self.by_method: dict[str, dict[str, float]] = {}  # and, of a test, how each way to decode did

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> dict[str, Tensor]:
        inputs, targets, inside = shifted(batch.captions, batch.lengths)
        state, memory = (rows(part, batch.image_index) for part in self.read(batch.images))
        forcing = forcing_probability(
            self.trainer.global_step, self.schedule, self.schedule_steps, self.teacher_forcing
        )
        if forcing == 1:
            heard = self.decoder(inputs, state, memory, batch.lengths + 1)
        else:
            heard = self.scheduled(inputs, state, memory, forcing, self._draws(batch, batch_idx))
        told = inside & self.is_known(targets)
        logits = self.decoder.to_words(heard.features[told])
        nats = F.cross_entropy(logits, targets[told], reduction="none", label_smoothing=self.label_smoothing)
        result = {"loss": global_mean(nats)}
        if self.attention_weight:
            unevenness = global_mean(doubly_stochastic(heard.attention, inside))
            result = {"loss": result["loss"] + self.attention_weight * unevenness, "unevenness": unevenness.detach()}
        return result

    # ---- the model -----------------------------------------------------------------------------------------------

    def grid(self, images: Tensor) -> Tensor:
        """Images (I, C, H, W) in 0..1, or features → (I, D, h, w)."""
        grid = self.encoder(images)
        return grid if self.annotate is None else with_coordinates(self.annotate(grid))

    def read(self, images: Tensor) -> tuple[State, State]:
        """The decoder's state before the first word for each image, and what it can look at; I rows each."""
        grid = self.grid(images)
        if isinstance(self.decoder, ShowAndTell):
            return self.decoder.read(pool(grid, self.pooling))
        return self.decoder.read(grid.flatten(2).transpose(1, 2))

    def forward(self, batch: CaptionBatch) -> Tensor:
        """Logits (N, T + 1, V) of each caption's words and its end, each given the true words before it."""
        inputs, _, _ = shifted(batch.captions, batch.lengths)
        state, memory = (rows(part, batch.image_index) for part in self.read(batch.images))
        output: Tensor = self.decoder.to_words(self.decoder(inputs, state, memory, batch.lengths + 1).features)
        return output

    def is_known(self, words: Tensor) -> Tensor:
        """Which token ids are words: ``<unk>`` stands for unknown words, and is neither taught nor generated."""
        return words != self.vocab.index(UNK)

    def sayable(self, logits: Tensor) -> Tensor:
        """Logits (…, V) without ``<unk>``."""
        words = torch.arange(len(self.vocab), device=logits.device)
        return logits.masked_fill(~self.is_known(words), -torch.inf)

    def scheduled(self, inputs: Tensor, state: State, memory: State, probability: float, draws: Tensor) -> Heard:
        """The decoder's output for sentences (N, T) under scheduled sampling (Bengio et al. 2015).

        Each step reads the true last word with ``probability``, else a word drawn from the model's own distribution.

        Args:
            draws: (N, 2, at least T) in 0..1: for the coins, and for drawing words.
        """
        word, steps = inputs[:, :1], []
        for t in range(inputs.shape[1]):
            steps.append(self.decoder(word, state, memory))
            state = steps[-1].state
            if t + 1 < inputs.shape[1]:
                # As in the paper, no gradient goes through what was drawn and read again.
                logits = self.sayable(self.decoder.to_words(steps[-1].features[:, 0].detach()))
                own = inverse_cdf(logits, draws[:, 1, t])
                word = torch.where(draws[:, 0, t] < probability, inputs[:, t + 1], own)[:, None]
        attention = [step.attention for step in steps if step.attention is not None]
        return Heard(
            torch.cat([step.features for step in steps], 1), torch.cat(attention, 1) if attention else None, state
        )

    def _draws(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """(N, 2, longest + 1) in 0..1, a function of each caption's image and its place among that image's captions."""
        counts = torch.bincount(batch.image_index, minlength=len(batch.images))
        most = counts.max()
        if world_size() > 1:  # all ranks draw the same table
            dist.all_reduce(most, dist.ReduceOp.MAX)
        place = (
            torch.arange(len(batch.image_index), device=self.device) - (counts.cumsum(0) - counts)[batch.image_index]
        )
        steps, key = self.longest + 1, (self.seed, "scheduled", self.current_epoch, batch_idx)
        draws = uniform_of_samples(len(batch.images), int(most) * 2 * steps, *key, device=self.device)
        return draws.view(len(batch.images), int(most), 2, steps)[batch.image_index, place]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Records the training captions, unless a resumed run already has them."""
        tables = getattr(getattr(self.trainer, "datamodule", None), "tables", {})
        if self.taught is None and "train" in tables:
            self.taught = fingerprints(tables["train"].captions).unique()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.taught is not None:
            checkpoint["taught_captions"] = self.taught.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.taught = checkpoint.get("taught_captions")

    def validation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def on_test_start(self) -> None:
        self.compared = nn.ModuleDict(
            {name: CaptionScores(self.vocab) for name in ("beam", "nucleus", "sample", "people")}
        )
        self.compared.to(self.device)

    def test_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        references = self._evaluate(batch, "test")
        for method in ("beam", "nucleus", "sample"):
            key = (self.seed, "test", method, batch_idx)
            draws = uniform_of_samples(len(batch.images), self.longest, *key, device=self.device)[:, None]
            tokens = self.decode(
                batch.images, method, beam_size=self.beam_size, length_penalty=self.length_penalty, draws=draws
            )
            self._score(self.compared[method], tokens[:, 0].tolist(), references, batch)
        # What a person is worth: the first caption of each image against the others of it, where it has some.
        several = [image for image, sentences in enumerate(references) if len(sentences) > 1]
        first = [list(references[image][0]) for image in several]
        others = [references[image][1:] for image in several]
        self._score(self.compared["people"], first, others, batch, torch.tensor(several, dtype=torch.long))

    def _evaluate(self, batch: CaptionBatch, stage: str) -> list[list[list[int]]]:
        """Adds a batch to the scores; the references of each image."""
        _, targets, inside = shifted(batch.captions, batch.lengths)
        told = inside & self.is_known(targets)
        self.nats.update(F.cross_entropy(self(batch)[told], targets[told], reduction="none"))
        self.log(f"{stage}/nats_per_token", self.nats)
        references: list[list[list[int]]] = [[] for _ in batch.images]
        lengths, owners = batch.lengths.tolist(), batch.image_index.tolist()
        for row, length, image in zip(batch.references.tolist(), lengths, owners, strict=True):
            references[image].append(row[:length])
        self._score(self.scores, self.decode(batch.images)[:, 0].tolist(), references, batch)
        return references

    def _score(
        self,
        scores: CaptionScores,
        tokens: list[list[int]],
        references: list[list[list[int]]],
        batch: CaptionBatch,
        images: Tensor | slice = slice(None),
    ) -> None:
        """Adds one caption, up to its end, of each image of the batch, or of some, to the scores."""
        said = [until_end(row) for row in tokens]
        judgments = judge(batch.objects[images], self.attributes, [self.to_text(words) for words in said])
        scores.update(said, references, judgments, novelty(said, self.taught), batch.unseen[images])

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        found = self._log_scores("test")
        self.by_method = {"greedy": found}
        for name, scores in self.compared.items():  # on every rank, whatever it has seen: they gather
            if values := scores.compute():
                self.by_method[name] = {key: float(value) for key, value in values.items()}
        self.compared = nn.ModuleDict()
        for name, values in self.by_method.items():
            self.log_dict({f"test/{name}/{key}": values[key] for key in COMPARED if key in values})

    def _log_scores(self, stage: str) -> dict[str, float]:
        # Every rank computes the same figures from what all have gathered.
        scores = self.scores.compute()
        self.by_length = self.scores.by_length
        self.scores.reset()
        main = "truthful" if "truthful" in scores else "cider_d"
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items() if name != main})
        self.log(f"{stage}/{main}", scores[main], prog_bar=True)
        return {name: float(value) for name, value in scores.items()}

    # ---- use -----------------------------------------------------------------------------------------------------

    def decode(
        self,
        images: Tensor,
        method: Method = "greedy",
        n: int = 1,
        beam_size: int = 5,
        temperature: float = 1.0,
        top_p: float = 0.9,
        length_penalty: float = 1.0,
        draws: Tensor | None = None,
    ) -> Tensor:
        """Captions for a batch of images: token ids (I, n, T), :data:`END` after the last word; T ≤ ``longest``.

        Args:
            method: ``greedy`` takes the likeliest word each time; ``beam`` searches for the likeliest sentence; the
                others draw, ``nucleus`` from the likeliest words that together reach ``top_p``.
            draws: (I, n, longest) in 0..1, for drawing words.
        """
        state, memory = self.read(images)
        memory = repeated(memory, beam_size if method == "beam" else n)

        def step(words: Tensor, state: State) -> tuple[Tensor, State]:
            heard = self.decoder(words[:, None], state, memory)
            return self.sayable(self.decoder.to_words(heard.features[:, 0])), heard.state

        def scored(words: Tensor, state: State) -> tuple[Tensor, State]:
            logits, state = step(words, state)
            return logits.log_softmax(1), state

        if method == "beam":
            return beam_search(scored, state, END, beam_size, self.longest, length_penalty, n).tokens
        state = repeated(state, n)
        word = torch.full((len(images) * n,), END, device=self.device)
        ended, written = torch.zeros_like(word, dtype=torch.bool), []
        for t in range(self.longest):
            logits, state = step(word, state)
            if method == "greedy" or temperature == 0:
                word = logits.argmax(1)
            else:
                assert draws is not None
                logits = cut(logits, temperature, top_p=top_p if method == "nucleus" else None)
                word = inverse_cdf(logits, draws[:, :, t].flatten())
            word = word.masked_fill(ended, END)
            written.append(word)
            ended = ended | (word == END)
            if bool(ended.all()):
                break
        output: Tensor = torch.stack(written, 1).unflatten(0, (len(images), n))
        return output

    def to_text(self, tokens: Sequence[int]) -> str:
        """The words before the first :data:`END` as a sentence; those of references may be outside the vocabulary."""
        return as_sentence(self.vocab[word] if word < len(self.vocab) else UNK for word in until_end(tokens))

    @torch.no_grad()
    def caption(
        self,
        images: Any,
        n: int = 1,
        method: Method = "greedy",
        beam_size: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        length_penalty: float | None = None,
        seed: int | None = None,
    ) -> list[list[str]]:
        """``n`` captions for each image; for ``beam``, best first.

        Args:
            images: one or several, as :class:`common.pictures.Preprocessing` takes them.
            method: ``greedy``, ``beam``, ``nucleus`` or ``sample``: see :meth:`decode`.
            beam_size, length_penalty: of ``beam``, by default the model's own.
            temperature: of ``nucleus`` and ``sample``: below 1 safer, above 1 wilder.
            seed: the same seed draws the same captions on the same device.

        Raises:
            TypeError, ValueError: something is not an image; an argument is out of range.
        """
        beam_size = self.beam_size if beam_size is None else beam_size
        length_penalty = self.length_penalty if length_penalty is None else length_penalty
        one_of(Method, method=method)
        at_least(1, n=n)
        if method == "greedy" and n > 1:
            raise ValueError(f"n={n} with method='greedy': expected 1, because only one word is the likeliest")
        check_sampling(temperature, None, top_p)
        if isinstance(self.encoder, nn.Identity):
            raise ValueError("encoder='features': expected a model that reads images, not their cached features")
        if are_several(images) and not len(images):
            return []
        batch = self.preprocess(images, self)
        draws = None
        if method in ("nucleus", "sample"):
            generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
            draws = torch.rand(len(batch), n, self.longest, generator=generator, device=self.device)
        with evaluating(self):
            tokens = self.decode(batch, method, n, beam_size, temperature, top_p, length_penalty, draws)
        return [[self.to_text(row) for row in rows_of_image] for rows_of_image in tokens.tolist()]

    def predict_step(self, batch: CaptionBatch | ImageBatch, batch_idx: int) -> dict[str, list[str]]:
        """The greedy caption of each image of the batch."""
        return {"caption": [self.to_text(tokens) for tokens in self.decode(batch.images)[:, 0].tolist()]}
