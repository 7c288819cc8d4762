"""The official accuracy of VQA v1 and v2: the score of an answer against those of ten people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

NUM_HUMANS = 10

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # the apostrophe and the colon are not in it
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a hundred lines otherwise
# Each is restored where exactly one of its apostrophes is lost, and one goes the wrong way in the official table too.
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTED for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def normalize_answer(answer: str) -> str:
    """An answer as the public VQA evaluation code (``vqaEval.py``) compares it, including its quirks.

    1. Newlines and tabs become spaces, and the ends are stripped.
    2. A punctuation mark is removed *everywhere* if it stands beside a space *anywhere*, or if the text has a comma
       between two digits, which removes all marks: ``1,000`` is ``1000``. Otherwise it becomes a space: ``t-shirt`` is
       ``t shirt``. Apostrophes and colons stay.
    3. A period is removed unless a digit follows it. The code means to keep it *between* digits, but its look-behind
       ``(?!<=\\d)`` is written as a look-ahead for the characters ``<=``, which always holds: so ``.5`` stays and
       ``2.`` becomes ``2``. And as the regular expression's flag is passed in the place of the count, only the first 32
       are removed.
    4. Lower case; *none*, *zero* … *ten* become digits, *a*, *an* and *the* are dropped, a lost apostrophe is restored
       (``dont`` is ``don't``). So the answer ``a`` is empty.
    """
    answer = _strip(answer)
    has_digit_comma = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or has_digit_comma else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def soft_scores(answers: Sequence[str], normalize: Callable[[str], str] = normalize_answer) -> dict[str, float]:
    """The official accuracy of each distinct answer among the ten answers to a question.

    It is the mean of min(number of people who gave the answer / 3, 1) over the ten subsets that leave one person out:
    0.3, 0.6, 0.9 and 1 for one, two, three and more people. Answers are normalized first, *unless all ten are the
    same*: then the evaluation normalizes neither them nor the prediction, and "0" does not match ten times "none".

    Of fewer people than ten each counts for more: n of N for 10 n/N of ten. So one alone is right.

    Source: Antol et al. 2015 and the public VQA evaluation code. Versions of that code differ: an early one normalizes
    every prediction, and of the ten answers, unless all are the same, only the punctuation.
    """
    answers = [_strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        answers = [normalize(answer) for answer in answers]
    people = len(answers)
    if people < NUM_HUMANS:
        return {answer: min(1.0, n * NUM_HUMANS / people / 3) for answer, n in Counter(answers).items()}
    return {
        # Of the subsets, n leave out one who gave this answer.
        answer: (n * min((n - 1) / 3, 1) + (people - n) * min(n / 3, 1)) / people
        for answer, n in Counter(answers).items()
    }
