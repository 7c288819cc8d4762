"""CharText: its parts, its rows from batch to batch, its vocabulary, and what it says about texts it cannot use."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from common.vocabulary import decode_chars, encode_chars
from datamodules.parts import corpus as module
from datamodules.text import CharText, TextBatch, Windows
from tests.conftest import DATA, REPOSITORY

Ranks = Callable[[int, int], None]
Make = Callable[..., CharText]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(text, …)`` is the data module of a text in a file."""

    def made(text: str | bytes, **options: Any) -> CharText:
        file = tmp_path / "corpus.txt"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        data = CharText(str(file), **{"batch_size": 2, "seq_len": 3} | options)
        data.setup()
        return data

    return made


def numbered(size: int) -> str:
    """A text in which every character is another one: its code is its place."""
    return "".join(chr(ord("一") + i) for i in range(size))


def places(data: CharText, codes: Tensor) -> Any:
    """The places of a :func:`numbered` text's characters; -100 stays."""
    points = torch.tensor([ord(char) - ord("一") for char in data.vocab])
    return torch.where(codes < 0, codes, points[codes.clamp_min(0)])


def numbered_data(make: Make, size: int, **options: Any) -> CharText:
    """The data module of a numbered text, with all of its characters known."""
    return make(numbered(size), vocab=list(numbered(size)), **options)


# Training.


@pytest.mark.parametrize("split", ["contiguous", "rows"])
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (3, 1), (4, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("size", [97, 120, 251])
def test_rows_go_on_from_batch_to_batch_and_stay_in_their_part(
    make: Make, be_rank: Ranks, split: str, batch_size: int, world_size: int, size: int
) -> None:
    options = {"seq_len": 4, "batch_size": batch_size, "split": split, "val_fraction": 0.2, "test_fraction": 0.1}
    seen: list[int] = []
    for rank in range(world_size):
        be_rank(rank, world_size)
        data = numbered_data(make, size, **options)
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) >= 1
        last: Tensor | None = None
        for k, batch in enumerate(batches):
            assert type(batch) is TextBatch
            assert batch.inputs.shape == batch.targets.shape == (batch_size, 4)
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            assert batch.fresh.dtype == torch.bool
            assert batch.fresh.tolist() == [k == 0] * batch_size
            inputs, targets = places(data, batch.inputs), places(data, batch.targets)
            assert torch.equal(targets, inputs + 1)
            if last is not None:
                assert torch.equal(inputs[:, 0], last + 1)
            last = inputs[:, -1]
            seen += targets.flatten().tolist()
    assert len(set(seen)) == len(seen)
    rows = batch_size * world_size
    assert set(seen) <= set(places(data, torch.from_numpy(data.part("train")).long()).tolist())
    # What is left out is less than a window, and one character, a row.
    assert len(data.part("train")) - len(seen) <= rows * 4 + rows


@pytest.mark.parametrize("split", ["contiguous", "rows"])
def test_ranks_read_the_rows_of_one_rank_alternately(make: Make, be_rank: Ranks, split: str) -> None:
    for part in ("train", "val", "test"):

        def batches(rank: int, world_size: int, part: str = part) -> list[TextBatch]:
            be_rank(rank, world_size)
            options = {"split": split, "eval_context": 5, "val_fraction": 0.3, "test_fraction": 0.2}
            data = numbered_data(make, 203, batch_size=4 // world_size, seq_len=4, **options)
            return list(getattr(data, f"{part}_dataloader")())

        whole, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
        assert len(whole) == len(first) == len(second)
        for batch, *halves in zip(whole, first, second, strict=True):
            for rank, half in enumerate(halves):
                for column, expected in zip(half, batch, strict=True):
                    assert torch.equal(column, expected[rank::2])


def test_training_goes_on_at_the_batch_where_it_stopped(make: Make) -> None:
    data = make("abcdefghij" * 20)
    begun = data.train_dataloader()
    batches = iter(begun)
    for _ in range(3):
        next(batches)
    resumed = data.train_dataloader()
    resumed.load_state_dict(begun.state_dict())
    rest = list(resumed)
    whole = list(data.train_dataloader())
    assert len(rest) == len(whole) - 3
    assert all(torch.equal(a, b) for x, y in zip(rest, whole[3:], strict=True) for a, b in zip(x, y, strict=True))
    assert not rest[0].fresh.any()


# Evaluation.


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(("seq_len", "eval_context"), [(4, 0), (4, 6), (5, 5), (7, 40), (50, 3)])
def test_each_target_is_scored_once_after_its_context(
    make: Make, be_rank: Ranks, seq_len: int, eval_context: int, batch_size: int, world_size: int
) -> None:
    rows = batch_size * world_size
    for num_val in (2, 3, 9, 31, 64, 65):
        train = rows * seq_len + 1
        size = train + num_val
        scored: Counter[int] = Counter()
        for rank in range(world_size):
            be_rank(rank, world_size)
            options = {"seq_len": seq_len, "eval_context": eval_context, "batch_size": batch_size}
            data = numbered_data(make, size, val_fraction=num_val / size, test_fraction=0.0, **options)
            start = data.corpus.length - len(data.part("val"))
            batches = list(data.val_dataloader())
            inputs = torch.cat([places(data, batch.inputs) for batch in batches], 1)
            targets = torch.cat([places(data, batch.targets) for batch in batches], 1)
            assert torch.stack([batch.fresh for batch in batches]).any(1).tolist() == [True] + [False] * (
                len(batches) - 1
            )
            assert batches[0].fresh.all()
            for row_inputs, row_targets in zip(inputs, targets, strict=True):
                here = (row_targets >= 0).nonzero().flatten()
                if not len(here):  # a row that a short part leaves empty
                    assert not row_inputs.gt(0).any()
                    continue
                first, last = int(here[0]), int(here[-1])
                assert len(here) == last - first + 1
                assert torch.equal(row_inputs[: last + 1], row_inputs[0] + torch.arange(last + 1))  # no padding before
                assert torch.equal(row_targets[here], row_inputs[here] + 1)
                assert first == min(eval_context, int(row_inputs[first]) - start)
                scored.update(row_targets[here].tolist())
        assert scored == Counter(range(start + 1, size))


def test_evaluation_reads_nothing_of_another_part(make: Make) -> None:
    data = numbered_data(make, 100, batch_size=3, seq_len=7, val_fraction=0.3, test_fraction=0.2, eval_context=4)
    for part, expected in (("val", range(50, 80)), ("test", range(80, 100))):
        batches = list(getattr(data, f"{part}_dataloader")())
        assert {int(i) for b in batches for i in places(data, b.inputs).flatten()} - {0} <= set(expected)


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_split_takes_the_end_of_each_row(make: Make, be_rank: Ranks, world_size: int) -> None:
    shares = {"val_fraction": 0.2, "test_fraction": 0.1}
    seen: dict[str, list[list[int]]] = {"train": [], "val": [], "test": []}
    for rank in range(world_size):
        be_rank(rank, world_size)
        data = numbered_data(make, 203, batch_size=4 // world_size, seq_len=6, split="rows", **shares)
        for part, rows in seen.items():
            batches = list(getattr(data, f"{part}_dataloader")())
            assert [bool(batch.fresh.all()) for batch in batches] == [True] + [False] * (len(batches) - 1)
            targets = torch.cat([places(data, batch.targets) for batch in batches], 1)
            rows += [row[row >= 0].tolist() for row in targets]
    starts = [0, 50, 100, 150]
    assert sorted(seen["train"]) == [list(range(s + 1, s + 31)) for s in starts]  # of 35: whole windows
    assert sorted(seen["val"]) == [list(range(s + 36, s + 45)) for s in starts]
    assert sorted(seen["test"]) == [list(range(s + 46, s + 50)) for s in starts]


def test_parts_are_those_of_exact_arithmetic(make: Make) -> None:
    data = make("ab" * 500, val_fraction=0.1, test_fraction=0.05)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [850, 100, 50]
    for val, test, sizes in ((0.1, 0.0, [900, 100, 0]), (0.9, 0.0, [100, 900, 0]), (0.05, 0.9, [50, 50, 900])):
        data = make("ab" * 500, val_fraction=val, test_fraction=test)
        assert [len(data.part(part)) for part in ("train", "val", "test")] == sizes


# Random windows.


def trainer_at(epoch: int, batch: int) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    fit_loop = SimpleNamespace(batch_idx=batch - 1)
    return SimpleNamespace(current_epoch=epoch, fit_loop=fit_loop, strategy=strategy, training=True)


def drawn(data: CharText, epoch: int) -> list[TextBatch]:
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    batches = []
    for i, batch in enumerate(loader):
        data.trainer = trainer_at(epoch, i)
        batches.append(data.on_after_batch_transfer(batch, 0))
    return batches


@pytest.mark.parametrize("split", ["contiguous", "rows"])
def test_random_windows_begin_anywhere_in_their_part(make: Make, split: str) -> None:
    data = numbered_data(make, 120, batch_size=2, seq_len=5, windows="random", split=split)
    # From the last windows' ends no whole one would begin; they are those of the text, or of each row.
    segments = [(0, 102)] if split == "contiguous" else [(0, 51), (60, 111)]
    part = {i for start, end in segments for i in range(start, end)}
    begins: Counter[int] = Counter()
    for epoch in range(60):
        batches = drawn(data, epoch)
        for batch in batches:
            assert batch.inputs.shape == batch.targets.shape == (2, 5)
            assert batch.fresh.all()
            inputs, targets = places(data, batch.inputs), places(data, batch.targets)
            assert torch.equal(inputs, inputs[:, :1] + torch.arange(5))
            assert torch.equal(targets, inputs + 1)
            assert set(targets.flatten().tolist()) <= part
            begins.update(inputs[:, 0].tolist())
    assert set(begins) == {i for start, end in segments for i in range(start, start + ((end - start) // 5 - 1) * 5)}
    assert drawn(data, 3)[1].inputs.tolist() == drawn(data, 3)[1].inputs.tolist() != drawn(data, 4)[1].inputs.tolist()


def test_random_windows_are_those_of_one_rank(make: Make, be_rank: Ranks) -> None:
    def batches(rank: int, world_size: int) -> list[TextBatch]:
        be_rank(rank, world_size)
        return drawn(numbered_data(make, 150, batch_size=4 // world_size, seq_len=4, windows="random"), 1)

    for whole, first, second in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(first.inputs, whole.inputs[::2])
        assert torch.equal(second.targets, whole.targets[1::2])


def test_evaluation_is_not_cut(make: Make) -> None:
    data = make("abcdefghij" * 20, windows="random")
    batch = next(iter(data.val_dataloader()))
    data.trainer = SimpleNamespace(training=False)
    assert data.on_after_batch_transfer(batch, 0) is batch


# The vocabulary.


def test_vocabulary_is_that_of_the_training_part_alone(make: Make, tmp_path: Path) -> None:
    text = "abc\n" * 25
    assert make(text + "abc", unknown="error").vocab == ["\n", "a", "b", "c"]
    with pytest.raises(ValueError, match="expected") as error:
        make(text + "xé", unknown="error")
    assert str(error.value) == (
        f"{tmp_path / 'corpus.txt'}: character 100: 'x' (U+0078) does not occur in the training part; "
        "expected unknown=unk, or more text"
    )
    assert "x" in make("a" * 84 + "x" + "a" * 15).vocab  # the training part's last character
    with pytest.raises(ValueError, match=r"character 85: 'x'"):
        make("a" * 85 + "x" + "a" * 14, unknown="error")
    data = make(text + "xé", unknown="unk", val_fraction=0.1, test_fraction=0.1)
    assert data.vocab == ["<unk>", "\n", "a", "b", "c"]
    assert data.part("test")[-2:].tolist() == [0, 0]
    assert 0 not in data.part("train")
    assert "é" in make(text + "é", split="rows").vocab  # its parts depend on the number of rows


def test_old_vocabulary_serves_a_new_text(make: Make, tmp_path: Path) -> None:
    vocab = ["<unk>", "a", "b", "c", "z"]
    torch.save({"state_dict": {}, "hyper_parameters": {"vocab": vocab}}, tmp_path / "old.ckpt")
    (tmp_path / "old.json").write_text(json.dumps(vocab))
    for options in ({"vocab": vocab}, {"vocab_from": "old.ckpt"}, {"vocab_from": str(tmp_path / "old.json")}):
        data = make("cab" * 40, **options)
        assert data.vocab == vocab
        assert data.unknown == "unk"
        assert data.part("train")[:3].tolist() == [3, 1, 2]
    message = r"character 1: 'y' \(U\+0079\) is not one of the given vocabulary's 5; expected unknown"
    with pytest.raises(ValueError, match=message):
        make("ay" + "cab" * 40, vocab=vocab, unknown="error")
    assert make("ay" + "cab" * 40, vocab=vocab).unknown == "unk", "it has it"
    assert make("ay" + "cab" * 40, vocab=vocab, unknown="unk").part("train")[:3].tolist() == [1, 0, 3]
    with pytest.raises(ValueError, match="expected a text without it"):
        make("ay" + "cab" * 40, vocab=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"unknown='unk': expected a vocabulary that has '<unk>'"):
        make("cab" * 40, vocab=["a", "b", "c"], unknown="unk")
    for broken in (["a", "bc"], ["a", "a"], []):
        with pytest.raises(ValueError, match="expected single characters, each once"):
            make("cab" * 40, vocab=broken)
    with pytest.raises(ValueError, match=r"vocab_from=.* with a vocab: expected only one of them"):
        make("cab" * 40, vocab=vocab, vocab_from="old.json")


def test_rare_characters_of_a_text_of_ones_own_are_unknown_and_counted(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        data = make("abc\n" * 30 + "É!É?*É-")
    assert data.vocab == ["<unk>", "\n", "a", "b", "c"]
    assert (data.part("test") == 0).sum() == 7
    assert caplog.messages == [
        "corpus: 7 of 127 characters are not in the vocabulary and become <unk>: 'É' (U+00C9), '!' (U+0021), "
        "'?' (U+003F) and 2 more"
    ]
    assert CharText(limit=30_000).unknown == "error", "published results have a vocabulary without it"


@pytest.mark.parametrize("before", [["a", "b", "c"], ["<unk>", "a", "b", "c"]])
def test_an_old_vocabulary_is_extended_by_the_new_texts_characters(
    make: Make, caplog: pytest.LogCaptureFixture, before: list[str]
) -> None:
    Path("old.json").write_text(json.dumps(before))
    text = "yab" + "cab" * 40 + "z"  # z is in the test part only
    with caplog.at_level("INFO"):
        data = make(text, vocab_from="old.json")
    assert data.vocab == ["<unk>", "a", "b", "c", "y"]
    new = [char for char in ("<unk>", "'y' (U+0079)") if char not in before]
    said = f"vocab_from=old.json: {len(new)} more than its {len(before)} characters: {', '.join(new)}"
    assert said in caplog.messages
    assert "1 of 124 characters are not in the vocabulary and become <unk>: 'z'" in caplog.text
    assert make(text, vocab_from="old.json", unknown="unk").vocab == ["<unk>", "a", "b", "c"]
    with pytest.raises(ValueError, match=r"'y' .* is not one of the given vocabulary's"):
        make(text, vocab_from="old.json", unknown="error")


def test_broken_vocabulary_files_are_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text("[1, 2]")
    (tmp_path / "broken.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    # Lists alone are harmless, but no checkpoint may bring code along.
    content = {"state_dict": {}, "hyper_parameters": {"vocab": ["a", "b", "c"]}, "code": print}
    torch.save(content, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match=r"vocab_from=numbers.json: its vocabulary is \[1, 2\], expected a list"):
        make("cab" * 40, vocab_from="numbers.json")
    for name, reason in {
        "broken.ckpt": "broken",
        "other.ckpt": "its vocabulary is None, expected a list",
        "code.ckpt": "refused, because it holds more than tensors and plain data",
    }.items():
        with pytest.raises(ValueError, match=f"vocab_from={name}: {reason}"):
            make("cab" * 40, vocab_from=name)
    with pytest.raises(FileNotFoundError, match=r"vocab_from=brken.ckpt: no such file; .*did you mean 'broken.ckpt'"):
        make("cab" * 40, vocab_from="brken.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no such file; did you mean 'numbers.json'"):
        make("cab" * 40, vocab_from="number.json")


def test_codes_of_a_text_and_back() -> None:
    vocab = ["<unk>", "\n", "a", "é", "𝄞"]
    codes = encode_chars("a𝄞é\n", vocab)
    assert codes.dtype == torch.int64
    assert codes.tolist() == [2, 4, 3, 1]
    assert decode_chars(codes, vocab) == "a𝄞é\n"
    assert encode_chars("", vocab).shape == (0,)
    assert encode_chars("ab", vocab).tolist() == [2, 0]
    assert decode_chars([2, 0], vocab) == "a<unk>"
    for options in ({"vocab": vocab, "unknown": "error"}, {"vocab": vocab[1:]}):
        with pytest.raises(ValueError, match=r"character 1: 'b' \(U\+0062\) is not one of the vocabulary's \d"):
            encode_chars("ab", **options)


# Files.


def test_text_is_taken_as_it_is(make: Make) -> None:
    text = "\r\nSatz é€𝄞\t\n" * 12
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
        data = make(content)
        assert "".join(data.vocab[code] for code in data.codes) == text
        assert data.codes.dtype == np.uint8
        assert data.vocab == ["<unk>", *sorted(set(text))]


def test_characters_are_whole_at_the_edges_of_chunks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "aé€𝄞" * 30
    for chunk in (1, 2, 3, 5, 7):
        monkeypatch.setattr(module, "CHUNK", chunk)
        data = make("\ufeff" + text)
        assert "".join(data.vocab[code] for code in data.codes) == text
        with pytest.raises(ValueError, match=r"corpus.txt: byte 13: not UTF-8"):
            make(b"\xef\xbb\xbf" + "aé€𝄞".encode() + b"\xff" + text.encode())


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_codes_have_the_smallest_type(make: Make, size: int, dtype: type) -> None:
    assert numbered_data(make, size).codes.dtype == dtype


def test_folders_and_globs_are_read_in_the_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "books"
    (folder / "sub").mkdir(parents=True)
    for name, text in (("b.txt", "bb" * 20), ("a.txt", "aa" * 20), ("sub/c.txt", "ab" * 20), ("notes.md", "zz")):
        (folder / name).write_text(text)
    expected = "aa" * 20 + "\n" + "bb" * 20 + "\n" + "ab" * 20
    for source in (folder, folder / "**" / "*.txt"):
        data = CharText(str(source), batch_size=1, seq_len=3)
        assert "".join(data.vocab[code] for code in data.codes) == expected
    assert CharText(str(folder), batch_size=1, seq_len=3).corpus_name == "books"
    assert CharText(str(folder / "[ab].txt"), batch_size=1, seq_len=3).corpus.length == 81
    (folder / "sub").rename(tmp_path / "books [x]")
    (tmp_path / "books [x]" / "D.TXT").write_text("cd" * 20)
    (tmp_path / "books [x]" / ".hidden.txt").write_text("zz" * 20)
    for source in ("books [x]", "books [x]/*.[tT]*", "~/books [x]"):
        assert CharText(source, batch_size=1, seq_len=3).corpus.length == 81, source
    (tmp_path / "books [x]").rename(folder / "sub")
    (folder / "sub" / "D.TXT").unlink()
    assert CharText(str(folder), batch_size=1, seq_len=3, limit=50).corpus.length == 50
    (folder / "sub" / "c.txt").write_text("ab" * 18 + "aaxb")
    with pytest.raises(ValueError, match=r"c.txt: character 38: 'x'"):
        CharText(str(folder), batch_size=1, seq_len=3, unknown="error").setup()


def test_no_two_files_share_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, text in (("a", "one"), ("b", "two\n"), ("c", "three\r"), ("d", ""), ("e", "four"), ("f", "five")):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    options = {"batch_size": 1, "seq_len": 1, "test_fraction": 0.0, "vocab": [*"\n\refhinortuvw"]}
    with caplog.at_level("INFO"):
        data = CharText(str(tmp_path), **options)
    assert "".join(data.vocab[code] for code in data.codes) == "one\ntwo\nthree\rfour\nfive"
    assert f"{tmp_path.name}: 2 of 6 files did not end with a line end: one was added to each" in caplog.messages
    cut = CharText(str(tmp_path), limit=21, **options)
    assert len(cut.codes) == 21
    assert len(cut.corpus.completed) == 2
    assert len(CharText(str(tmp_path), limit=18, **options).corpus.completed) == 1, "the other is beyond the limit"


def test_standard_library_has_one_alphabet() -> None:
    data = CharText(limit=30_000)
    assert data.corpus_name == "python"
    assert data.vocab == ["\n", *map(chr, range(32, 127))]
    whole = CharText()
    assert whole.vocab == data.vocab
    assert 1_500_000 < whole.corpus.length < 2_500_000
    text = "".join(data.vocab[code] for code in data.codes)
    assert len(text) == 30_000
    assert "ascii_lowercase" in text


def test_tiny_shakespeare() -> None:
    if not (DATA / "tiny_shakespeare" / "input.txt").exists():
        pytest.skip(f"no tiny_shakespeare in {DATA}")
    data = CharText("tiny_shakespeare", root=str(DATA), test_fraction=0.0)
    assert data.corpus_name == "tiny_shakespeare"
    assert data.corpus.length == 1_115_394
    assert len(data.vocab) == 65
    assert (len(data.part("train")), len(data.part("val"))) == (1_003_854, 111_540)  # as nanoGPT has it
    assert "".join(data.vocab[code] for code in data.codes[:14]) == "First Citizen:"


def test_a_download_that_breaks_off_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(*args: Any, **options: Any) -> Any:
        raise IncompleteRead(b"half")

    monkeypatch.setattr("urllib.request.urlopen", breaks_off)
    message = r"input.txt: not found; download it from https://.* to this path .*IncompleteRead"
    with pytest.raises(FileNotFoundError, match=message):
        CharText("tiny_shakespeare", root=str(tmp_path))
    assert not list(tmp_path.rglob("*.txt"))


def test_download_is_checked_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served.txt"
    served.write_text("to be or not " * 40)
    monkeypatch.setattr(module, "TINY_SHAKESPEARE", served.as_uri())
    monkeypatch.setenv("LIT_DATA", str(tmp_path / "data"))
    file = tmp_path / "data" / "tiny_shakespeare" / "input.txt"

    def made() -> CharText:
        return CharText("tiny_shakespeare", batch_size=2, seq_len=4)

    with pytest.raises(ValueError, match=rf"{served.as_uri()}: for .*input.txt: its SHA-256 is .*, expected 86c4e6aa"):
        made()
    assert not file.parent.exists() or not list(file.parent.iterdir())
    monkeypatch.setattr(module, "TINY_SHAKESPEARE_SHA256", hashlib.sha256(served.read_bytes()).hexdigest())
    assert made().corpus.length == 520
    assert [path.name for path in file.parent.iterdir()] == ["input.txt"]
    served.unlink()
    assert made().corpus.length == 520  # it is there
    file.write_text("something else")
    with pytest.raises(ValueError, match=r"input.txt: its SHA-256 is .*; delete it"):
        made()
    file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        made()
    assert str(file) in str(error.value)
    assert served.as_uri() in str(error.value)
    assert "download it from" in str(error.value)
    assert "\n" not in str(error.value)


# Large texts.


def test_large_texts_are_mapped_from_disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = "abcdefghijé\n" * 50
    small = make(text)
    monkeypatch.setattr(module, "MEMORY_LIMIT", 100)
    monkeypatch.setattr(module, "CHUNK", 64)
    large = make(text)
    folder = tmp_path / "cache" / "lit-baselines"
    (file,) = folder.iterdir()
    assert isinstance(large.codes, np.memmap)
    assert np.array_equal(large.codes, small.codes)
    assert file.stat().st_size == len(text)
    for part in ("train_dataloader", "val_dataloader"):
        pairs = zip(getattr(small, part)(), getattr(large, part)(), strict=True)
        assert all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))
    assert large.fingerprint() == small.fingerprint()
    # It is found again, made anew when it is not whole, and another one's when the text or the vocabulary is.
    stamp = file.stat().st_mtime_ns
    make(text, batch_size=3)
    os.utime(tmp_path / "corpus.txt", ns=(1, 1))
    corpus = CharText(str(tmp_path / "corpus.txt"), batch_size=2, seq_len=3)
    corpus.setup()
    assert len(list(folder.iterdir())) >= 2
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.stat().st_mtime_ns >= stamp
    newest.write_bytes(b"torn")
    again = CharText(str(tmp_path / "corpus.txt"), batch_size=2, seq_len=3)
    assert np.array_equal(again.codes, small.codes)
    before = len(list(folder.iterdir()))
    other = CharText(str(tmp_path / "corpus.txt"), batch_size=2, seq_len=3, vocab=["z", *small.vocab])
    assert np.array_equal(other.codes, small.codes + 1)
    assert len(list(folder.iterdir())) == before + 1


def test_a_text_that_changes_while_it_is_read_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MEMORY_LIMIT", 0)
    file = tmp_path / "corpus.txt"
    file.write_text("abc" * 40)
    data = CharText(str(file), batch_size=2, seq_len=3)
    file.write_text("abc" * 41)
    with pytest.raises(ValueError, match=r"corpus.txt: 123 characters, expected 120; it has just changed"):
        data.setup()
    assert not list((tmp_path / "cache" / "lit-baselines").iterdir())


MEASURE = """
import resource, sys
from datamodules.text import CharText
import datamodules.parts.corpus as module
module.MEMORY_LIMIT = 2**20
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = CharText(sys.argv[1], limit=100_000)
small.setup(), next(iter(small.train_dataloader()))
before = peak()
data = CharText(sys.argv[1], batch_size=50, seq_len=50)
data.setup()
data.fingerprint()
loader = data.train_dataloader()
next(iter(loader)), len(loader), next(iter(data.val_dataloader()))
print((peak() - before) / 1024, data.corpus.length)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_large_texts_are_never_held_whole(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    block = ("".join(chr(code) for code in range(32, 127)) + "äöü\n") * 10_000
    size = 120 * 2**20
    with open(file, "w", encoding="utf-8") as out:
        while out.tell() < size:
            out.write(block)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", MEASURE, str(file)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown, length = map(float, answer.stdout.split())
    file.unlink()
    assert length > 100 * 2**20
    assert grown < 90  # MiB


# Mistakes.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"seq_len": 0}, "seq_len=0: expected at least 1"),
        ({"eval_context": -1}, "eval_context=-1: expected at least 0"),
        ({"limit": 0}, "limit=0: expected at least 1"),
        ({"split": "row"}, "split='row': expected 'contiguous' or 'rows'"),
        ({"windows": "all"}, "windows='all': expected 'stateful' or 'random'"),
        ({"unknown": "skip"}, "unknown='skip': expected 'error' or 'unk'"),
        ({"val_fraction": 0.0}, "val_fraction=0.0: expected a number in (0, 1)"),
        ({"val_fraction": 1.5}, "val_fraction=1.5: expected a number in (0, 1)"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1: expected a number in [0, 1)"),
        (
            {"val_fraction": 0.6, "test_fraction": 0.5},
            "val_fraction=0.6 and test_fraction=0.5: expected less than 1 together",
        ),
    ],
)
def test_arguments_out_of_range_are_named(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        make("abc" * 100, **options)
    assert str(error.value).startswith(message)


def test_short_texts_are_refused_with_what_they_need(make: Make, be_rank: Ranks) -> None:
    def refused(size: int, **options: Any) -> str:
        with pytest.raises(ValueError, match="expected") as error:
            make("ab" * (size // 2), **{"val_fraction": 0.2, "test_fraction": 0.0} | options)
        return str(error.value).partition(": ")[2]

    make("ab" * 50, batch_size=4, seq_len=19, val_fraction=0.2, test_fraction=0.0)  # 77 of 80 characters
    message = refused(100, batch_size=4, seq_len=20)
    assert message == (
        "its train part has 80 of its 100 characters, expected at least 81 for 4 rows of seq_len=20: "
        "see batch_size, seq_len and the fractions"
    )
    assert "has 80 of its 100 characters, expected at least 84" in refused(100, batch_size=4, split="rows", seq_len=20)
    assert "expected at least 95" in refused(100, batch_size=4, windows="random", seq_len=19)
    assert "its val part has 1 of" in refused(100, val_fraction=0.01)
    assert "its test part has 1 of" in refused(100, test_fraction=0.01)
    make("ab" * 50, batch_size=2, seq_len=20)
    be_rank(1, 2)
    assert "expected at least 81 for 4 rows" in refused(100, batch_size=2, seq_len=20)


@pytest.mark.parametrize("windows", ["stateful", "random"])
@pytest.mark.parametrize("split", ["contiguous", "rows"])
def test_the_shortest_text_that_is_not_refused_gives_a_batch(make: Make, split: str, windows: str) -> None:
    for size in range(8, 120):
        try:
            data = make("ab" * (size // 2), batch_size=3, seq_len=4, split=split, windows=windows, test_fraction=0.0)
        except ValueError:
            continue
        assert len(list(data.train_dataloader())) >= 1
        assert len(list(data.val_dataloader())) >= 1
        return
    pytest.fail("every text was refused")


def test_empty_and_missing_files_are_named(make: Make, tmp_path: Path) -> None:
    for content in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(ValueError, match=r"corpus.txt: empty, expected text"):
            make(content)
    with pytest.raises(FileNotFoundError, match=r"no such file, folder or glob; did you mean 'corpus.txt'"):
        CharText("corpus.text")
    with pytest.raises(FileNotFoundError, match="did you mean 'tiny_shakespeare'"):
        CharText("tinyshakespeare")
    (tmp_path / "books").mkdir()
    with pytest.raises(FileNotFoundError, match=r"source='books': no \*.txt file in it, expected some"):
        CharText("books")
    (tmp_path / "books" / "a.md").write_text("a")
    with pytest.raises(FileNotFoundError, match=r"in it, but 1 \*.md; 'books/\*\*/\*.md' takes these"):
        CharText("books")
    for empty in ("", " "):
        with pytest.raises(ValueError, match=f"source='{empty}': expected a file, a folder, a glob, 'python' or"):
            CharText(empty)


# In a run.


def test_fingerprint_tells_texts_apart(make: Make) -> None:
    print_of = {text: make(text * 40).train_dataloader().fingerprint() for text in ("abc", "abd", "bac")}
    assert len(set(print_of.values())) == 3  # abc and abd have the same codes
    assert make("abc" * 40).train_dataloader().fingerprint() == print_of["abc"]
    assert make("abc" * 40, windows="random").train_dataloader().fingerprint() == print_of["abc"]


class Counting(LightningModule):
    """Counts the targets that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Counter[str] = Counter()

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        self.seen["train"] += int((batch.targets >= 0).sum())
        return self.weight * 1.0

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self.seen["val"] += int((batch.targets >= 0).sum())

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self.seen["test"] += int((batch.targets >= 0).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("windows", ["stateful", "random"])
@pytest.mark.parametrize("test_fraction", [0.0, 0.1])
def test_a_trainer_goes_through_all_parts(make: Make, windows: str, test_fraction: float) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    data = make("abcdefghij" * 20, windows=windows, test_fraction=test_fraction)
    model, trainer = Counting(), Trainer(max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert model.seen["train"] == len(data.train_dataloader()) * 2 * 3
    assert model.seen["val"] == 19
    assert model.seen["test"] == (19 if test_fraction else 0)


def test_windows_count_up_row_by_row() -> None:
    codes = np.arange(20, dtype=np.uint8)
    source = Windows(codes, np.array([0, 10]), 3, 2, 7, fingerprint=lambda: 0)
    assert len(source) == 4
    batch = source[torch.tensor([3, 0])]
    assert batch.inputs.tolist() == [[13, 14, 15], [0, 1, 2]]
    assert batch.targets.tolist() == [[14, 15, 16], [1, 2, 3]]
    assert batch.fresh.tolist() == [False, True]
    padded = Windows(codes + 1, np.array([0, 10]), 3, 2, np.array([4, 5]), np.array([0, 2]), fingerprint=lambda: 0)
    first, second = padded[torch.tensor([0, 1])], padded[torch.tensor([2, 3])]
    assert first.inputs.tolist() == [[1, 2, 3], [11, 12, 13]]
    assert first.targets.tolist() == [[2, 3, 4], [-100, -100, 14]]
    assert second.inputs.tolist() == [[4, 0, 0], [14, 15, 0]]
    assert second.targets.tolist() == [[5, -100, -100], [15, 16, -100]]
