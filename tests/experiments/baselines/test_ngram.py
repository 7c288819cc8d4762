"""N-grams: a distribution over characters, the same as the formula written out with dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.baselines import ngram
from experiments.baselines.ngram import NGram, discounts, main, nats_by_order

V = 5


def text_of(size: int, seed: int = 0) -> np.ndarray:
    """A text of V - 1 characters (so that one is never seen) in which the next depends on the two before."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(V - 1, 0.3), (V, V))
    codes = [0, 1]
    while len(codes) < size:
        codes.append(int(rng.choice(V - 1, p=table[codes[-2], codes[-1]])))
    return np.array(codes[:size], np.uint8)


class Naive:
    """Interpolated modified Kneser-Ney with dictionaries of tuples."""

    def __init__(self, codes: np.ndarray, order: int) -> None:
        text = tuple(codes.tolist())
        self.order = order
        self.counts: dict[int, Counter[tuple[int, ...]]] = {}
        for m in range(1, order + 1):
            places = range(len(text) - m + 1)
            if m == order:
                self.counts[m] = Counter(text[i : i + m] for i in places)
            else:
                before: dict[tuple[int, ...], set[int | None]] = defaultdict(set)
                for i in places:
                    before[text[i : i + m]].add(text[i - 1] if i else None)
                self.counts[m] = Counter({gram: len(chars) for gram, chars in before.items()})

    def discount(self, m: int, count: int) -> float:
        n = Counter(self.counts[m].values())
        fallback = {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5}
        if not (n[1] and n[2] and n[3]):
            return fallback[min(count, 3)]
        y = n[1] / (n[1] + 2 * n[2])
        found = {0: 0.0} | {k: k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)}
        return (found if min(found[1], found[2], found[3]) > 0 else fallback)[min(count, 3)]

    def probability(self, char: int, context: tuple[int, ...]) -> float:
        def level(m: int) -> float:
            if m == 0:
                return 1 / V
            if len(context) < m - 1:
                return level(m - 1)
            history = context[len(context) - (m - 1) :]
            counts = [self.counts[m][(*history, w)] for w in range(V)]
            if not sum(counts):
                return level(m - 1)
            taken = sum(self.discount(m, count) for count in counts)
            own = self.counts[m][(*history, char)]
            return (own - self.discount(m, own) + taken * level(m - 1)) / sum(counts)

        return level(self.order)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [7, 60, 400])
def test_equals_the_formula_written_out(order: int, size: int) -> None:
    train, text = text_of(size, seed=1), text_of(40, seed=2)
    text[20] = V - 1  # never seen
    naive = Naive(train, order)
    expected = [-math.log(naive.probability(int(char), tuple(text[:i].tolist()))) for i, char in enumerate(text)]
    np.testing.assert_allclose(NGram(order).fit(train, V).score(text), expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 5, 20])
def test_probabilities_sum_to_one(order: int) -> None:
    model = NGram(order).fit(text_of(500), V)
    rng = np.random.default_rng(3)
    for length in (0, 1, 2, 4, 19, 40):
        for context in (rng.integers(0, V, length), text_of(500)[200 : 200 + length]):
            total = sum(math.exp(-model.score(np.array([char]), context)[0]) for char in range(V))
            assert total == pytest.approx(1, abs=1e-12)


def test_context_is_what_comes_before() -> None:
    model, text = NGram(4).fit(text_of(500), V), text_of(100, seed=5)
    whole = model.score(text)
    assert whole.shape == (100,)
    for cut in (1, 2, 3, 50):
        np.testing.assert_allclose(model.score(text[cut:], text[:cut]), whole[cut:])
    assert model.score(text[:0]).shape == (0,)
    # It is not looked at farther back than the order says.
    np.testing.assert_allclose(model.score(text[50:], text[47:50]), whole[50:])


def test_first_order_is_the_discounted_share_of_each_character() -> None:
    train = np.array([0] * 6 + [1] * 3 + [2])
    share = {0: (6 - 1.5) / 10, 1: (3 - 1.5) / 10, 2: (1 - 0.5) / 10, 3: 0.0, 4: 0.0}
    nats = NGram(1).fit(train, V).score(np.arange(V))
    np.testing.assert_allclose(np.exp(-nats), [share[char] + 3.5 / 10 / V for char in range(V)])


def test_unseen_context_leaves_the_lower_order() -> None:
    train = np.array([0, 1, 0, 1, 2, 0, 1, 0, 2, 2, 1])
    model = NGram(3).fit(train, V)
    for char in range(V):
        alone = model.score(np.array([char]), np.array([1]))
        np.testing.assert_allclose(model.score(np.array([char]), np.array([4, 1])), alone)


def test_discounts_are_chen_and_goodmans() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [50, 20, 10, 6, 3])
    y = 50 / 90
    np.testing.assert_allclose(discounts(counts), [0, 1 - 2 * y * 20 / 50, 2 - 3 * y * 10 / 20, 3 - 4 * y * 6 / 10])
    for odd in (np.array([1, 1, 2]), np.repeat([1, 2, 3], [50, 2, 40])):
        np.testing.assert_allclose(discounts(odd), [0, 0.5, 1, 1.5])


def test_all_orders_at_once_are_those_one_by_one() -> None:
    train, text = text_of(300, seed=1), text_of(50, seed=2)
    at_once = list(nats_by_order(train, text, V, 7))
    assert len(at_once) == 7
    for order, nats in enumerate(at_once, 1):
        np.testing.assert_allclose(nats, NGram(order).fit(train, V).score(text))


def test_a_row_is_scored_without_the_row_before_it() -> None:
    train, rows = text_of(300, seed=1), [text_of(40, seed=seed) for seed in (2, 3)]
    together = nats_by_order(train, np.concatenate(rows), V, 5, begins=[0, 40])
    for order, nats in enumerate(together, 1):
        alone = [NGram(order).fit(train, V).score(row) for row in rows]
        np.testing.assert_allclose(nats, np.concatenate(alone))


def test_context_helps_on_a_text_that_has_some() -> None:
    train, text = text_of(20_000)[:18_000], text_of(20_000)[18_000:]
    first, second, third, *more = (nats.mean() for nats in nats_by_order(train, text, V, 8))
    assert first > second > third + 0.1  # each character depends on the two before it
    assert max(more) < third + 0.1 < second  # and longer contexts do little harm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NGram(0), "order=0: expected at least 1"),
        (lambda: NGram(3).fit(np.array([0, 1, 2]), V), "order=3: expected a text longer than its 3 characters"),
        (lambda: NGram(1).fit(np.array([0, V]), V), "codes 0 to 5: expected 0 to 4"),
        (lambda: NGram(1).fit(np.array([0, 1]), V).score(np.array([-1])), "codes -1 to -1: expected 0 to 4"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        call()
    assert str(error.value) == message


def test_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50)
    main(["--source", "text.txt", "--orders", "2", "4"])
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head == "text: 1080 training characters; the last 119 of 120 are scored"
    assert columns.split() == ["order", "nats/char", "bits/char"]
    assert [int(row.split()[0]) for row in rows] == [2, 4]
    two, four = (float(row.split()[1]) for row in rows)
    assert 0 < four < two < 1
    for args, message in ((["--source", "none.txt"], "source='none.txt'"), (["--orders", "0"], r"orders=[0]")):
        with pytest.raises(SystemExit) as status:
            main(args)
        assert status.value.code == 2
        assert message in capsys.readouterr().err
    assert ngram.main.__doc__


def test_command_takes_what_the_data_module_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50 + "É")

    def said(*args: str) -> str:
        main(["--source", "text.txt", "--orders", "3", *args])
        return capsys.readouterr().out

    assert "the last 120 of 121 are scored" in said(), "an unknown character is no mistake"
    assert "108 training characters; the last 11 of 12 are scored" in said("--limit", "120")
    rows = said("--split", "rows", "--batch_size", "4", "--val_fraction", "0.2", "--unknown", "error")
    assert "the last 59 of each of 4 rows, 236 in all, are scored" in rows
    with pytest.raises(SystemExit):
        said("--unknown", "error")
    assert "'É' (U+00C9) does not occur in the training part; expected unknown=unk" in capsys.readouterr().err
