"""Scenes and sentences about them: pixels, places, what a sentence states, and whether that is true."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from datamodules.parts.scene_grammar import ATTRIBUTES, SYNONYMS, parse, plural, words_for
from datamodules.parts.scene_sentences import describe
from datamodules.parts.scenes import COLORS, Judgment, check, draw_scenes, place_of, render, stated_attributes

Object = tuple[str, str, str, int, int]
"""size, color, shape, row and column of the center"""


def scene(*objects: Object) -> torch.Tensor:
    """(5, 6): the objects, and places where none is."""
    rows = torch.full((5, 6), -1)
    for k, (size, color, shape, row, column) in enumerate(objects):
        place = int(place_of(np.array(row), np.array(column), 64))
        values = {"shape": shape, "color": color, "size": size, "place": ATTRIBUTES["place"][place]}
        numbers = [ATTRIBUTES[name].index(value) for name, value in values.items()]
        rows[k] = torch.tensor([*numbers, row, column])
    return rows


FOUR = scene(
    ("large", "red", "circle", 12, 12),
    ("small", "blue", "square", 14, 50),
    ("small", "red", "circle", 50, 30),
    ("small", "green", "triangle", 32, 24),
)
ONE = scene(("small", "red", "circle", 12, 12))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[list[str]]]:
    rng = np.random.default_rng(3)
    scenes = draw_scenes(2000, rng)
    return scenes, describe(scenes, rng)


# Pixels.


def test_every_pixel_is_of_an_object_or_of_the_ground() -> None:
    scenes = draw_scenes(300, np.random.default_rng(0))
    images = render(scenes)
    assert images.dtype == torch.uint8
    assert images.shape == (300, 3, 64, 64)
    areas: dict[tuple[str, str], set[int]] = {}
    for objects, image in zip(scenes.tolist(), images.permute(0, 2, 3, 1).numpy(), strict=True):
        covered = np.zeros((64, 64), bool)
        for shape, color, size, _, row, column in objects:
            if shape < 0:
                continue
            radius = (4, 8)[size]
            box = image[row - radius : row + radius + 1, column - radius : column + radius + 1]
            mask = (box == np.array(list(COLORS.values())[color])).all(-1)
            assert mask.shape == (2 * radius + 1, 2 * radius + 1)  # it lies whole in the image
            assert mask[[0, -1]].any(1).all()
            assert mask[:, [0, -1]].any(0).all()
            names = ATTRIBUTES["shape"][shape], ATTRIBUTES["size"][size]
            areas.setdefault(names, set()).add(int(mask.sum()))
            around = np.zeros_like(covered)
            around[row - radius : row + radius + 1, column - radius : column + radius + 1] = True
            assert not (covered & around).any()
            covered |= around
            assert (box[~mask] == 255).all()
        assert (image[~covered] == 255).all()
    assert all(len(found) == 1 for found in areas.values())
    area = {names: found.pop() for names, found in areas.items()}
    for size, side in (("small", 9), ("large", 17)):
        assert area["square", size] == side**2
        assert area["circle", size] == pytest.approx(np.pi / 4 * side**2, rel=0.1)
        assert area["triangle", size] == pytest.approx(side**2 / 2, rel=0.12)
    assert area["circle", "large"] > 3 * area["circle", "small"]


def test_a_triangle_stands_on_its_base() -> None:
    image = render(scene(("large", "blue", "triangle", 30, 30))[None].numpy())[0]
    widths = (image[1] != 255).sum(1)[22:39].tolist()
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (1, 17)


def test_objects_keep_apart_and_clear_of_the_borders_of_places() -> None:
    scenes = draw_scenes(2000, np.random.default_rng(1))
    for objects in scenes.tolist():
        there = [o for o in objects if o[0] >= 0]
        for a, b in combinations(there, 2):
            reach = (4, 8)[a[2]] + (4, 8)[b[2]]
            assert max(abs(a[4] - b[4]), abs(a[5] - b[5])) >= reach + 3  # two pixels between
        for _, _, _, place, row, column in there:
            name = ATTRIBUTES["place"][place]
            from_middle = max(abs(row - 31.5), abs(column - 31.5))
            if name == "middle":
                assert from_middle <= 64 / 6 - 2
            else:
                assert from_middle >= 64 / 6
                assert ("top" in name, "left" in name) == (row < 32, column < 32)
                assert min(abs(row - 31.5), abs(column - 31.5)) >= 2
    counts = Counter((scenes[:, :, 0] >= 0).sum(1).tolist())
    assert {n: count / 2000 for n, count in counts.items()} == pytest.approx(
        dict.fromkeys((1, 2, 3, 4), 0.25), abs=0.04
    )
    objects = scenes[scenes[:, :, 0] >= 0]
    for column, values in enumerate((3, 6, 2)):
        shares = np.bincount(objects[:, column]) / len(objects)
        assert shares == pytest.approx([1 / values] * values, abs=0.03)
    assert set(objects[:, 3]) == {0, 1, 2, 3, 4}


def test_what_is_held_out_is_never_drawn() -> None:
    scenes = draw_scenes(500, np.random.default_rng(0), held_out=[(1, 0), (2, 3)])
    pairs = {tuple(o[:2]) for objects in scenes.tolist() for o in objects if o[0] >= 0}
    assert len(pairs) == 16
    assert not pairs & {(1, 0), (2, 3)}


# Sentences.


def test_every_sentence_is_true(drawn: tuple[np.ndarray, list[list[str]]]) -> None:
    for objects, sentences in zip(*drawn, strict=True):
        for sentence in sentences:
            judgment = check(objects, sentence)
            assert judgment.truthful, (sentence, objects.tolist(), judgment)
            assert 0 <= judgment.covered <= judgment.coverable == 4 * (objects[:, 0] >= 0).sum()


def test_each_scene_has_five_different_sentences_of_many_kinds(drawn: tuple[np.ndarray, list[list[str]]]) -> None:
    _, sentences = drawn
    assert all(len(set(five)) == len(five) == 5 for five in sentences)
    texts = [text for five in sentences for text in five]
    words = Counter(word for text in texts for word in text.split())
    values = [value for values in ATTRIBUTES.values() for value in values]
    for value in values:
        for name in words_for(value):
            assert all(words[word] > 20 for word in name.split()), name
    for shape in ATTRIBUTES["shape"]:
        assert all(words[plural(word)] > 20 for word in words_for(shape))
    for kind in ("left of", "to the right of", "above", "under", "between", "to its left", "below it", " one"):
        assert sum(kind in text for text in texts) > 20, kind
    for kind in ("two of them", "both", "one of them", "three", "there are", "something", "a single", "is"):
        assert sum(kind in text for text in texts) > 20, kind
    assert len(set(texts)) > 0.5 * len(texts)
    assert max(len(text.split()) for text in texts) < 25


def test_sentences_about_one_object_mostly_name_its_look_and_often_its_size_and_place() -> None:
    rng = np.random.default_rng(0)
    sentences = describe(draw_scenes(300, rng, 1, 1), rng)
    stated = [[stated_attributes(text) for text in five] for five in sentences]
    assert all(sum({"shape", "color"} <= set(said) for said in five) >= 3 for five in stated)
    share = Counter(name for five in stated for said in five for name in said)
    assert share["size"] / 1500 > 0.4
    assert share["place"] / 1500 > 0.4
    assert any("color" not in said for five in stated for said in five)


def test_sentences_are_a_function_of_the_generator() -> None:
    scenes = draw_scenes(20, np.random.default_rng(0))
    first, again, other = (describe(scenes, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def other_values(word: str) -> list[str]:
    """The values that the attribute could have instead of the one that a word names."""
    for values in ATTRIBUTES.values():
        for value in values:
            if word in words_for(value):
                return [v for v in values if v != value]
    return []


def test_another_value_of_the_one_object_is_false() -> None:
    rng = np.random.default_rng(5)
    scenes = draw_scenes(300, rng, 1, 1)
    changed: Counter[str] = Counter()
    for objects, five in zip(scenes, describe(scenes, rng), strict=True):
        for sentence in five:
            words = sentence.split()
            for i, word in enumerate(words):
                bare = word.rstrip(",")
                for value in other_values(bare):
                    text = " ".join([*words[:i], word.replace(bare, value), *words[i + 1 :]])
                    assert not check(objects, text).truthful, text
                    changed[bare] += 1
    assert {"disc", "square", "red", "tiny", "large", "purple"} <= set(changed)
    assert "left" not in changed
    for objects, five in zip(scenes, describe(scenes, rng), strict=True):
        for sentence in five:
            for place in ("left", "right"):
                if place in sentence:
                    text = sentence.replace(place, "left" if place == "right" else "right")
                    assert check(objects, text).parsed
                    assert not check(objects, text).truthful


@pytest.mark.slow
def test_a_color_that_no_object_has_is_false(drawn: tuple[np.ndarray, list[list[str]]]) -> None:
    checked = 0
    for objects, five in zip(*drawn, strict=True):
        absent = set(range(6)) - set(objects[objects[:, 0] >= 0, 1].tolist())
        color = ATTRIBUTES["color"][min(absent)]
        for sentence in five:
            words = sentence.split()
            for i, word in enumerate(words):
                bare = word.rstrip(",")
                if bare in (*ATTRIBUTES["color"], "violet"):
                    text = " ".join([*words[:i], word.replace(bare, color), *words[i + 1 :]])
                    judgment = check(objects, text)
                    assert judgment.parsed
                    assert not judgment.truthful, text
                    checked += 1
    assert checked > 3000


def test_another_number_is_false(drawn: tuple[np.ndarray, list[list[str]]]) -> None:
    numbers = ["one", "two", "three", "four", "five"]
    checked = 0
    for objects, five in zip(*drawn, strict=True):
        for sentence in five:
            for i, word in enumerate(words := sentence.split()):
                if word not in numbers[1:-1]:
                    continue
                for number in (numbers[numbers.index(word) - 1], numbers[numbers.index(word) + 1]):
                    text = " ".join([*words[:i], number, *words[i + 1 :]])
                    assert not check(objects, text).truthful, text
                    checked += 1
    assert checked > 1500


def test_the_opposite_relation_of_two_unlike_objects_is_false(drawn: tuple[np.ndarray, list[list[str]]]) -> None:
    opposite = {"left": "right", "right": "left", "above": "below", "over": "below", "below": "above", "under": "over"}
    checked = 0
    for objects, five in zip(*drawn, strict=True):
        there = objects[objects[:, 0] >= 0]
        if len(there) != 2 or there[0, 0] == there[1, 0]:
            continue
        for sentence in five:
            words = sentence.replace(",", "").split()
            at = [
                i for i, word in enumerate(words) if word in opposite and words[i - 1] not in ("top", "upper", "bottom")
            ]
            at = [i for i in at if words[i - 1] != "lower"]
            if len(at) == 1:
                i = at[0]
                text = " ".join([*words[:i], opposite[words[i]], *words[i + 1 :]])
                judgment = check(objects, text)
                assert (judgment.parsed, judgment.stated - judgment.true) == (True, 1), text
                checked += 1
    assert checked > 200


# Judgments.

TRUE = [
    # sentence, facts stated, values covered (of 16)
    ("a red circle", 1, 2),
    ("a large red disc at the top left.", 2, 4),
    ("there is a small blue box in the upper right corner", 2, 4),
    ("two circles", 1, 2),
    ("there are two red discs and a triangle", 2, 5),
    ("four objects", 1, 0),
    ("four objects, two of them red", 2, 2),
    ("four things, three of them small and one of them big", 3, 4),
    ("four objects : two circles , a square and a triangle", 4, 4),
    ("two circles, both red", 2, 4),
    ("two discs, one at the top left", 2, 3),
    ("four objects, one green", 2, 1),
    ("four objects, one of them a green triangle", 2, 2),
    ("two circles, one of them is large", 2, 3),
    ("a large red circle and a small one", 2, 5),
    ("a red circle and another red circle", 2, 4),
    ("a circle left of a square", 3, 2),
    ("a red circle is to the left of a blue square and below a green triangle", 5, 6),
    ("a square with a large disc to its left", 3, 3),
    ("a red disc with a green triangle above it", 3, 4),
    ("a triangle between a large circle and a small circle", 4, 5),
    ("the triangle is green and in the middle", 2, 3),
    ("a triangle, green and tiny, in the middle", 2, 4),
    ("something blue at the top right", 2, 2),
    ("in the middle there is a triangle", 2, 2),
    ("at the top left, a circle", 2, 2),
    ("a circle that is large and at the top left", 2, 3),
    ("a single triangle", 1, 1),
    ("one square", 1, 1),
    ("one small circle", 1, 2),
    ("a red circle. ".strip(), 1, 2),
    ("the two circles are red", 1, 4),
    ("a triangle and a square and the square is blue", 2, 3),
    ("A Red CIRCLE", 1, 2),
    ("three small objects, one of them at the top right", 2, 4),
    ("two red circles left of a square", 3, 5),
    ("a square is a small shape", 1, 2),
    ("a circle above a square and left of a triangle", 5, 3),
    ("a circle and in the middle a triangle", 3, 3),
    ("a circle at the top left and a square", 3, 3),
    ("a square at the top right and right of a triangle", 4, 3),
    ("a square that is small and at the top right and a circle", 3, 4),
]

PARTLY = [
    # sentence, facts stated, true, values covered
    ("a green circle", 1, 0, 0),
    ("a red circle at the top right", 2, 1, 2),
    ("a red circle and a blue circle", 2, 1, 2),
    ("a square and another square", 2, 1, 1),  # there is but one
    ("a circle, a circle and a circle", 3, 2, 2),
    ("three circles", 1, 0, 0),
    ("one circle", 1, 0, 0),  # there are two
    ("a single red object", 1, 0, 0),
    ("four objects, one of them red", 2, 1, 0),
    ("two circles, both large", 2, 1, 2),
    ("a square left of a circle", 3, 2, 2),
    ("a circle above a square and left of a square", 5, 3, 2),  # there is no second square
    ("a square between a large circle and a small circle", 4, 3, 5),
    ("the triangle is red", 1, 0, 0),
    ("two red circles below a square", 3, 2, 5),  # only one of them is
    ("a small red circle at the top left", 2, 1, 3),
    ("five things", 1, 0, 0),
    ("a triangle right of two circles", 3, 2, 3),  # only of one of them
    ("a square and a circle and the square is between the square and the circle", 3, 2, 2),
    ("a green triangle and a green one", 2, 1, 2),
    ("a blue triangle left of a red circle", 3, 1, 2),
]


@pytest.mark.parametrize(("sentence", "stated", "covered"), TRUE)
def test_true_sentences(sentence: str, stated: int, covered: int) -> None:
    assert check(FOUR, sentence) == Judgment(stated, stated, covered, 16, True)
    assert check(FOUR, sentence).truthful


@pytest.mark.parametrize(("sentence", "stated", "true", "covered"), PARTLY)
def test_false_sentences(sentence: str, stated: int, true: int, covered: int) -> None:
    assert check(FOUR, sentence) == Judgment(stated, true, covered, 16, True)
    assert not check(FOUR, sentence).truthful


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        ".",
        "a",
        "a red",
        "red circle",
        "a red circle a",
        "a red circle and",
        "a red circle left of",
        "a red circle left a square",
        "a circle between a square",
        "a circle between a square and",
        "two circle",
        "a circles",
        "a red blue circle",
        "a red circle is blue",
        "a large circle, small",
        "the one",
        "a blue one",
        "circle circle circle",
        "a cat",
        "a <unk> circle",
        "a red circle at the left",
        "a square with a circle",
        "there is",
        "two red circles, both green",
        "two of them green",
        "both red",
        "a circle and two of them red",
        "a red circle square",
        "a circle is",
        "at the top left",
        "a circle at the top left at the bottom right",
        "a triangle that is a square",
        "four objects, two of them",
        "four objects, two of them red circle",
    ],
)
def test_what_is_no_sentence_is_untruthful(sentence: str) -> None:
    assert check(FOUR, sentence) == Judgment(0, 0, 0, 16, False)
    assert not check(FOUR, sentence).truthful


def test_any_heap_of_words_is_judged(drawn: tuple[np.ndarray, list[list[str]]]) -> None:
    scenes, sentences = drawn
    rng = np.random.default_rng(0)
    parsed = 0
    for objects, five in zip(scenes[:1000], sentences, strict=False):
        pieces = [five[i].split() for i in rng.permutation(5)[:2]]
        cuts = [rng.integers(0, len(words) + 1) for words in pieces]
        heap = [*pieces[0][: cuts[0]], *pieces[1][cuts[1] :]]
        judgment = check(objects, " ".join(heap))
        assert 0 <= judgment.true <= judgment.stated
        assert judgment.parsed == (judgment.stated > 0)
        parsed += judgment.parsed
        rng.shuffle(heap)
        check(objects, " ".join(heap))
        both = check(objects, f"{five[0]} and {five[1]}")
        assert both.covered <= both.coverable
    assert 50 < parsed < 700


def test_it_depends_on_no_order_of_objects_and_on_no_empty_places() -> None:
    for sentence in [each[0] for each in TRUE] + [each[0] for each in PARTLY]:
        expected = check(FOUR, sentence)
        assert check(FOUR.flip(0), sentence) == expected
        assert check(FOUR[:4], sentence) == expected
        assert check(FOUR[[2, 4, 0, 3, 1]].numpy(), sentence) == expected


def test_the_objects_that_are_meant_are_those_of_which_most_is_true() -> None:
    twins = scene(
        ("small", "red", "circle", 50, 50),
        ("small", "red", "circle", 10, 10),
        ("large", "blue", "square", 10, 40),
    )
    # Only the second circle is left of the square, and only it is at the top left.
    assert check(twins, "a red circle at the top left is left of a blue square").truthful
    # Each would be true of some circle, but not of one.
    judgment = check(twins, "a red circle at the bottom right is left of a blue square")
    assert (judgment.stated, judgment.true) == (5 - 1, 3)
    judgment = check(twins, "a red circle is left of a blue square and below a blue square")
    assert judgment.stated - judgment.true == 2  # nor is there a second square
    judgment = check(twins, "a red circle is left of a blue square and below the blue square")
    assert judgment.stated - judgment.true == 1


@pytest.mark.parametrize(("column", "true"), [(10, False), (20, True), (30, True), (40, True), (52, False)])
def test_between_is_an_angle_of_120_degrees(column: int, true: bool) -> None:
    objects = scene(
        ("small", "red", "circle", 30, 15),
        ("small", "blue", "circle", 30, 47),
        ("small", "green", "square", 34, column),
    )
    assert check(objects, "a square between a red circle and a blue circle").truthful == true
    assert check(objects, "a square between a blue circle and a red one").truthful == true
    off = scene(
        ("small", "red", "circle", 30, 15),
        ("small", "blue", "circle", 30, 47),
        ("small", "green", "square", 44, column),  # the angle at 14 below the middle is 98 degrees
    )
    assert not check(off, "a square between a red circle and a blue circle").truthful


def test_between_several_and_another_is_between_each_of_them_and_it() -> None:
    objects = scene(
        ("small", "red", "circle", 10, 30),
        ("small", "blue", "circle", 30, 50),
        ("small", "red", "triangle", 52, 30),
        ("small", "green", "square", 30, 30),
    )
    assert check(objects, "a square between a circle and a triangle").truthful
    judgment = check(objects, "a square between two circles and a triangle")
    assert (judgment.stated, judgment.true) == (4, 3)


def test_left_and_above_compare_centers() -> None:
    objects = scene(("large", "red", "circle", 30, 30), ("small", "blue", "square", 30, 50))
    assert check(objects, "a circle left of a square").truthful
    assert check(objects, "a square right of a circle").truthful
    for kind in ("above", "below"):
        assert not check(objects, f"a circle {kind} a square").truthful  # at the same height


def test_a_degenerate_caption_is_judged_fast_enough() -> None:
    import time

    begin = time.process_time()
    judgment = check(FOUR, " and ".join(["a red circle"] * 9))
    assert (judgment.stated, judgment.true) == (9, 2)
    assert time.process_time() - begin < 1


# What is stated of one object.


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("a tiny violet disc", {"shape": "circle", "color": "purple", "size": "small"}),
        ("at the upper left there is a box", {"shape": "square", "place": "top left"}),
        ("one object: a red triangle", {"shape": "triangle", "color": "red"}),
        (
            "the big ball in the center is gray",
            dict(zip(ATTRIBUTES, ["circle", "gray", "large", "middle"], strict=True)),
        ),
        ("something red", {"color": "red"}),
        ("a red circle and a blue one", {}),
        ("nonsense", {}),
    ],
)
def test_stated_attributes(sentence: str, said: dict[str, str]) -> None:
    assert stated_attributes(sentence) == said


def test_other_attributes_have_other_words() -> None:
    attributes = {"shape": ["rectangle", "circle"], "color": ["teal", "brown"], "place": ATTRIBUTES["place"]}
    objects = torch.tensor([[0, 1, 4, 30, 30]])
    assert check(objects, "a brown block in the middle", attributes) == Judgment(2, 2, 3, 3, True)
    assert not check(objects, "a teal rectangle", attributes).truthful
    assert parse("a small rectangle", attributes) is None
    assert parse("a brown rectangle") is None
    assert stated_attributes("a teal block", attributes) == {"shape": "rectangle", "color": "teal"}


def test_no_word_means_two_things() -> None:
    words = [word for values in ATTRIBUTES.values() for value in values for word in words_for(value)]
    assert len(set(words)) == len(words)
    assert set(SYNONYMS) <= {value for values in ATTRIBUTES.values() for value in values} | {"rectangle"}
