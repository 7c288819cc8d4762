"""Character n-grams, interpolated with modified Kneser-Ney smoothing: the baseline for recurrent networks.

Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3 and equation 26, the
best of the techniques they compare; Karpathy, Johnson & Fei-Fei 2015 compare their networks with it, for n up to 20.
With h the m - 1 characters before w, and h' the same without the first:

    p_m(w|h) = (c_m(hw) - D_m(c_m(hw))) / Σ_w' c_m(hw')  +  λ_m(h) p_{m-1}(w|h')        p_0 = 1 / vocabulary size

where λ_m(h) = Σ_w' D_m(c_m(hw')) / Σ_w' c_m(hw') is the mass removed by the discounts, so that p_m sums to 1, and an
unseen context leaves p_{m-1} unchanged. At the highest order, c_m counts occurrences; at lower orders, it counts how
many different characters came before hw (the beginning of the text counts as one). D_m depends on whether the count is
1, 2, or more, and on how many n-grams of that order have the counts 1 to 4: :func:`discounts`.

    python -m experiments.baselines.ngram --source tiny_shakespeare

The options are those of CharText. With ``--split rows --batch_size R`` the text has R rows, as in a training.

Measured on the last 10 % of tiny_shakespeare, counted on the rest, in nats per character: 2.4835 (n = 2), 1.7190 (4),
1.5226 (6), 1.5165 (7, the best), 1.5225 (10), 1.5210 (20); all orders together take 20 seconds on one CPU core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from common.checks import at_least

FALLBACK_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])


class Grams(NamedTuple):
    """The G different sequences of m characters in a text; a sequence's id is its place in here."""

    keys: np.ndarray
    """(G,) ascending: id of the first m - 1 characters × vocabulary size + last character"""
    suffixes: np.ndarray
    """(G,) id of the last m - 1 characters"""
    counts: np.ndarray
    """(G,) occurrences"""
    first: int
    """id of the text's first m characters"""


class Level(NamedTuple):
    """One order's part of the formula; index -1 is a sequence or a context that was never seen."""

    keys: np.ndarray
    """(G,) as in :class:`Grams`"""
    discounted: np.ndarray
    """(G + 1,) the first summand, of each sequence"""
    backoff: np.ndarray
    """(H + 1,) λ of each context"""

    def refine(
        self, characters: np.ndarray, contexts: np.ndarray, lower: np.ndarray, vocab_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (T,) of characters by this order, given those by the order below; and the next contexts (T,).

        Args:
            characters: (T,)
            contexts: (T,) id of the m - 1 characters before each.
        """
        keys = np.where(contexts < 0, -1, contexts * vocab_size + characters)
        ids = np.searchsorted(self.keys, keys)
        ids = np.where(self.keys.take(ids, mode="clip") == keys, ids, -1)
        probabilities = self.discounted[ids] + self.backoff[contexts] * lower
        return probabilities, np.concatenate([[-1], ids[:-1]])  # nothing is before the first character


def grams(codes: np.ndarray, vocab_size: int) -> Iterator[Grams]:
    """The sequences of 1, 2, 3, … characters of a text (N,), up to N."""
    characters = codes.astype(np.int64)
    ids = np.zeros(len(characters) + 1, np.int64)  # of the empty sequence before, between and behind the characters
    for m in range(1, len(characters) + 1):
        # The characters from `m - 1` on, each behind the m - 1 before it.
        keys, place, inverse, counts = np.unique(
            ids[:-1] * vocab_size + characters[m - 1 :], return_index=True, return_inverse=True, return_counts=True
        )
        yield Grams(keys, ids[place + 1], counts, int(inverse[0]))
        ids = inverse


def discounts(counts: np.ndarray) -> np.ndarray:
    """(4,) discounts for counts of 0, 1, 2, and 3 or more (Chen & Goodman, equation 26).

    Small or odd texts give no estimate between 0 and the count; they lose half of the count, at most 1.5, as in KenLM.
    """
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if not (n1 and n2 and n3):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found if (found[1:] > 0).all() else FALLBACK_DISCOUNTS


def smoothed(keys: np.ndarray, counts: np.ndarray, num_contexts: int, vocab_size: int) -> Level:
    """The formula's terms from the counts (G,) of sequences."""
    contexts = keys // vocab_size
    discount = discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(contexts, counts, num_contexts)
    taken = np.bincount(contexts, discount, num_contexts)
    # A context at the text's end may have nothing behind it.
    backoff = np.divide(taken, totals, out=np.ones(num_contexts), where=totals > 0)
    return Level(keys, np.append((counts - discount) / totals[contexts], 0.0), np.append(backoff, 1.0))


def levels(codes: np.ndarray, vocab_size: int, order: int) -> Iterator[tuple[Level, Level]]:
    """For each order from 1 on: as the highest, by occurrences; and as a lower one, by what characters come before."""
    num_contexts = 1
    # One order more than asked for, which is what lies before the sequences of the last.
    for m, (these, longer) in enumerate(pairwise(grams(codes, vocab_size)), 1):
        before = np.bincount(longer.suffixes, minlength=len(these.keys))
        before[these.first] += 1
        yield (
            smoothed(these.keys, these.counts, num_contexts, vocab_size),
            smoothed(these.keys, before, num_contexts, vocab_size),
        )
        num_contexts = len(these.keys)
        if m == order:
            return


class NGram:
    """The probability of each character given the ``order`` - 1 before it.

    Args:
        order: n, at least 1 (which uses no context).

    Raises:
        ValueError: ``order`` is below 1.
    """

    def __init__(self, order: int) -> None:
        at_least(1, order=order)
        self.order = order

    def fit(self, codes: np.ndarray, vocab_size: int) -> NGram:
        """Counts a text, (N,) numbers below ``vocab_size``.

        Raises:
            ValueError: the text is not longer than ``order``, or has numbers outside the vocabulary.
        """
        codes = _checked(codes, vocab_size)
        if len(codes) <= self.order:
            raise ValueError(f"order={self.order}: expected a text longer than its {len(codes)} characters")
        self.vocab_size = vocab_size
        self.levels = []
        for m, (highest, below) in enumerate(levels(codes, vocab_size, self.order), 1):
            self.levels.append(highest if m == self.order else below)
        return self

    def score(self, codes: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """(T,) -ln p in nats of each character (T,), given those before it in the text and in ``context``.

        The first characters are predicted from the shorter context before them.

        Raises:
            ValueError: the text has a number that is not below the size of the vocabulary.
        """
        before = np.zeros(0, np.int64) if context is None else _checked(context, self.vocab_size)
        before = before[len(before) - min(len(before), self.order - 1) :]
        text = np.concatenate([before, _checked(codes, self.vocab_size)])
        probabilities, contexts = np.full(len(text), 1 / self.vocab_size), np.zeros(len(text), np.int64)
        for level in self.levels:
            probabilities, contexts = level.refine(text, contexts, probabilities, self.vocab_size)
        array: np.ndarray = -np.log(probabilities[len(before) :])
        return array


def nats_by_order(
    train: np.ndarray, text: np.ndarray, vocab_size: int, order: int, begins: Sequence[int] | np.ndarray = ()
) -> Iterator[np.ndarray]:
    """``NGram(n).fit(train, vocab_size).score(text)`` for n = 1, 2, … up to ``order``, computed together.

    Args:
        begins: places of the text where another one begins, whose characters are scored without what is before it.
    """
    train, text = _checked(train, vocab_size), _checked(text, vocab_size)
    probabilities, contexts = np.full(len(text), 1 / vocab_size), np.zeros(len(text), np.int64)
    for highest, below in levels(train, vocab_size, order):
        yield -np.log(highest.refine(text, contexts, probabilities, vocab_size)[0])
        probabilities, contexts = below.refine(text, contexts, probabilities, vocab_size)
        contexts[np.asarray(begins, np.int64)] = -1


def _checked(codes: np.ndarray, vocab_size: int) -> np.ndarray:
    codes = np.asarray(codes).astype(np.int64)
    if len(codes) and (codes.min() < 0 or codes.max() >= vocab_size):
        raise ValueError(f"codes {codes.min()} to {codes.max()}: expected 0 to {vocab_size - 1}")
    return codes


def main(args: Sequence[str] | None = None) -> None:
    """Prints the nats and bits per character of a text's validation part for each order."""
    from jsonargparse import ArgumentParser

    from datamodules.text import CharText

    parser = ArgumentParser("python -m experiments.baselines.ngram", description=main.__doc__)
    parser.add_argument("--orders", type=int, nargs="+", default=list(range(1, 21)))
    parser.add_class_arguments(CharText, skip={"seq_len", "windows", "eval_context"})  # which only training has
    parser.set_defaults(batch_size=1, test_fraction=0.0)
    options = parser.parse_args(args).as_dict()
    orders = options.pop("orders")
    if min(orders) < 1:
        parser.error(f"orders={orders}: expected numbers from 1")
    try:
        data = CharText(**options, seq_len=max(orders))
        train, val = data.part("train"), data.part("val")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows = data.batch_size if data.split == "rows" else 1
    begins = np.arange(rows) * (len(val) // rows)
    of_what = f"of {len(val)}" if rows == 1 else f"of each of {rows} rows, {len(val) - rows} in all,"
    scored = len(val) // rows - 1
    print(f"{data.corpus_name}: {len(train)} training characters; the last {scored} {of_what} are scored")
    print("order  nats/char  bits/char")
    for order, nats in enumerate(nats_by_order(train, val, len(data.vocab), max(orders), begins), 1):
        if order in orders:
            mean = np.delete(nats, begins).mean()  # these have nothing before them: as in CharText's evaluation
            print(f"{order:5}  {mean:9.4f}  {mean / np.log(2):9.4f}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
