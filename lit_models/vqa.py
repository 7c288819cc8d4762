"""Visual question answering: a CNN reads the image, an LSTM the question, and their *fact embedding* gives the answer.

Antol et al., "VQA: Visual Question Answering" (ICCV 2015): the image's feature v and the LSTM's last state q
are mapped to one vector, the fact, which is followed by a softmax over a fixed list of answers.

    v = CNN(image)      q = LSTM(w_1 … w_T)      fact = F(v, q)      p(answer | image, question) = softmax(MLP(fact))

Four ways to form the fact:

    product     tanh(W v) ⊙ tanh(U q)                        Antol et al. 2015, "deeper LSTM Q + norm I"
    concat      [relu(W v); relu(U q)]                       the CNN+LSTM+MLP baseline of Santoro et al. 2017
    attention   v̂ = Σ_k α_k v_k over the image's grid,       Xu et al. 2016 and Yang et al. 2016, one glimpse
                α = softmax(a·tanh(W v_k + U q)); fact = tanh(W' v̂) ⊙ tanh(U' q)
    relation    Σ_ij g(o_i, o_j, q) over pairs of cells      Santoro et al. 2017
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchmetrics import MeanMetric

from common.checks import at_least, nearest, one_of, within
from common.distributed import global_mean
from common.facts import unknown
from common.pictures import Preprocessing, are_several
from common.vocabulary import encode, tokenize
from lit_models.networks.encoders import Norm, Pooling, grid_encoder, grid_size, pool, with_coordinates
from lit_models.parts.evaluating import evaluating
from lit_models.parts.optim import WarmupCosine, configure_optimizers
from lit_models.scores.vqa import VQAScores, score_of

if TYPE_CHECKING:
    from datamodules.parts.visual_questions import VQABatch


Fusion = Literal["product", "concat", "attention", "relation"]


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """(Q,) nats: cross-entropy of logits (Q, A) with classes (Q,), or with soft scores (Q, A).

    Ten annotators disagree, so a soft score says what an answer *would get*: several answers can be right. Each answer
    is then a separate yes/no decision (Teney et al. 2018), and the loss is their sum.
    """
    if answers.dim() == 1:
        return F.cross_entropy(logits, answers, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, answers.to(logits.dtype), reduction="none").sum(1)


class ProductFact(nn.Module):
    """fact = tanh(W v) ⊙ tanh(U q), with v the pooled image, scaled to unit length or not."""

    def __init__(
        self, image_dim: int, question_dim: int, fact_dim: int, pooling: Pooling = "max", normalize: bool = False
    ) -> None:
        super().__init__()
        self.pooling, self.normalize = pooling, normalize
        self.image = nn.Linear(image_dim, fact_dim)
        self.question = nn.Linear(question_dim, fact_dim)
        self.out_dim = fact_dim

    def forward(self, grid: Tensor, question: Tensor, image_index: Tensor, question_index: Tensor) -> Tensor:
        v = pool(grid, self.pooling)
        v = F.normalize(v, dim=1) if self.normalize else v
        return torch.tanh(self.image(v))[image_index] * torch.tanh(self.question(question))[question_index]


class ConcatFact(nn.Module):
    """fact = [relu(W v); relu(U q)], with v the pooled image."""

    def __init__(self, image_dim: int, question_dim: int, fact_dim: int, pooling: Pooling = "max") -> None:
        super().__init__()
        self.pooling = pooling
        self.image = nn.Linear(image_dim, fact_dim)
        self.question = nn.Linear(question_dim, fact_dim)
        self.out_dim = 2 * fact_dim

    def forward(self, grid: Tensor, question: Tensor, image_index: Tensor, question_index: Tensor) -> Tensor:
        v, q = torch.relu(self.image(pool(grid, self.pooling))), torch.relu(self.question(question))
        return torch.cat([v[image_index], q[question_index]], 1)


class AttentionFact(nn.Module):
    """fact = tanh(W' v̂) ⊙ tanh(U' q), where v̂ is the mean of the grid, weighted by each cell's fit to the question."""

    def __init__(self, image_dim: int, question_dim: int, fact_dim: int) -> None:
        super().__init__()
        self.image_key = nn.Linear(image_dim, fact_dim)
        self.question_key = nn.Linear(question_dim, fact_dim)
        self.score = nn.Linear(fact_dim, 1)
        self.image = nn.Linear(image_dim, fact_dim)
        self.question = nn.Linear(question_dim, fact_dim)
        self.out_dim = fact_dim

    def attend(self, grid: Tensor, question: Tensor, image_index: Tensor, question_index: Tensor) -> Tensor:
        """(Q, h·w): the share of each cell, row by row; the shares sum to 1."""
        cells = grid.flatten(2).transpose(1, 2)  # (I, h·w, C)
        keys = self.image_key(cells)[image_index] + self.question_key(question)[question_index][:, None]
        output: Tensor = self.score(torch.tanh(keys))[..., 0].softmax(1)
        return output

    def forward(self, grid: Tensor, question: Tensor, image_index: Tensor, question_index: Tensor) -> Tensor:
        share = self.attend(grid, question, image_index, question_index)
        seen = torch.einsum("qk,qck->qc", share, grid.flatten(2)[image_index])
        return torch.tanh(self.image(seen)) * torch.tanh(self.question(question))[question_index]


class RelationFact(nn.Module):
    """fact = 1/n Σ_{i ≤ j} g(o_i, o_j, q), where an object o is a cell of the grid with its two coordinates.

    The first layer of g is linear in (o_i, o_j, q), so its three parts are computed once per object and once per
    question and then added for each pair: the same function at a fraction of the cost. The paper sums over all ordered
    pairs. Here two objects meet once (i ≤ j), which halves the work, since g can learn both directions at once; and the
    sum is divided by the number n of objects, so that its scale hardly depends on n.
    """

    def __init__(self, image_dim: int, question_dim: int, fact_dim: int, layers: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(image_dim + 2, fact_dim)
        self.second = nn.Linear(image_dim + 2, fact_dim, bias=False)
        self.question = nn.Linear(question_dim, fact_dim, bias=False)
        rest: list[nn.Module] = [nn.ReLU(inplace=True)]
        for _ in range(layers - 1):
            rest += [nn.Linear(fact_dim, fact_dim), nn.ReLU(inplace=True)]
        self.rest = nn.Sequential(*rest)
        self.out_dim = fact_dim

    def forward(self, grid: Tensor, question: Tensor, image_index: Tensor, question_index: Tensor) -> Tensor:
        objects = with_coordinates(grid).flatten(2).transpose(1, 2)  # (I, n, C + 2)
        n = objects.shape[1]
        i, j = torch.triu_indices(n, n, device=objects.device)
        pairs = self.first(objects)[:, i] + self.second(objects)[:, j]  # (I, n(n + 1)/2, F)
        output: Tensor = self.rest(pairs[image_index] + self.question(question)[question_index][:, None]).sum(1) / n
        return output


Answers = list[tuple[str, float]]
"""answers to one question with their probabilities, likeliest first"""


class VQA(LightningModule):
    """CNN + LSTM → fact embedding → answer.

    Args:
        vocab: the words of questions, ``<pad>`` and ``<unk>`` first.
        answers: the answers to choose from.
        question_types: names of the kinds of questions, for the metrics.
        image_shape: (C, H, W) of an image, or of cached image features.
        encoder: ``conv``, a small CNN; a ResNet of torchvision or ``timm/<name>``; ``features`` if the data have cached
            image features.
        channels: of the small CNN's layers, each with stride 2.
        norm: of the small CNN: ``batch``, ``group`` or ``none``.
        pretrained, frozen: of a torchvision or timm encoder.
        embedding_dim, hidden_dim, lstm_layers: of the question encoder.
        fusion: how the fact embedding is formed: see the top of this file.
        fact_dim: width of the fact embedding (of g's layers, for ``relation``).
        pooling: for ``product`` and ``concat``, how the image's grid becomes one vector.
        relation_layers: for ``relation``: layers of g, each ``fact_dim`` wide.
        normalize_image: for ``product``: scale the image's feature to unit length ("norm I").
        classifier_dim: width of the classifier's hidden layer.
        dropout: on the fact embedding and in the classifier.
        blind: answer from the question alone, which learns the language prior.
        image_only: answer from the image alone.
        preprocessing: how the data make pictures of that shape: see :class:`common.pictures.Preprocessing`; by
            default whole pictures are squashed to it.
        soft_answers: whether several answers may be right, each to some degree, so that each has a probability of its
            own, which need not sum to 1.
        optimizer, scheduler: callables, as Lightning's CLI makes them.

    Raises:
        ValueError: ``blind`` and ``image_only`` at once; an unknown encoder; an argument out of range.
    """

    def __init__(
        self,
        vocab: list[str],
        answers: list[str],
        question_types: list[str],
        image_shape: Sequence[int] = (3, 64, 64),
        encoder: str = "conv",
        channels: Sequence[int] = (32, 64, 64, 128),
        norm: Norm = "batch",
        pretrained: bool = False,
        frozen: bool = False,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        lstm_layers: int = 1,
        fusion: Fusion = "concat",
        fact_dim: int = 256,
        pooling: Pooling = "max",
        relation_layers: int = 4,
        normalize_image: bool = False,
        classifier_dim: int = 256,
        dropout: float = 0.0,
        blind: bool = False,
        image_only: bool = False,
        preprocessing: dict[str, Any] | None = None,
        soft_answers: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=3e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: WarmupCosine(optimizer, warmup=0.1),
    ) -> None:
        super().__init__()
        if blind and image_only:
            raise ValueError("blind=true with image_only=true: expected at most one, or the model sees nothing at all")
        one_of(Norm, norm=norm)
        one_of(Fusion, fusion=fusion)
        one_of(Pooling, pooling=pooling)
        at_least(1, embedding_dim=embedding_dim, hidden_dim=hidden_dim, lstm_layers=lstm_layers, fact_dim=fact_dim)
        at_least(1, relation_layers=relation_layers, classifier_dim=classifier_dim)
        within("[0, 1)", dropout=dropout)
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"], logger=False)
        self.vocab, self.answers, self.question_types = list(vocab), list(answers), list(question_types)
        self.image_shape = list(image_shape)
        self.preprocess = Preprocessing(self.image_shape, **preprocessing or {"fit": "squash"})
        self.optimizer, self.scheduler = optimizer, scheduler
        self.blind, self.image_only, self.soft_answers = blind, image_only, soft_answers

        self.embedding = nn.Embedding(len(vocab), embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, lstm_layers, batch_first=True)
        self.encoder: nn.Module | None = None
        self.fact: nn.Module | None = None
        fact_out = hidden_dim
        if not blind:
            self.encoder, image_dim = grid_encoder(encoder, self.image_shape, channels, norm, pretrained, frozen)
            if pooling == "flatten" and fusion in ("product", "concat"):
                image_dim = grid_size(self.encoder, self.image_shape)
            fact = make_fact(fusion, image_dim, hidden_dim, fact_dim, pooling, relation_layers, normalize_image)
            self.fact, fact_out = fact, fact.out_dim
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(fact_out, classifier_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(classifier_dim, len(answers)),
        )
        self.loss = MeanMetric()  # over the questions of all ranks, however many each has
        self.scores = VQAScores(question_types, len(answers))
        self.confusions: Tensor | None = None  # (K, A, A) of the last evaluation, for the figures

    def encode_question(self, questions: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (D, T) and lengths (D,) → the LSTM's state after each question's last word (D, hidden)."""
        if self.image_only:
            return self.embedding.weight.new_zeros(len(questions), self.lstm.hidden_size)
        packed = pack_padded_sequence(self.embedding(questions), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        output: Tensor = hidden[-1]
        return output

    def forward(self, batch: VQABatch) -> Tensor:
        """Logits (Q, A) of every pair of an image and a question."""
        question = self.encode_question(batch.questions, batch.lengths)
        if self.encoder is None or self.fact is None:  # blind
            output: Tensor = self.classifier(question)[batch.question_index]
            return output
        grid = self.encoder(batch.images)
        output = self.classifier(self.fact(grid, question, batch.image_index, batch.question_index))
        return output

    def training_step(self, batch: VQABatch, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch)
        accuracy = score_of(logits.detach().argmax(1), batch.answers).mean()
        return {"loss": global_mean(answer_loss(logits, batch.answers)), "accuracy": accuracy}

    def validation_step(self, batch: VQABatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: VQABatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: VQABatch, stage: str) -> None:
        logits = self(batch)
        self.loss.update(answer_loss(logits, batch.answers))
        self.log(f"{stage}/loss", self.loss)
        self.scores.update(
            logits.argmax(1),
            batch.answers,
            batch.question_types,
            batch.question_ids,
            batch.prior_answers,
            batch.unseen,
        )

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        # Every rank computes the same figures from what all have gathered.
        scores = self.scores.compute()
        self.confusions = self.scores.confusions()
        self.scores.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items() if name != "accuracy"})
        self.log(f"{stage}/accuracy", scores["accuracy"], prog_bar=True)

    def predict_step(self, batch: VQABatch, batch_idx: int) -> dict[str, Any]:
        """The answer to each question of the batch, and its probability."""
        logits = self(batch).float()
        # With soft scores, each answer is a decision of its own: see `answer_loss`.
        best = (logits.sigmoid() if batch.answers.dim() == 2 else logits.softmax(1)).max(1)
        return {"answer": [self.answers[i] for i in best.indices.tolist()], "probability": best.values}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.scheduler)

    @torch.no_grad()
    def answer(self, image: object, question: str | Sequence[str], top: int = 3) -> Answers | list[Answers]:
        """The ``top`` answers to a question about an image, with their probabilities, likeliest first.

        Args:
            image: as :class:`common.pictures.Preprocessing` takes it.
            question: plain text; words that training never showed count as ``<unk>``, with a warning that names them.

        Returns:
            (answer, probability) pairs; for several images, questions, or both in pairs, a list of such lists.

        Raises:
            TypeError, ValueError: the input is not an image, a question has no word, ``top`` is not positive, or there
                are not as many images as questions.
        """
        if not isinstance(top, int):
            raise TypeError(f"top={top!r}: expected a whole number")
        at_least(1, top=top)
        if isinstance(self.encoder, nn.Identity):
            raise ValueError("encoder='features': expected a model that reads images, not their cached features")
        questions = [question] if isinstance(question, str) or not isinstance(question, Sequence) else list(question)
        if not questions:
            raise ValueError("question=[]: expected at least one")
        for each in questions:
            if not isinstance(each, str):
                raise TypeError(f"question of type {type(each).__name__}: expected text")
        tokens, lengths = encode(questions, self.vocab)
        for each in questions:
            for word in unknown(tokenize(each), self.vocab):
                hint = nearest(word, self.vocab, cutoff=0.6)
                said = f"question={each!r}: {word!r} is in no training question, read as <unk>{hint}"
                warnings.warn(said, stacklevel=3)
        images = self.preprocess(image, self)
        if len(images) != len(questions) and 1 not in (len(images), len(questions)):
            raise ValueError(f"{len(images)} images and {len(questions)} questions: expected as many of both, or one")
        count = max(len(images), len(questions))
        image_index, question_index = (torch.arange(count, device=self.device) % len(x) for x in (images, questions))
        with evaluating(self):
            state = self.encode_question(tokens.to(self.device), lengths)
            if self.encoder is None or self.fact is None:
                logits = self.classifier(state)[question_index]
            else:
                logits = self.classifier(self.fact(self.encoder(images), state, image_index, question_index))
        probabilities = logits.float().sigmoid() if self.soft_answers else logits.float().softmax(1)
        best = probabilities.topk(min(top, len(self.answers)))
        found = [
            [(self.answers[i], p) for p, i in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return found if are_several(image) or not isinstance(question, str) else found[0]


def make_fact(
    fusion: str,
    image_dim: int,
    question_dim: int,
    fact_dim: int,
    pooling: Pooling,
    relation_layers: int,
    normalize_image: bool,
) -> ProductFact | ConcatFact | AttentionFact | RelationFact:
    """The module that forms the fact embedding; its ``out_dim`` is the embedding's width."""
    if fusion == "product":
        return ProductFact(image_dim, question_dim, fact_dim, pooling, normalize_image)
    if fusion == "concat":
        return ConcatFact(image_dim, question_dim, fact_dim, pooling)
    if fusion == "attention":
        return AttentionFact(image_dim, question_dim, fact_dim)
    return RelationFact(image_dim, question_dim, fact_dim, relation_layers)
