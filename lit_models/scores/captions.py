"""The quality of captions and their known weaknesses: one metric, exact over any number of ranks.

Captions and references alike are tokenized by :func:`common.vocabulary.tokenize`: lower-case words and punctuation
marks. Other evaluations leave punctuation out (PTB tokenizer), and CIDEr's paper stems words, which is not done here.
So results are comparable within this project, and close to, but not equal to, those of papers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from torchmetrics.functional.text import bleu_score
from torchmetrics.utilities import dim_zero_cat

from datamodules.parts.scenes import check

Words = tuple[int, ...]
"""a sentence as the ids of its words"""

COMPARED = (
    *("bleu_4", "cider_d", "truthful", "coverage", "distinct_1", "distinct_2", "self_bleu"),
    *("unique_share", "novel_share", "vocabulary_coverage", "length"),
)
"""the test's metrics for each decoding method, beside those of greedy decoding"""


def n_grams(sentence: Sequence[int], n: int) -> Counter[Words]:
    """The count of each sequence of ``n`` words."""
    return Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))


def cider_d(said: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of one caption per image (Vedantam, Zitnick & Parikh 2015, section 6), from 0 to 10, without stemming.

    With g_n(s) the counts of the n-grams of s, each times the log of the number of images over the number of images
    that have it in any reference, and l(s) the number of words,

        CIDEr-D_n(c, S) = 10/|S| Σ_j e^(−(l(c) − l(s_j))² / 2σ²) min(g_n(c), g_n(s_j)) · g_n(s_j) / ‖g_n(c)‖ ‖g_n(s_j)‖

    averaged over n = 1 … 4. The document frequencies are those of the given references, so a score depends on what else
    is evaluated; for a single image it is 0.
    """
    images = math.log(len(references)) if references else 0.0
    totals = [0.0] * len(said)
    for n in range(1, 5):
        counts = [[n_grams(sentence, n) for sentence in sentences] for sentences in references]
        documents = Counter(gram for of_image in counts for gram in set().union(*of_image))

        def weighted(count: Counter[Words], documents: Counter[Words] = documents) -> tuple[dict[Words, float], float]:
            vector = {g: c * (images - math.log(max(1, documents[g]))) for g, c in count.items()}
            return vector, math.sqrt(sum(value * value for value in vector.values()))

        for i, (sentence, of_image) in enumerate(zip(said, counts, strict=True)):
            own, own_norm = weighted(n_grams(sentence, n))
            for reference, count in zip(references[i], of_image, strict=True):
                other, norm = weighted(count)
                if own_norm and norm:
                    shared = sum(min(value, other[g]) * other[g] for g, value in own.items() if g in other)
                    gap = len(sentence) - len(reference)
                    likeness = shared / (own_norm * norm) * math.exp(-(gap**2) / (2 * sigma**2))
                    totals[i] += 10 * likeness / len(of_image) / 4
    return totals


def bleu(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 of one caption per image over all of them (Papineni et al. 2002), without smoothing.

    The length of a caption is held against its reference of the nearest length, and of two equally near ones against
    the shorter, as in coco-caption: torchmetrics takes the first of them, so they are sorted.
    """
    lines = [" ".join(map(str, sentence)) for sentence in said]
    others = [[" ".join(map(str, sentence)) for sentence in sorted(sentences, key=len)] for sentences in references]
    return {f"bleu_{n}": float(bleu_score(lines, others, n_gram=n)) for n in (1, 2, 3, 4)}


def distinct(said: Sequence[Words], n: int) -> float:
    """Number of different n-grams over number of all n-grams of the captions (Li et al. 2016); NaN without any."""
    counts: Counter[Words] = Counter()
    for sentence in said:
        counts.update(n_grams(sentence, n))
    return len(counts) / counts.total() if counts else math.nan


def self_bleu(said: Sequence[Words]) -> float:
    """BLEU-4 of each caption against all the others (Zhu et al. 2018), counted over all of them; 1: all are equal.

    There is no brevity penalty, since among so many references one nearly always has the same length. To clip an
    n-gram's count at its largest among the *other* captions, its two largest counts are enough. NaN without n-grams.
    """
    log_precision = 0.0
    for n in range(1, 5):
        counts = [n_grams(sentence, n) for sentence in said]
        largest: Counter[Words] = Counter()
        second: Counter[Words] = Counter()
        for count in counts:
            for gram, c in count.items():
                if c > largest[gram]:
                    largest[gram], second[gram] = c, largest[gram]
                elif c > second[gram]:
                    second[gram] = c
        matched = total = 0
        for count in counts:
            for gram, c in count.items():
                # Who has the largest count is held against the second, which is as large where another has it too.
                matched += min(c, second[gram] if c == largest[gram] else largest[gram])
                total += c
        if not total:
            return math.nan
        if not matched:
            return 0.0
        log_precision += math.log(matched / total) / 4
    return math.exp(log_precision)


def fingerprints(tokens: Tensor) -> Tensor:
    """(N,) int64: a hash of each row of token ids (N, T), on which padding with 0 has no effect."""
    factor = 6364136223846793005  # odd, as in Knuth's generator; arithmetic is modulo 2⁶⁴
    powers = torch.full((tokens.shape[1],), factor, dtype=torch.long, device=tokens.device).cumprod(0)
    return (tokens * powers).sum(1)


def novelty(said: Sequence[Sequence[int]], taught: Tensor | None) -> Tensor:
    """(I,) for :class:`CaptionScores`: whether each caption is new.

    1 if it is not among those with the fingerprints ``taught``, 0 if it is, −1 if these are unknown.
    """
    if taught is None or not said:
        return torch.full((len(said),), -1)
    padded = pad_sequence([torch.tensor([*words, 0]) for words in said], batch_first=True)
    return 1 - torch.isin(fingerprints(padded), taught.cpu()).long()


def judge(objects: Tensor, attributes: dict[str, list[str]], sentences: Sequence[str]) -> Tensor:
    """(I, 5): how much a sentence about each image states and how much of it is true, for :class:`CaptionScores`.

    Args:
        objects: (I, K, A + 2) as in ``CaptionBatch``; without any, K = 0, the result is all −1.
        attributes: the meaning of the first A of these columns.
    """
    if objects.shape[1] == 0:
        return torch.full((len(sentences), 5), -1)
    scenes = zip(objects.cpu(), sentences, strict=True)
    found = [check(scene, sentence, attributes) for scene, sentence in scenes]
    return torch.tensor([[j.stated, j.true, j.covered, j.coverable, int(j.parsed)] for j in found]).view(-1, 5)


class CaptionScores(Metric):
    """Gathers one caption per image with its references and computes all metrics at the end of an evaluation.

    Words of references that the vocabulary lacks count as words, each with an id of its own from the vocabulary's size
    on: as ``<unk>`` they would all be one word, which is frequent.

    ``compute`` returns nothing if no caption was added on any rank, and otherwise

    - ``bleu_1`` … ``bleu_4``, ``cider_d``, and ``exact_match``, the share that equals one of its references;
    - repetitiveness and variation: ``distinct_1``, ``distinct_2``, ``self_bleu``, ``unique_share`` (different captions
      over all captions), ``vocabulary_coverage`` (share of the references' words that are ever used), ``length`` (mean
      number of words) and, if training captions are known, ``novel_share``, the share that equals none of them;
    - local structure: ``cider_d_short`` and ``cider_d_long``, for captions up to the median length and above;
    - if there is a ground truth: ``truthful``, the share of captions that state something and nothing untrue;
      ``facts_true``, the share of stated facts that are true; ``coverage``, the share of the image's facts that are
      stated; ``parsed``, the share that can be parsed; ``truthful_short`` and ``truthful_long``;
    - if some images are marked unseen: ``truthful_seen``, ``truthful_unseen``, ``gap_seen_unseen``, the
      ``harmonic_mean`` of the first two, and ``coverage_seen``, ``coverage_unseen``.

    Afterwards ``by_length`` has, for each number of words, the number of captions, their mean CIDEr-D, and the share
    that is truthful (NaN without a ground truth).

    Args:
        vocab: the words that token ids refer to.
    """

    full_state_update = False
    said: list[Tensor]
    references: list[Tensor]
    rows: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, vocab: Sequence[str]) -> None:
        super().__init__()
        self.vocab = list(vocab)
        self.by_length: dict[int, tuple[int, float, float]] = {}
        # All words one behind the other, as ranks differ in how many there are; lengths say where sentences end.
        for name in ("said", "references", "rows", "lengths"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        said: Sequence[Sequence[int]],
        references: Sequence[Sequence[Sequence[int]]],
        judgments: Tensor,
        novel: Tensor,
        unseen: Tensor,
    ) -> None:
        """One caption of each of I images. On several ranks all call it equally often, if need be for no image.

        Args:
            said: the ids of its words.
            references: one or more captions for each image.
            judgments: (I, 5) the number of stated facts and of those that are true, of the image's facts that are
                stated and of all of them, and whether it was parsed; all −1 without a ground truth.
            novel: (I,) 1 if it is not a training caption, 0 if it is one, −1 if they are unknown.
            unseen: (I,) bool.
        """
        device = self.device
        counts = torch.tensor([len(sentence) for sentence in said], device=device)
        of_image = torch.tensor([len(sentences) for sentences in references], device=device)
        columns = [counts, of_image, novel.to(device), unseen.to(device).long(), *judgments.to(device).unbind(1)]
        columns = [column.long() for column in columns]
        flat = [word for sentence in said for word in sentence]
        others = [sentence for sentences in references for sentence in sentences]
        self.said.append(torch.tensor(flat, dtype=torch.long, device=device))
        self.references.append(
            torch.tensor([word for sentence in others for word in sentence], dtype=torch.long, device=device)
        )
        self.lengths.append(torch.tensor([len(sentence) for sentence in others], dtype=torch.long, device=device))
        self.rows.append(torch.stack(columns, 1))

    def sentences(self) -> tuple[list[Words], list[list[Words]], Tensor]:
        """The caption, its references, and the other columns of each image (I, 7), as passed to ``update``."""
        rows = dim_zero_cat(self.rows)
        lengths, of_image, *_ = rows.unbind(1)
        said = split(dim_zero_cat(self.said), lengths)
        others = split(dim_zero_cat(self.references), dim_zero_cat(self.lengths))
        ends = of_image.cumsum(0).tolist()
        references = [others[end - n : end] for end, n in zip(ends, of_image.tolist(), strict=True)]
        return said, references, rows[:, 2:]

    def compute(self) -> dict[str, Tensor]:
        said, references, columns = self.sentences()
        if not said:
            return {}
        columns = columns.cpu()
        novel, unseen, stated, true, covered, coverable, parsed = columns.double().unbind(1)
        lengths = torch.tensor([len(sentence) for sentence in said])
        long = lengths > lengths.median()
        each_cider = torch.tensor(cider_d(said, references), dtype=torch.double)
        truthful = ((parsed > 0) & (stated > 0) & (true == stated)).double()
        judged = bool((stated >= 0).all())
        shown = truthful if judged else torch.full_like(truthful, math.nan)
        self.by_length = by_length_of(lengths.tolist(), each_cider.tolist(), shown.tolist())
        result = bleu(said, references)
        result["cider_d"] = mean(each_cider)
        result["exact_match"] = sum(s in r for s, r in zip(said, references, strict=True)) / len(said)
        result |= {f"distinct_{n}": distinct(said, n) for n in (1, 2)}
        result["self_bleu"] = self_bleu(said)
        result["unique_share"] = len(set(said)) / len(said)
        known = {word for sentences in references for sentence in sentences for word in sentence}
        known &= set(range(2, len(self.vocab)))  # others it cannot say
        spoken = {word for sentence in said for word in sentence}
        result["vocabulary_coverage"] = len(spoken & known) / max(1, len(known))
        result["length"] = float(lengths.double().mean())
        if (novel >= 0).all():
            result["novel_share"] = mean(novel)
        result |= {"cider_d_short": mean(each_cider[~long]), "cider_d_long": mean(each_cider[long])}
        if judged:
            result |= {"truthful": mean(truthful), "parsed": mean(parsed)}
            result["facts_true"] = float(true.sum() / stated.sum())
            result["coverage"] = float(covered.sum() / coverable.sum())
            result |= {"truthful_short": mean(truthful[~long]), "truthful_long": mean(truthful[long])}
            new = unseen > 0
            if new.any() and not new.all():
                seen, other = mean(truthful[~new]), mean(truthful[new])
                result |= {"truthful_seen": seen, "truthful_unseen": other, "gap_seen_unseen": seen - other}
                result["harmonic_mean"] = 2 * seen * other / max(seen + other, 1e-12)
                for name, some in (("seen", ~new), ("unseen", new)):
                    result[f"coverage_{name}"] = float(covered[some].sum() / coverable[some].sum())
        return {name: torch.tensor(value, dtype=torch.float) for name, value in result.items()}


def by_length_of(
    lengths: Sequence[int], cider: Sequence[float], truthful: Sequence[float]
) -> dict[int, tuple[int, float, float]]:
    """For each number of words, the number of captions and the means of their two scores."""
    found: dict[int, list[tuple[float, float]]] = {}
    for length, *scores in zip(lengths, cider, truthful, strict=True):
        found.setdefault(length, []).append((scores[0], scores[1]))
    return {
        length: (len(pairs), *(sum(column) / len(pairs) for column in zip(*pairs, strict=True)))
        for length, pairs in sorted(found.items())
    }


def split(flat: Tensor, lengths: Tensor) -> list[Words]:
    """Splits consecutive words into sentences of the given lengths."""
    return [tuple(part.tolist()) for part in flat.cpu().split(lengths.tolist())]


def mean(values: Tensor) -> float:
    """NaN of none."""
    return float(values.double().mean())
