"""Sequences: lines of a text, points of sketches and rows of images as batches of different lengths."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common.vocabulary import decode_chars
from datamodules.images import Digits
from datamodules.parts import loader, text_lines
from datamodules.sequences import ImageRows, LineTable, SketchSequences, TextLines, positions_of
from datamodules.sketches import Glyphs, to_stroke_5


def lines_of(data: TextLines, part: str) -> list[str]:
    data.setup()
    table = data.parts[part]
    return [decode_chars(table.line(i).tolist(), data.vocab) for i in range(len(table))]


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> Callable[..., TextLines]:
    """``text(content, …)``: the lines of a text with these characters, a fifth of which validate and a fifth test."""

    def make(content: str, **options: Any) -> TextLines:
        shares = {"val_fraction": 0.2, "test_fraction": 0.2, "batch_size": 2, "max_length": 10}
        return TextLines(write(tmp_path / "text.txt", content), **{**shares, **options})

    return make


# ---- lines -------------------------------------------------------------------------------------------------------


def test_a_line_is_of_the_part_in_which_it_begins(text: Callable[..., TextLines]) -> None:
    # Fifty characters: training ends in the middle of "bcde", which begins at 27, and validation at 40, before "dd".
    content = "abcde\nabcd\nabc\nab\na\ncccccc\nbcde\ncccc\nccc\ndd\neee\nee\n"
    data = text(content)
    begins, place = {}, 0
    for line in content.split("\n"):
        begins.setdefault(line, place)
        place += len(line) + 1
    ends = {"train": len(content) * 0.6, "val": len(content) * 0.8, "test": len(content)}
    start = 0.0
    for part, end in ends.items():
        expected = [line for line, place in begins.items() if line and start <= place < int(end)]
        assert lines_of(data, part) == expected
        start = int(end)
    assert "\n" not in data.vocab
    assert data.vocab == ["<unk>", *"abcde"]


def test_a_line_that_begins_where_a_part_ends_is_of_the_next(text: Callable[..., TextLines]) -> None:
    data = text("abc\nabd\nabe\nacd\nace\n")  # twenty characters: 12, 4 and 4
    assert [lines_of(data, part) for part in ("val", "test")] == [["acd"], ["ace"]]


def test_no_line_is_in_two_parts_or_twice_in_one(text: Callable[..., TextLines]) -> None:
    data = text("abc\nabc\nab\nbca\ncab\nabc\na\nabc\nbb\nabc\nbb\ncc\nabc\nbb\ncc\nca\n")
    every = [line for part in ("train", "val", "test") for line in lines_of(data, part)]
    assert len(every) == len(set(every))
    assert lines_of(data, "train") == ["abc", "ab", "bca", "cab", "a", "bb"]
    assert lines_of(data, "test") == ["ca"], "'abc' and 'bb' have been trained on, 'cc' validates"


def test_lines_of_other_lengths_are_left_out(text: Callable[..., TextLines]) -> None:
    content = "a\nab\nabc\nabcd\n\n" * 3 + "bc\nbcd\nca\ncab\n" + "cb\ncba\nc\n"
    data = text(content, min_length=2, max_length=3)
    every = [line for part in ("train", "val", "test") for line in lines_of(data, part)]
    assert {len(line) for line in every} == {2, 3}
    assert data.longest == 3
    assert "" in lines_of(text(content, min_length=0), "train"), "an empty line is one if it is asked for"


def test_windows_line_ends_belong_to_no_line(text: Callable[..., TextLines]) -> None:
    unix = "ab\nabc\na\nb\nc\nca\nac\ncb\nba\nbac\n"
    expected = {line for line in unix.split("\n") if line}
    data = text(unix.replace("\n", "\r\n"))
    assert {line for part in ("train", "val", "test") for line in lines_of(data, part)} == expected


def test_every_kind_of_line_end(text: Callable[..., TextLines], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = text("ab\rabc\r\n\r\na\n\nb\rc\rca\r\nac\r\r\ncb\nba\rbac", unknown="error")
        found = [line for part in ("train", "val", "test") for line in lines_of(data, part)]
    assert found == ["ab", "abc", "a", "b", "c", "ca", "ac", "cb", "ba", "bac"]
    assert data.vocab == ["a", "b", "c"]
    assert data.sample_names("test")["line"][-1] == 13
    assert caplog.messages == [
        "text: 10 of 13 lines kept, 19 of 19 characters; left out: 3 shorter than 1; 6 train, 2 val, 2 test, split by "
        "position"
    ]


def test_what_is_left_out_is_counted(text: Callable[..., TextLines], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        text("a\nab\nabc\na\n\na\nab\nabcdefghijk\n" + "c\nd\ne\nf\ng\nh\n", split="random").setup()
    assert caplog.messages == [
        "text: 9 of 14 lines kept, 12 of 27 characters; left out: 1 longer than 10, 1 shorter than 1, 3 duplicates; "
        "5 train, 2 val, 2 test, split at random (split_seed 0)"
    ]


def test_lines_in_order_are_split_at_random_and_the_same_each_time(text: Callable[..., TextLines]) -> None:
    words = [f"{a}{b}" for a in "abcdefghij" for b in "qrstuvwxyz"]
    whole = "\n".join(words)
    parts = {part: lines_of(text(whole, split="random"), part) for part in ("train", "val", "test")}
    assert sorted(line for lines in parts.values() for line in lines) == words
    assert [len(lines) for lines in parts.values()] == [60, 20, 20]
    assert all(len({line[0] for line in lines}) > 6 for lines in parts.values())
    torch.manual_seed(7)
    assert lines_of(text(whole, split="random"), "val") == parts["val"] == sorted(parts["val"])
    assert lines_of(text(whole, split="random", split_seed=1), "val") != parts["val"]
    position = text(whole, unknown="error")
    with pytest.raises(ValueError, match=r"'g' .* does not occur in the training part"):
        position.setup()


def test_a_hash_alone_takes_no_two_lines_for_one(text: Callable[..., TextLines], monkeypatch: Any) -> None:
    content = "abc\nabd\nabe\nabc\nab\nabd\na\nb\nc\nabc\nbc\nbd\nabe"

    def every() -> list[str]:
        data = text(content)
        return [line for part in ("train", "val", "test") for line in lines_of(data, part)]

    assert every() == ["abc", "abd", "abe", "ab", "a", "b", "c", "bc", "bd"]
    monkeypatch.setattr(text_lines, "_hashes", lambda codes, starts, lengths: np.zeros(len(lengths), np.uint64))
    assert set(every()) == set(content.split("\n"))


def test_an_old_vocabulary_of_lines_is_extended(text: Callable[..., TextLines]) -> None:
    Path("old.json").write_text('["z", "b", "a"]')
    content = "ab\r\nabc\na\nb\nba\nbb\naab\nbab\naa\n"
    assert text(content, vocab_from="old.json").vocab == ["z", "b", "a", "c"]
    data = text(content, vocab=["c", "b", "a"])
    assert lines_of(data, "train")[:2] == ["ab", "abc"]
    assert data.vocab == ["c", "b", "a"]


def test_lines_need_little_more_memory_than_their_text(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lines = draw.integers(ord("a"), ord("z"), (100_000, 30), np.uint8)
    lines[:, -1] = ord("\n")
    (tmp_path / "large.txt").write_bytes(lines.tobytes())
    TextLines("python", limit=10_000).setup()  # what is imported and kept once
    data = TextLines(str(tmp_path / "large.txt"))
    tracemalloc.start()
    try:
        data.setup()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, data.parts.values())) == 100_000
    assert kept < 2 * lines.size
    assert peak < 3 * lines.size + 10 * 2**20, "of which a chunk is some megabytes"


def test_a_batch_is_padded_with_zeros(text: Callable[..., TextLines]) -> None:
    lengths = torch.tensor([1, 0, 2, 2])
    table = LineTable(np.array([3, 9, 1, 2, 9, 4, 4]), torch.tensor([0, 1, 2, 5]), lengths, "abcde")
    batch = table[torch.tensor([2, 0, 1])]
    assert batch.values.tolist() == [[1, 2], [3, 0], [0, 0]]
    assert batch.lengths.tolist() == [2, 1, 0]
    assert batch.labels.tolist() == [-1, -1, -1]
    assert table[torch.tensor([1])].values.shape == (1, 0)


def test_the_alphabet_is_a_part_of_the_fingerprint() -> None:
    places, text = (torch.tensor([3]), torch.tensor([2])), np.array([1, 1, 9, 0, 1, 9], np.uint8)
    ab, ba = (LineTable(text, *places, alphabet).fingerprint() for alphabet in ("ab", "ba"))
    assert ab != ba
    # As it was when each part held a copy of its codes: runs of then can still be resumed.
    assert ab == loader.checksum([torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([97, 98])])


def test_training_goes_through_lines_of_similar_length() -> None:
    data = TextLines("python", limit=60_000, batch_size=8)
    data.setup()
    loader = data.train_dataloader()
    batches = list(loader)
    spans = torch.stack([batch.lengths.max() - batch.lengths.min() for batch in batches]).float()
    assert spans.mean() < 4
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader)).values, batches[0].values)
    evaluated = torch.cat([batch.lengths for batch in data.val_dataloader()])
    assert torch.equal(evaluated, data.parts["val"].lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"min_length": 5, "max_length": 4}, "min_length=5: expected at most max_length=4"),
        ({"min_length": -1}, "min_length=-1: expected at least 0"),
        ({"unknown": "skip"}, "unknown='skip'"),
    ],
)
def test_wrong_options(text: Callable[..., TextLines], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text("ab\n" * 20, **options)


def test_what_has_no_lines_is_refused(text: Callable[..., TextLines]) -> None:
    with pytest.raises(ValueError, match="expected a text of more than one line"):
        text("ab" * 20)
    with pytest.raises(ValueError, match="its val part has no new line of 1 to 10 characters"):
        text("ab\n" * 20).setup()


def test_without_a_test_part_there_is_nothing_to_test(text: Callable[..., TextLines]) -> None:
    data = text("ab\nabc\na\nb\nc\nca\nac\ncb\nba\nbac\n", test_fraction=0.0)
    data.setup()
    assert data.test_dataloader() == []
    assert set(data.parts) == {"train", "val"}


# ---- sketches and images -----------------------------------------------------------------------------------------


def test_positions_are_where_the_points_are() -> None:
    offsets = torch.tensor([[[5.0, 5], [4, 0], [0, 2], [9, 9]], [[1, 1], [7, 7], [7, 7], [7, 7]]])
    lifted = torch.tensor([[False, True, True, False], [True, False, False, False]])
    lengths = torch.tensor([3, 1])
    positions = positions_of(to_stroke_5(offsets, lifted, lengths), lengths)
    assert positions[0].tolist() == [[-2, -1, 0], [2, -1, 1], [2, 1, 1], [0, 0, 0]]
    assert positions[1].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_positions_do_not_depend_on_padding() -> None:
    table = Glyphs(characters="OLB", variants=0).parts["val"]
    both = table[torch.arange(6)]
    together = positions_of(both.strokes, both.lengths)
    for i in range(6):
        alone = table[torch.tensor([i])]
        n = int(alone.lengths)
        assert torch.allclose(positions_of(alone.strokes, alone.lengths)[0, :n], together[i, :n], atol=1e-6)
        assert not together[i, n:].any()


def trainer_in(epoch: int, batch: int) -> Any:
    return SimpleNamespace(
        training=True,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(batch_idx=batch - 1),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def test_sketches_keep_their_augmentation_and_their_facts() -> None:
    torch.manual_seed(0)
    source = Glyphs(characters="OLB", variants=0, random_scale=0.5, point_drop=0.9)
    data = SketchSequences(source, batch_size=12)
    assert (data.sequence_dim, data.scale_factor, data.longest) == (3, source.scale_factor, source.longest)
    loader = data.train_dataloader()
    assert loader.batch_size == 12
    raw = next(iter(loader))
    plain = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(plain.values, positions_of(raw.strokes, raw.lengths))
    assert torch.equal(plain.labels, raw.labels)

    data.trainer = trainer_in(0, 0)
    changed = data.on_after_batch_transfer(raw, 0)
    assert (changed.lengths < plain.lengths).any(), "points are dropped"
    widths = [batch.values[:, :, 0].amax(1) - batch.values[:, :, 0].amin(1) for batch in (changed, plain)]
    assert (widths[0] / widths[1]).std() > 0.1, "drawings are stretched"
    assert torch.equal(changed.values, data.on_after_batch_transfer(raw, 0).values)
    data.trainer = trainer_in(0, 1)
    assert not torch.equal(changed.values, data.on_after_batch_transfer(raw, 0).values)


def test_every_sketch_of_a_part_once_and_as_it_is() -> None:
    data = SketchSequences(Glyphs(characters="OLB", variants=0, random_scale=0.5), batch_size=4)
    data.trainer = trainer_in(0, 0)
    batches = list(data.sequences("train"))
    table = data.source.parts["train"]
    assert torch.equal(torch.cat([batch.lengths for batch in batches]), table.lengths)
    last = table[torch.tensor([len(table) - 1])]
    n = int(last.lengths)
    found = batches[-1].values[-1, :n]
    assert torch.allclose(found, positions_of(last.strokes, last.lengths)[0, :n], atol=1e-6)


def test_rows_are_read_from_the_top_down() -> None:
    data = ImageRows(Digits(), batch_size=5)
    assert (data.sequence_dim, data.longest, data.num_classes) == (8, 8, 10)
    data.setup()
    raw = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch.values.shape == (5, 8, 8)
    assert batch.lengths.tolist() == [8] * 5
    assert torch.allclose(batch.values[2, 1], raw.images[2, 0, 1] / 255.0), "the second row"
    assert torch.equal(next(data.sequences("val")).values, batch.values)


def test_a_row_holds_the_channels_of_each_pixel() -> None:
    class Colored(Digits):
        shape = (3, 2, 4)

        def read(self) -> Any:
            parts = super().read()
            images = torch.arange(24, dtype=torch.uint8).view(1, 3, 2, 4)
            return {
                name: part._replace(images=images.expand(len(part.labels), -1, -1, -1)) for name, part in parts.items()
            }

    data = ImageRows(Colored(), batch_size=3)
    assert (data.sequence_dim, data.longest) == (12, 2)
    row = next(data.sequences("val")).values[0, 0] * 255
    assert [round(float(value)) for value in row] == [0, 8, 16, 1, 9, 17, 2, 10, 18, 3, 11, 19]


def test_two_views_of_image_rows_are_the_sources_views_row_by_row() -> None:
    class Colored(Digits):
        shape = (3, 8, 8)

        def read(self) -> Any:
            return {
                name: part._replace(images=part.images * torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1))
                for name, part in super().read().items()
            }

    source = Colored(batch_size=5)
    data = ImageRows(source, batch_size=5)
    batch = next(iter(data.plain_loader("val")))
    found, expected = data.two_views(data.to_float(batch)), source.two_views(source.to_float(batch))
    for rows, view in zip(found, expected, strict=True):
        assert rows.images.shape == (5, 8, 24)
        assert torch.equal(rows.images[:, 2, 1::3], view.images[:, 1, 2])


@pytest.mark.parametrize("make", [lambda: SketchSequences(Glyphs("L"), 0), lambda: ImageRows(Digits(), 0)])
def test_a_batch_has_at_least_one_sequence(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        make()


def test_two_ranks_share_the_lines_of_one(be_rank: Callable[[int, int], None]) -> None:
    def batches(rank: int, ranks: int, size: int) -> list[Any]:
        torch.manual_seed(0)
        data = TextLines("python", limit=20_000, batch_size=size)
        data.setup()  # the same lines on any number of ranks
        be_rank(rank, ranks)
        found = list(data.train_dataloader())
        be_rank(0, 1)
        return found

    whole, parts = batches(0, 1, 8), [batches(rank, 2, 4) for rank in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1])
    for i, batch in enumerate(whole[:5]):
        for rank, part in enumerate(parts):
            assert torch.equal(part[i].lengths, batch.lengths[rank::2])
    assert all(a.lengths.shape == b.lengths.shape for a, b in pairwise(whole))
