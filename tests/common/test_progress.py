"""What is said of something that takes long."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rich.console

from common import progress
from common.progress import Meter, in_words, tracked


def test_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, be_rank: Callable[[int, int], None]
) -> None:
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level("INFO"):
        assert list(tracked("abcdefgh", "decoding")) == list("abcdefgh")
        said = [record.getMessage() for record in caplog.records]
        assert said == ["decoding: 3 of 8, 67 s left", "decoding: 7 of 8, 11 s left"]
        be_rank(1, 2)
        assert list(tracked("abcdefgh", "decoding")) == list("abcdefgh")
    assert len(caplog.records) == 2


def test_a_bar_on_a_terminal_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    assert list(tracked("abc", "decoding")) == list("abc")
    assert capsys.readouterr().out == "", "nothing of what is quick"
    monkeypatch.setattr(progress, "PATIENCE", -1)
    monkeypatch.setattr(progress, "BETWEEN", -1)
    with caplog.at_level("INFO"):
        assert list(tracked("abc", "decoding")) == list("abc")
    assert "decoding" in capsys.readouterr().out
    assert not caplog.records


def test_what_need_not_be_done_says_nothing_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0, 40, 80])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    said: list[str] = []
    with Meter(3000, "a.png", said.append) as meter:
        meter.advance(400)
        meter.skip(1600)
        meter.advance(400, "b.png")
    assert said == ["a.png: 400 of 3,000, 4 min left", "b.png: 800 of 1,400, 60 s left"]
    assert in_words(9000) == "2.5 h"
