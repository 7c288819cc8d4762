from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from common.files import BrokenCheckpoint, read_checkpoint

WEIGHTS = {"state_dict": {"layer.weight": torch.arange(1000.0)}, "hyper_parameters": {"width": 3}}


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_of_either_format_is_read(tmp_path: Path, as_zip: bool) -> None:
    torch.save(WEIGHTS, tmp_path / "a.ckpt", _use_new_zipfile_serialization=as_zip)
    content = read_checkpoint(tmp_path / "a.ckpt")
    assert content["hyper_parameters"] == {"width": 3}
    assert torch.equal(content["state_dict"]["layer.weight"], torch.arange(1000.0))


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("size", [0, 1, 2, 100, 1000, -1])
def test_a_checkpoint_that_is_cut_off_is_broken(tmp_path: Path, as_zip: bool, size: int) -> None:
    torch.save(WEIGHTS, tmp_path / "a.ckpt", _use_new_zipfile_serialization=as_zip)
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:size])
    with pytest.raises(BrokenCheckpoint, match=r"^init_from=.*a\.ckpt: broken \(.+\)$"):
        read_checkpoint(tmp_path / "a.ckpt", "init_from")


@pytest.mark.parametrize("content", [b"no checkpoint", b"text\n", b"PK", pickle.dumps({"state_dict": {}})])
def test_what_is_no_checkpoint_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=r"a\.ckpt: broken \("):
        read_checkpoint(tmp_path / "a.ckpt")


def test_what_holds_more_than_data_is_refused(tmp_path: Path) -> None:
    torch.save(WEIGHTS | {"code": print}, tmp_path / "a.ckpt")
    with pytest.raises(BrokenCheckpoint, match="refused, because it holds more than tensors and plain data"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save([1, 2], tmp_path / "a.ckpt")
    with pytest.raises(BrokenCheckpoint, match="expected a checkpoint of Lightning, which has a 'state_dict'"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_missing_checkpoint_is_answered_with_the_nearest(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "best.ckpt")
    with pytest.raises(FileNotFoundError, match=r"bets.ckpt: no such file; .*; did you mean '.*best.ckpt'\?"):
        read_checkpoint(tmp_path / "bets.ckpt")
