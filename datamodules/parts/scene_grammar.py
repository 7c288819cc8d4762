"""The words of sentences about scenes, and what a sentence of these words states.

The parser reads noun phrases, relations and counts in any order that makes a sentence, so that it can judge sentences
that a model composed. It reads::

    sentence  = item {("," | ":" | "and" | ", and") item}
    item      = [place [","]] [opening] phrase ["is" predicate] {"and" (place | relation)}, or behind a number: part
    phrase    = (article | number) [adjectives] (noun | "one" | "ones") {modifier} | "something" [adjectives] {modifier}
    modifier  = [","] (place | adjectives) | "that is" predicate | relation | "with" phrase relation-to-it
    predicate = adjectives | place | relation | article [adjectives] noun
    relation  = ("left of" | "above" | ...) phrase | "between" phrase "and" phrase
    part      = (number | "both" | "all") ["of them"] ["are"] (adjectives [place] | place | article [adjectives] noun)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from common.vocabulary import UNK, tokenize

ATTRIBUTES: dict[str, list[str]] = {
    "shape": ["circle", "square", "triangle"],
    "color": ["red", "green", "blue", "yellow", "purple", "gray"],
    "size": ["small", "large"],
    "place": ["top left", "top right", "bottom left", "bottom right", "middle"],
}
"""attributes of the objects with their values, each named by its first word"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "rectangle": ("rectangle", "block"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "purple": ("purple", "violet"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
    "middle": ("middle", "center"),
}
"""all words for a value, where there are several"""

PLURALS = {"box": "boxes"}  # of the others: with an s
ANYTHING = ("object", "shape", "thing")
"""nouns that say nothing about the shape"""
NUMBERS = ("one", "two", "three", "four", "five", "six")
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SINGULAR_OPENINGS = ("there is", "the picture shows", "i see", "here is")
PLURAL_OPENINGS = ("there are", "the picture shows", "i see", "here are")


def words_for(value: str) -> tuple[str, ...]:
    """All words for a value of an attribute."""
    return SYNONYMS.get(value, (value,))


def plural(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


def without(sentence: str, attribute: str) -> str:
    """The sentence with ``<unk>`` in place of each word for a value of an attribute: ``a large <unk> circle``."""
    said = {word for value in ATTRIBUTES[attribute] for word in words_for(value)}
    said |= {plural(word) for word in said}
    return " ".join(UNK if word in said else word for word in tokenize(sentence))


def counts(sentence: str) -> bool:
    """Whether a sentence says how many there are of something."""
    return not {*NUMBERS[1:], "both", "all", "single"}.isdisjoint(tokenize(sentence))


@dataclass
class Mention:
    """Objects mentioned in a sentence: one, or exactly ``count``."""

    values: dict[str, str] = field(default_factory=dict)
    """what it says of them, by attribute"""
    count: int | None = None
    """the exact number of such objects; None for "a", which is true of one among several"""


@dataclass(frozen=True)
class Relation:
    """``kind`` is "left", "right", "above" or "below" of one mention, or "between" two; all by number."""

    kind: str
    subject: int
    others: tuple[int, ...]


@dataclass
class Statement:
    """What a sentence states."""

    mentions: list[Mention] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)


class _NotAllowed(Exception):
    """The sentence does not match the grammar."""


@dataclass(frozen=True)
class _Lexicon:
    """The words of some attributes, each with what it says."""

    nouns: dict[str, tuple[str | None, bool]]
    """the shape, None where any, and whether it is a plural"""
    adjectives: dict[str, tuple[str, str]]
    places: dict[tuple[str, ...], str]
    relations: dict[tuple[str, ...], str]


@lru_cache
def _lexicon(attributes: tuple[tuple[str, tuple[str, ...]], ...]) -> _Lexicon:
    nouns: dict[str, tuple[str | None, bool]] = {}
    for noun in ANYTHING:
        nouns |= {noun: (None, False), plural(noun): (None, True)}
    adjectives, places = {}, {}
    for attribute, values in attributes:
        for value in values:
            for word in words_for(value):
                if attribute == "shape":
                    nouns |= {word: (value, False), plural(word): (value, True)}
                elif attribute == "place":
                    for before in ("at", "in"):
                        places[(before, "the", *word.split())] = value
                        places[(before, "the", *word.split(), "corner")] = value
                else:
                    adjectives[word] = attribute, value
    relations = {tuple(text.split()): kind for kind, texts in RELATIONS.items() for text in texts}
    return _Lexicon(nouns, adjectives, places, relations)


def parse(sentence: str, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES) -> Statement | None:
    """What a sentence states about objects with these attributes; None if it does not match the grammar.

    The result is shared by all callers with the same sentence and must not be changed.
    """
    return _parse(sentence, tuple((name, tuple(values)) for name, values in attributes.items()))


@lru_cache(maxsize=100_000)  # models repeat themselves
def _parse(sentence: str, attributes: tuple[tuple[str, tuple[str, ...]], ...]) -> Statement | None:
    try:
        return _Parser(tokenize(sentence), _lexicon(attributes)).sentence()
    except _NotAllowed:
        return None


def _both(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """What both say together; a contradiction is not a sentence."""
    if any(first.get(attribute, value) != value for attribute, value in second.items()):
        raise _NotAllowed
    return first | second


class _Parser:
    """Recursive descent over the tokens of one sentence."""

    def __init__(self, tokens: list[str], lexicon: _Lexicon) -> None:
        self.tokens = tokens[:-1] if tokens[-1:] == ["."] else tokens
        self.lexicon = lexicon
        self.place = 0
        self.stated = Statement()
        self.shape: str | None = None  # of the last noun, for "one"
        self.group: Mention | None = None  # the last number of objects, for "of them"

    # Tokens.

    def next_is(self, *texts: str) -> bool:
        """Whether one of the texts comes next."""
        return any(self.tokens[self.place : self.place + len(t.split())] == t.split() for t in texts)

    def take(self, *texts: str) -> bool:
        """Goes past the first of the texts that comes next."""
        for text in texts:
            if self.next_is(text):
                self.place += len(text.split())
                return True
        return False

    def require(self, *texts: str) -> None:
        if not self.take(*texts):
            raise _NotAllowed

    def take_longest(self, table: Mapping[tuple[str, ...], str]) -> str | None:
        """Goes past the longest phrase of the table that comes next and says what it means."""
        for length in (5, 4, 3, 2, 1):
            found = table.get(tuple(self.tokens[self.place : self.place + length]))
            if found and self.place + length <= len(self.tokens):
                self.place += length
                return found
        return None

    @property
    def word(self) -> str:
        """The next token, or nothing."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    # Sentences.

    def sentence(self) -> Statement:
        self.item()
        while self.place < len(self.tokens):
            self.require(", and", ",", ":", "and")
            self.item()
        return self.stated

    def item(self) -> None:
        where = self.take_longest(self.lexicon.places)
        if where:
            self.take(",", ":")
        self.take(*SINGULAR_OPENINGS, *PLURAL_OPENINGS)
        if self.group and not where and self.part(self.group):
            return
        mention = self.phrase()
        if where:
            self.say(mention, "place", where)
        if self.take("is", "are"):
            self.predicate(mention)
        self.more(mention)

    def part(self, group: Mention) -> bool:
        """Reads a description of some of several objects: ``two of them green``; returns whether one came next."""
        assert group.count
        start = self.place
        if self.take("both", "all"):
            count = group.count
        elif self.word in NUMBERS:
            count = 1 + NUMBERS.index(self.word)
            self.place += 1
        else:
            return False
        of_them = self.take("of them")
        self.take("are", "is")
        values = self.adjectives()
        if self.word not in self.lexicon.nouns and not self.next_is("one", "ones"):
            if where := self.where():
                values["place"] = where
            if values:
                self.new(Mention(_both(group.values, values), count))
                return True
        if of_them and not values and self.take("a", "an"):  # "one of them a red circle"
            self.new(Mention(_both(group.values, self.described()), count))
            return True
        if of_them:
            raise _NotAllowed
        self.place = start
        return False

    def phrase(self) -> int:
        """Reads a noun phrase with its modifiers and returns the index of its mention."""
        if self.take("something"):
            mention = self.new(Mention(self.adjectives()))
        else:
            count, is_definite = None, self.take("the")
            if self.word in NUMBERS:
                count = 1 + NUMBERS.index(self.word)
                self.place += 1
            elif self.take("a single"):
                count = 1
            elif not is_definite:
                self.require("a", "an", "another")
            values = self.described(count is not None and count > 1)
            known = self.known(values) if is_definite and not count else None
            mention = self.new(Mention(values, count)) if known is None else known
            if count and count > 1:
                self.group = self.stated.mentions[mention]
        while self.modifier(mention):
            pass
        return mention

    def new(self, mention: Mention) -> int:
        self.stated.mentions.append(mention)
        return len(self.stated.mentions) - 1

    def known(self, values: dict[str, str]) -> int | None:
        """The latest mentioned object to which "the" may refer."""
        for number, mention in reversed(list(enumerate(self.stated.mentions))):
            if mention.count is None and values.items() <= mention.values.items():
                return number
        return None

    def described(self, is_plural: bool = False) -> dict[str, str]:
        """What adjectives and a noun say."""
        values = self.adjectives()
        shape, noun_is_plural = self.noun()
        if noun_is_plural != is_plural:
            raise _NotAllowed
        return values | shape

    def noun(self) -> tuple[dict[str, str], bool]:
        """The shape that a noun names, if any, and whether the noun is a plural."""
        word = self.word
        self.place += 1
        if word in ("one", "ones"):
            if not self.stated.mentions:
                raise _NotAllowed
            return ({"shape": self.shape} if self.shape else {}), word == "ones"
        if word not in self.lexicon.nouns:
            raise _NotAllowed
        self.shape, is_plural = self.lexicon.nouns[word]
        return ({"shape": self.shape} if self.shape else {}), is_plural

    def adjectives(self) -> dict[str, str]:
        """Adjectives in a row, with or without "and"; those of one attribute must not contradict each other."""
        values: dict[str, str] = {}
        while True:
            start = self.place
            if values:
                self.take("and")
            if self.word not in self.lexicon.adjectives:
                self.place = start
                return values
            attribute, value = self.lexicon.adjectives[self.word]
            values = _both(values, {attribute: value})
            self.place += 1

    def say(self, mention: int, attribute: str, value: str) -> None:
        """Adds what is said about a mention."""
        known = self.stated.mentions[mention]
        known.values = _both(known.values, {attribute: value})

    def modifier(self, mention: int) -> bool:
        """Reads what follows a noun and says more about it; returns whether there was anything."""
        start = self.place
        self.take(",")
        if where := self.where():
            self.say(mention, "place", where)
            return True
        if values := self.adjectives():
            for attribute, value in values.items():
                self.say(mention, attribute, value)
            return True
        self.place = start
        if self.take("that is", "that are"):
            self.predicate(mention)
            self.more(mention)
            return True
        if self.take("with"):
            other = self.phrase()
            if self.take("to its left"):
                kind = "left"
            elif self.take("to its right"):
                kind = "right"
            else:
                found = self.take_longest(self.lexicon.relations)
                if not found or not self.take("it"):
                    raise _NotAllowed
                kind = found
            self.stated.relations.append(Relation(kind, other, (mention,)))
            return True
        return self.relation(mention)

    def relation(self, subject: int) -> bool:
        start = self.place
        if self.take("between"):
            first = self.phrase()
            self.require("and")
            self.stated.relations.append(Relation("between", subject, (first, self.phrase())))
            return True
        kind = self.take_longest(self.lexicon.relations)
        if kind is None or self.next_is("it"):
            self.place = start
            return False
        self.stated.relations.append(Relation(kind, subject, (self.phrase(),)))
        return True

    def where(self) -> str | None:
        """A place, unless it is where the next object is: ``in the middle there is a disc``."""
        start = self.place
        found = self.take_longest(self.lexicon.places)
        if found and self.next_is(*SINGULAR_OPENINGS, *PLURAL_OPENINGS, "a", "an", "the", "something", ":", *NUMBERS):
            self.place = start
            return None
        return found

    def more(self, mention: int) -> None:
        """Places and relations after "and", which belong to the subject of the sentence."""
        while self.next_is("and"):
            start = self.place
            self.require("and")
            if where := self.where():
                self.say(mention, "place", where)
            elif not self.relation(mention):
                self.place = start
                return

    def predicate(self, mention: int) -> None:
        if values := self.adjectives():
            pass
        elif where := self.where():
            values = {"place": where}
        elif self.relation(mention):
            return
        else:
            self.require("a", "an")
            values = self.described()
        for attribute, value in values.items():
            self.say(mention, attribute, value)
