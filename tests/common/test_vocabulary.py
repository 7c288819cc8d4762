"""Words of any script."""

from __future__ import annotations

import random

import pytest

from common.vocabulary import _token, as_sentence, build_vocab, encode, tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("What's the T-shirt's price, $5?", ["what's", "the", "t", "-", "shirt's", "price", ",", "$", "5"]),
        ("a <unk> cat", ["a", "<unk>", "cat"]),
        ("एक लाल गोला", ["एक", "लाल", "गोला"]),  # vowels are combining marks
        ("العَرَبِيَّة لغة", ["العَرَبِيَّة", "لغة"]),
        ("வணக்கம் உலகம்", ["வணக்கம்", "உலகம்"]),
        ("cafe\u0301 nai\u0308ve", ["café", "naïve"]),  # as macOS writes them
        ("我们在北京。", ["我", "们", "在", "北", "京", "。"]),
        ("วงกลม สีแดง", ["ว", "ง", "ก", "ล", "ม", "สี", "แ", "ด", "ง"]),
        ("中文 and words", ["中", "文", "and", "words"]),
    ],
)
def test_tokens_of_any_script(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens
    assert tokenize(" ".join(tokens)) == tokens, "tokens are tokens again"


def test_the_faster_way_for_plain_text_gives_the_same_tokens() -> None:
    generator = random.Random(0)
    for _ in range(500):
        text = "".join(generator.choice("ab'_-?.,$ <unk>\n1") for _ in range(30))
        assert tokenize(text) == [token for token in _token().findall(text) if token != "?"]


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"min_count=5: leaves no word in the vocabulary \(the most frequent of 2 words"
    ):
        build_vocab(["a b", "a"], min_count=5)
    with pytest.raises(ValueError, match=r"min_count=1: leaves no word in the vocabulary \(no word\)"):
        build_vocab([])


def test_where_characters_stand_for_words_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    build_vocab(["a word"])
    assert "single characters" not in caplog.text
    assert build_vocab(["我们 ok"])[2:] == ["ok", "们", "我"]
    assert "2 of 3 tokens are single characters" in caplog.text


def test_tokens_that_are_given_stay_whole() -> None:
    vocab = build_vocab(["a t-shirt"], split=str.split)
    assert vocab[2:] == ["a", "t-shirt"]
    ids, lengths = encode(["t-shirt a"], vocab, str.split)
    assert (ids.tolist(), lengths.tolist()) == ([[3, 2]], [2])


def test_tokens_print_like_a_sentence() -> None:
    tokens = ["a", "square", ",", "green", "(", "and", "small", ")", ",", "at", "the", "top", "left", "."]
    assert as_sentence(tokens) == "a square, green (and small), at the top left."
    assert as_sentence(["我", "们", "ok"]) == "我们 ok"
