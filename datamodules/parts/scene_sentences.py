"""Sentences about scenes as people might say them: synonyms, relations, counts, ellipsis; all of them true.

:mod:`datamodules.parts.scene_grammar` has their words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from datamodules.parts.scene_grammar import (
    ANYTHING,
    ATTRIBUTES,
    NUMBERS,
    PLURAL_OPENINGS,
    RELATIONS,
    SINGULAR_OPENINGS,
    plural,
    words_for,
)
from datamodules.parts.scenes import lies, lies_between

SENTENCES_PER_SCENE = 5
THOROUGH = 3  # of these at least, about a single object, name its shape and its color
CLEARLY = 6  # pixels: people say "left of" of what is clearly so, and more so than it is above or below
CLEARLY_BETWEEN = -0.8  # cosine


@dataclass
class _Object:
    values: dict[str, str]
    center: tuple[int, int]
    """row and column"""


def describe(
    scenes: np.ndarray, rng: np.random.Generator, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES
) -> list[list[str]]:
    """Five different true sentences about each of the scenes (N, K, A + 2).

    For a scene of one object, at least three name its shape and color.
    """
    draw = random.Random(int(rng.integers(2**62)))  # draws single numbers many times faster than NumPy
    names = list(attributes)
    sentences = []
    for scene in scenes.tolist():
        objects = [
            _Object({n: attributes[n][v] for n, v in zip(names, row[:-2], strict=True)}, (row[-2], row[-1]))
            for row in scene
            if row[0] >= 0
        ]
        sentences.append(_five(objects, draw))
    return sentences


def _five(objects: list[_Object], draw: random.Random) -> list[str]:
    made: list[str] = []
    while len(made) < SENTENCES_PER_SCENE:
        draw.shuffle(objects)
        sentence: str | None
        if len(objects) > 1:
            sentence = draw.choice(OF_SEVERAL)(objects, draw)
        else:
            sentence = draw.choice(OF_ONE if len(made) < THOROUGH else (*OF_ONE, *OF_ONE_BRIEFLY))(objects[0], draw)
        if sentence and sentence not in made:
            made.append(sentence)
    draw.shuffle(made)
    return made


# Pieces.


def _word(value: str, draw: random.Random) -> str:
    words = words_for(value)
    return words[0] if draw.random() < 0.5 else draw.choice(words)


def _noun(shape: str | None, draw: random.Random, several: bool = False) -> str:
    noun = _word(shape, draw) if shape else draw.choice(ANYTHING)
    return plural(noun) if several else noun


def _adjectives(values: Mapping[str, str], draw: random.Random) -> list[str]:
    """Size before color, as English has it."""
    return [_word(values[name], draw) for name in ("size", "color") if name in values]


def _some(values: Mapping[str, str], draw: random.Random, known_shape: str | None = None) -> str:
    """``a large red disc``, or ``a large red one`` after an object of that shape."""
    adjectives = _adjectives(values, draw)
    shape = values.get("shape")
    is_one = adjectives and shape is not None and shape == known_shape and draw.random() < 0.7
    return _with_article([*adjectives, "one" if is_one else _noun(shape, draw)])


def _with_article(words: Sequence[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" and words[0] != "one" else "a", *words])


def _where(place: str, draw: random.Random) -> str:
    """``at the top left``."""
    words = _word(place, draw)
    if place == "middle":
        return f"in the {words}"
    return f"at the {words}" if draw.random() < 0.7 else f"in the {words} corner"


def _pick(values: Mapping[str, str], draw: random.Random, always: Sequence[str], share: float = 0.5) -> dict[str, str]:
    """Some of the values except the place: ``always`` these, and each of the others with this probability."""
    return {n: v for n, v in values.items() if n != "place" and (n in always or draw.random() < share)}


def _look(values: Mapping[str, str], draw: random.Random) -> dict[str, str]:
    """What one says about an object among others: mostly its shape and color."""
    return _pick(values, draw, ("shape", "color") if draw.random() < 0.67 else ("shape",), 0.3)


def _joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _opened(phrase: str, draw: random.Random, openings: Sequence[str] = SINGULAR_OPENINGS) -> str:
    """The phrase, often after ``there is`` or the like."""
    return phrase if draw.random() < 0.5 else f"{draw.choice(openings)} {phrase}"


# About the one object of a scene, naming its shape and its color.


def _plainly(one: _Object, draw: random.Random, always: Sequence[str] = ("shape", "color")) -> str:
    """``there is a large red disc at the top left``."""
    phrase = _some(_pick(one.values, draw, always), draw)
    return _opened(f"{phrase} {_where(one.values['place'], draw)}" if draw.random() < 0.6 else phrase, draw)


def _place_first(one: _Object, draw: random.Random) -> str:
    """``in the middle there is a red disc``."""
    phrase = _some(_pick(one.values, draw, ("shape", "color")), draw)
    return f"{_where(one.values['place'], draw)}{draw.choice((' there is', ','))} {phrase}"


def _with_is(one: _Object, draw: random.Random) -> str:
    """``the disc at the top left is red``, ``the small disc is red and at the top left``."""
    told_first = draw.choice((("shape",), ("shape", "size")))
    subject = _some(_pick(one.values, draw, told_first, 0), draw).partition(" ")[2]
    rest = {name: value for name, value in one.values.items() if name not in told_first}
    adjectives = _adjectives(_pick(rest, draw, ("color",)), draw)
    draw.shuffle(adjectives)
    said, where = " and ".join(adjectives), _where(one.values["place"], draw)
    return draw.choice(
        (f"the {subject} is {said}", f"the {subject} {where} is {said}", f"the {subject} is {said} and {where}")
    )


def _adjectives_behind(one: _Object, draw: random.Random) -> str:
    """``a disc, red and large, at the top left``."""
    adjectives = _adjectives(one.values, draw)
    draw.shuffle(adjectives)
    phrase = f"{_some({'shape': one.values['shape']}, draw)}, {' and '.join(adjectives)}"
    return f"{phrase}, {_where(one.values['place'], draw)}" if draw.random() < 0.6 else phrase


def _alone(one: _Object, draw: random.Random) -> str:
    """``a single red disc at the top left``, ``one object: a red disc``."""
    phrase = _some(_pick(one.values, draw, ("shape", "color")), draw)
    if draw.random() < 0.5:
        return f"a single {phrase.partition(' ')[2]} {_where(one.values['place'], draw)}"
    return f"one {draw.choice(ANYTHING)}: {phrase}"


# About the one object of a scene, leaving something out.


def _briefly(one: _Object, draw: random.Random) -> str:
    """``a small object in the middle``."""
    return _plainly(one, draw, ())


def _something(one: _Object, draw: random.Random) -> str:
    """``there is something red and large at the top left``."""
    adjectives = _adjectives(_pick(one.values, draw, ("color",)), draw)
    return _opened(f"something {' and '.join(adjectives)} {_where(one.values['place'], draw)}", draw)


OF_ONE = (_plainly, _plainly, _place_first, _with_is, _adjectives_behind, _alone)
OF_ONE_BRIEFLY = (_briefly, _briefly, _something)


# About several objects; nothing where a scene does not lend itself.


def _in_turn(objects: Sequence[_Object], draw: random.Random) -> list[str]:
    """Each described, and called ``one`` where it has the shape of the one before."""
    parts: list[str] = []
    shape: str | None = None
    for one in objects:
        said = _look(one.values, draw)
        parts.append(_some(said, draw, shape))
        shape = said.get("shape")
    return parts


def _list(objects: list[_Object], draw: random.Random) -> str:
    """``a red circle, a blue one and a large triangle``."""
    return _opened(_joined(_in_turn(objects[: draw.randint(2, len(objects))], draw)), draw)


def _placed(objects: list[_Object], draw: random.Random) -> str:
    """``a red circle at the top left and a square in the middle``."""
    shown = objects[: draw.randint(1, 2)]
    parts = [(_some(_look(one.values, draw), draw), _where(one.values["place"], draw)) for one in shown]
    if len(parts) == 1 and draw.random() < 0.6:
        return f"{parts[0][1]} there is {parts[0][0]}"
    return _opened(_joined([f"{phrase} {where}" for phrase, where in parts]), draw)


def _groups(objects: list[_Object], name: str, draw: random.Random) -> list[str]:
    """The objects by their shape or color: ``two squares`` and ``a circle``, ``a red thing`` and ``a blue one``."""
    values = [one.values[name] for one in objects]
    parts: list[str] = []
    for value in dict.fromkeys(values):
        count = values.count(value)
        if count > 1:
            words = [NUMBERS[count - 1], *_adjectives({name: value}, draw)]
            parts.append(" ".join([*words, _noun(value if name == "shape" else None, draw, True)]))
        elif name == "color" and parts and draw.random() < 0.5:
            parts.append(_with_article([_word(value, draw), "one"]))
        else:
            parts.append(_some({name: value}, draw))
    return parts


def _count(objects: list[_Object], draw: random.Random) -> str:
    """``there are two squares and a circle``, ``three red objects and a blue one``."""
    parts = _groups(objects, draw.choice(("shape", "color")), draw)
    is_single = parts[0].startswith(("a ", "an "))
    return _opened(_joined(parts), draw, SINGULAR_OPENINGS if is_single else PLURAL_OPENINGS)


def _number(objects: list[_Object], draw: random.Random) -> str:
    """``three objects, two of them green``, ``three objects: two squares and a circle``."""
    opened = _opened(f"{NUMBERS[len(objects) - 1]} {_noun(None, draw, True)}", draw, PLURAL_OPENINGS)
    if draw.random() < 0.4:
        return f"{opened}: {_joined(_groups(objects, 'shape', draw))}"
    name = draw.choice([name for name in ("color", "size") if name in objects[0].values])
    value = objects[0].values[name]
    count = sum(one.values[name] == value for one in objects)
    word = _word(value, draw)
    if count == len(objects):
        return f"{opened}, {'both' if count == 2 else 'all of them'} {word}"
    return f"{opened}, {NUMBERS[count - 1]} of them {word}"


def _relate(objects: list[_Object], draw: random.Random) -> str | None:
    """``a red circle is left of a blue square``, ``a circle with a square below it``."""
    for one, other in permutations(objects, 2):
        down, right = (a - b for a, b in zip(one.center, other.center, strict=True))
        kinds = ("left", "right") if abs(right) > abs(down) else ("above", "below")
        for kind in kinds:
            if lies(kind, one.center, other.center, CLEARLY):
                return _related(one, other, kind, draw)
    return None


def _related(one: _Object, other: _Object, kind: str, draw: random.Random) -> str:
    words = draw.choice(RELATIONS[kind])
    if draw.random() < 0.3:
        first, second = _in_turn((other, one), draw)
        where = f"to its {kind}" if kind in ("left", "right") else f"{words} it"
        return _opened(f"{first} with {second} {where}", draw)
    first, second = _in_turn((one, other), draw)
    if draw.random() < 0.3:
        return f"{first} is {words} {second}"
    return _opened(f"{first} {words} {second}", draw)


def _between(objects: list[_Object], draw: random.Random) -> str | None:
    for one, first, second in permutations(objects, 3):
        if lies_between(one.center, first.center, second.center, CLEARLY_BETWEEN):
            parts = _in_turn((one, first, second), draw)
            verb = "is between" if draw.random() < 0.3 else "between"
            return f"{parts[0]} {verb} {parts[1]} and {parts[2]}"
    return None


OF_SEVERAL: tuple[Callable[[list[_Object], random.Random], str | None], ...] = (
    _list,
    _placed,
    _count,
    _number,
    _relate,
    _relate,
    _between,
)
