"""Pictures of every kind that become what a network takes, and what is none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.pictures import Preprocessing, decode, flattened


def to_image_batch(image: Any, shape: tuple[int, int, int]) -> torch.Tensor:
    """Squashed to the shape."""
    return Preprocessing(shape, "squash")(image)


@pytest.fixture
def pixels() -> np.ndarray:
    """(4, 6, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def test_a_picture_becomes_one_image_of_floats(pixels: np.ndarray) -> None:
    expected = torch.tensor(pixels).movedim(2, 0)[None] / 255
    for image in (pixels, Image.fromarray(pixels), expected, expected[0], pixels / 255, expected[0].double()):
        made = to_image_batch(image, (3, 4, 6))
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, expected)


def test_channels_are_repeated_averaged_and_laid_over_white(pixels: np.ndarray) -> None:
    gray = to_image_batch(pixels, (1, 4, 6))
    luminance = (pixels * np.array([0.299, 0.587, 0.114])).sum(2) / 255
    torch.testing.assert_close(gray[0, 0], torch.tensor(luminance).float(), rtol=0, atol=0.6 / 255)
    assert to_image_batch(pixels[:, :, 0], (3, 4, 6)).shape == (1, 3, 4, 6)
    assert torch.equal(to_image_batch(pixels[:, :, 0], (3, 4, 6))[0, 2], torch.tensor(pixels[:, :, 0]) / 255)
    alpha = np.full((4, 6, 1), 51, np.uint8)  # a fifth
    over_white = to_image_batch(np.concatenate([pixels, alpha], 2), (3, 4, 6))
    torch.testing.assert_close(
        over_white[0].movedim(0, 2), torch.tensor(pixels / 255 * 0.2 + 0.8).float(), rtol=0, atol=0.6 / 255
    )


def test_every_kind_of_pillow_image_is_read(pixels: np.ndarray) -> None:
    gray = Image.fromarray(pixels[:, :, 0])
    expected = to_image_batch(pixels[:, :, 0], (1, 4, 6))
    torch.testing.assert_close(to_image_batch(gray, (1, 4, 6)), expected)
    bits = np.asarray(gray.point(lambda v: 255 * (v > 127)))
    torch.testing.assert_close(
        to_image_batch(Image.fromarray(bits).convert("1"), (1, 4, 6))[0, 0] * 255, 1.0 * torch.tensor(bits)
    )
    half = Image.merge("LA", [gray, Image.new("L", gray.size, 0)])
    assert (to_image_batch(half, (1, 4, 6)) == 1).all()
    palette = Image.fromarray(pixels).quantize(4)
    palette.info["transparency"] = 0
    made = to_image_batch(palette, (3, 4, 6))[0].movedim(0, 2)
    assert (made[torch.tensor(np.array(palette)) == 0] == 1).all()
    for mode in ("RGBA", "CMYK", "YCbCr", "HSV"):
        converted = Image.fromarray(pixels).convert(mode)
        rgb = torch.tensor(np.array(converted.convert("RGB"))).movedim(2, 0)[None] / 255
        torch.testing.assert_close(to_image_batch(converted, (3, 4, 6)), rgb)


def test_pictures_of_more_than_eight_bits_are_scaled(pixels: np.ndarray) -> None:
    expected = to_image_batch(pixels[:, :, 0], (1, 4, 6))
    deep = pixels[:, :, 0].astype(np.uint16) * 257
    assert Image.fromarray(deep).mode == "I;16"
    wide = Image.fromarray(deep.astype(np.int32))
    floats = Image.fromarray(pixels[:, :, 0].astype(np.float32) / 255)
    assert (wide.mode, floats.mode) == ("I", "F")
    for image in (Image.fromarray(deep), deep, torch.from_numpy(deep), wide, floats):
        assert torch.equal(to_image_batch(image, (1, 4, 6)), expected)
    with pytest.raises(ValueError, match=r"integers in 0..70000: expected 0..65535"):
        flattened(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_a_photograph_stands_upright() -> None:
    upright = np.zeros((6, 4, 3), np.uint8)
    upright[:2] = 255, 0, 0  # the sky
    for orientation, as_stored in ((6, np.rot90(upright)), (8, np.rot90(upright, -1)), (3, np.rot90(upright, 2))):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(as_stored).save(file, "PNG", exif=exif)
        assert np.array_equal(np.asarray(decode(file.getvalue()).image), upright)
        with Image.open(file) as image:
            made = to_image_batch(image, (3, 6, 4))
            assert torch.equal(made, to_image_batch(image.convert("RGB"), (3, 6, 4)))  # which keeps the tag
        assert torch.equal(made, to_image_batch(upright, (3, 6, 4)))


def test_what_becomes_of_pictures_of_other_proportions() -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255  # the middle square
    assert (Preprocessing((3, 8, 8), "crop")(wide) == 1).all()
    squashed = Preprocessing((3, 8, 8), "squash")(wide)
    assert squashed.mean() == pytest.approx(0.5, abs=0.01)
    padded = Preprocessing((3, 8, 8), "pad")(255 - wide)
    assert (padded[:, :, [0, 1, 6, 7]] == 1).all()  # white above and below
    assert padded[:, :, 2:6].mean() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="fit='shrink': expected 'crop', 'squash' or 'pad'"):
        Preprocessing((3, 8, 8), "shrink")  # type: ignore[arg-type]


def test_pictures_are_stored_in_one_size_and_taken_in_another(pixels: np.ndarray) -> None:
    large = np.kron(pixels, np.ones((4, 4, 1), np.uint8))
    stored = Preprocessing((3, 8, 12))(large)
    twice = Preprocessing((3, 4, 6), stored=(8, 12))(large)
    expected = torch.nn.functional.interpolate(stored, (4, 6), mode="bilinear", antialias=True)
    assert torch.equal(twice, expected)


def test_one_or_many(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "it.png")
    one = Preprocessing((3, 4, 6))
    assert one(pixels).shape == (1, 3, 4, 6)
    many = [pixels, Image.fromarray(pixels), tmp_path / "it.png", str(tmp_path / "it.png")]
    assert torch.equal(one(many), one(pixels).expand(4, -1, -1, -1))
    assert torch.equal(one(np.stack([pixels, pixels])), one(pixels).expand(2, -1, -1, -1))
    module = torch.nn.Linear(1, 1).bfloat16()
    assert one(pixels, module).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"images=\[\]: expected at least one"):
        one([])


def test_floats_of_the_networks_shape_are_not_rounded() -> None:
    image = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Preprocessing((3, 4, 6))(image)[0], image)
    assert not torch.equal(Preprocessing((3, 4, 6))(image.numpy().transpose(1, 2, 0))[0], image)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    def content_of(image: Image.Image, kind: str) -> bytes:
        file = io.BytesIO()
        image.save(file, kind)
        return file.getvalue()

    whole = content_of(Image.new("RGB", (64, 64)), "PNG")
    huge = struct.pack(">II", 60_000, 60_000)
    bomb = (
        whole[:16]
        + huge
        + whole[24:29]
        + struct.pack(">I", zlib.crc32(whole[12:16] + huge + whole[24:29]))
        + whole[33:]
    )
    broken_tiff = content_of(Image.new("RGB", (8, 8)), "TIFF")[:60]
    postscript = content_of(Image.new("RGB", (8, 8)), "EPS")
    for content, words in (
        (b"", "the file is empty"),
        (b"words", "not an image in JPEG, MPO, PNG"),
        (whole[:60], "."),
        (bomb, "decompression bomb"),
        (broken_tiff, "."),
        (postscript, "not an image in JPEG"),  # a program
    ):
        with pytest.raises(ValueError, match=words) as caught:
            decode(content)
        assert "\n" not in str(caught.value)
    (tmp_path / "holiday.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"holiday\.png: cannot be decoded: "):
        to_image_batch(tmp_path / "holiday.png", (3, 8, 8))
    with pytest.raises(FileNotFoundError, match=r"holidy\.png: no such file; did you mean '.*holiday\.png'"):
        to_image_batch(str(tmp_path / "holidy.png"), (3, 8, 8))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError):  # rather than waiting for somebody to write into it
        to_image_batch(tmp_path / "pipe.png", (3, 8, 8))


def test_of_an_animation_the_first_frame_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "it.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"it\.gif: only the first of 3 frames is used"):
        made = to_image_batch(tmp_path / "it.gif", (3, 8, 8))
    torch.testing.assert_close(made, to_image_batch(frames[0], (3, 8, 8)), rtol=0, atol=0.02)


def test_a_reversed_view_of_an_array_is_an_image(pixels: np.ndarray) -> None:
    for view in (pixels[..., ::-1], pixels[::-1]):
        assert torch.equal(to_image_batch(view, (3, 4, 6)), to_image_batch(view.copy(), (3, 4, 6)))


def test_resizing_antialiases() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::4] = 255
    made = to_image_batch(stripes, (1, 8, 8))
    assert made.shape == (1, 1, 8, 8)
    torch.testing.assert_close(made, torch.full_like(made, 0.25), rtol=0, atol=0.05)
    assert to_image_batch(stripes[:4, :5], (3, 16, 32)).shape == (1, 3, 16, 32)


def test_floats_a_hair_outside_of_the_range_are_clipped() -> None:
    made = to_image_batch(torch.tensor([[-1e-4, 1 + 1e-4]]), (1, 1, 2))
    assert made.flatten().tolist() == [0, 1]
    assert to_image_batch(np.array([[True, False]]), (1, 1, 2)).flatten().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ([[0.0, 1.0]], TypeError, "image of type list"),
        (None, TypeError, "image of type NoneType"),
        (np.full((2, 2), np.nan), ValueError, "nan"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), ValueError, "nan"),
        (np.full((2, 2), np.inf), ValueError, "inf"),
        (np.array([[-0.5, 0.5]]), ValueError, r"-0\.5\.\.0\.5"),
        (np.array([[0.0, 255.0]]), ValueError, r"0\.\.255"),
        (np.array([[-1, 5]]), ValueError, r"integers in -1\.\.5: expected 0\.\.255"),
        (np.array([[0, 256]]), ValueError, r"integers in 0\.\.256: expected 0\.\.255"),
        (np.zeros((2, 3, 4, 4, 3)), ValueError, r"shape \(2, 3, 4, 4, 3\): expected \(H, W\), \(H, W, C\)"),
        (np.zeros((3, 9, 9)), ValueError, r"shape \(3, 9, 9\)"),
        (torch.zeros(9, 9, 3), ValueError, r"shape \(9, 9, 3\): expected \(H, W\), \(C, H, W\)"),
        (torch.zeros(2, 5, 9, 9), ValueError, r"shape \(5, 9, 9\)"),
        (torch.zeros(0, 9), ValueError, r"shape \(0, 9\)"),
        (torch.zeros(()), ValueError, r"shape \(\)"),
    ],
)
def test_what_is_not_an_image_is_said(image: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        to_image_batch(image, (3, 8, 8))
