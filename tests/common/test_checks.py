from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from common.checks import at_least, more_than, nearest, one_of, whole, within

Color = Literal["red", "green", "blue"]


@pytest.mark.parametrize(
    "check",
    [
        lambda: at_least(1, layers=1, hidden=7.5, width=math.inf, dim=None),
        lambda: whole(1, layers=1, hidden=np.int64(7), dim=None),
        lambda: more_than(0, temperature=1e-9, sigma=None),
        lambda: within("[0, 1]", p=0, q=1, r=0.5, s=None),
        lambda: within("(0, 1)", p=1e-9),
        lambda: within("[0, 1)", p=0),
        lambda: within("(0, 1]", p=1),
        lambda: one_of(Color, color="red", other="blue"),
        lambda: one_of({"a": 1, "b": 2}, key="b"),
        lambda: one_of(range(2, 5), factor=4),
    ],
)
def test_what_is_in_range_passes(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (at_least, {"layers": 0}, "layers=0: expected at least 1"),
        (at_least, {"layers": 1, "hidden": -2}, "hidden=-2: expected at least 1"),
        (at_least, {"weight": math.nan}, "weight=nan: expected at least 1"),
        (whole, {"n": 2.0}, "n=2.0: expected a whole number"),
        (whole, {"n": 1, "steps": 0}, "steps=0: expected at least 1"),
        (more_than, {"sigma": 1}, "sigma=1: expected more than 1"),
        (more_than, {"sigma": math.inf}, "sigma=inf: expected more than 1"),
        (more_than, {"sigma": math.nan}, "sigma=nan: expected more than 1"),
    ],
)
def test_numbers_beyond_a_bound(check: Callable[..., None], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(1, **arguments)


@pytest.mark.parametrize("check", [at_least, more_than])
def test_a_note_follows_the_bound(check: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match=r"limit=-1: expected (at least|more than) 0, or null for all$"):
        check(0, "or null for all", limit=-1)


@pytest.mark.parametrize(
    ("interval", "number"),
    [
        ("[0, 1]", -0.1),
        ("[0, 1]", 1.1),
        ("(0, 1)", 0),
        ("(0, 1)", 1),
        ("[0, 1)", 1),
        ("(0, 1]", 0),
        ("[0, 1]", math.nan),
    ],
)
def test_numbers_outside_of_an_interval(interval: str, number: float) -> None:
    message = f"share={number}: expected a number in {interval}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        within(interval, share=number)


@pytest.mark.parametrize(
    ("choices", "value", "message"),
    [
        (Color, "gren", "name='gren': expected 'red', 'green' or 'blue'; did you mean 'green'?"),
        (Color, "x", "name='x': expected 'red', 'green' or 'blue'"),
        (Color, None, "name=None: expected 'red', 'green' or 'blue'"),
        (Color, ["red"], "name=['red']: expected 'red', 'green' or 'blue'"),
        (Literal["red"], "blue", "name='blue': expected 'red'"),
        ((1, 2, 3), 11, "name=11: expected 1, 2 or 3"),
    ],
)
def test_a_value_that_is_no_choice(choices: Any, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        one_of(choices, name=value)


def test_the_nearest_name() -> None:
    assert nearest("hiden", ["hidden", "layers"]) == "; did you mean 'hidden'?"
    assert nearest("momentum", ["hidden", "layers"]) == ""
    assert nearest("x", []) == ""


@pytest.mark.parametrize("name", ["low", "note", "choices", "interval"])
def test_arguments_may_have_any_name(name: str) -> None:
    at_least(0, **{name: 1})
    more_than(0, **{name: 1})
    within("[0, 1]", **{name: 1})
    one_of((1,), **{name: 1})
