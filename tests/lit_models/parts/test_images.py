"""Pictures of every kind that become one batch of floats, and what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_models.parts.images import to_image_batch


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
    torch.testing.assert_close(gray[0, 0], torch.tensor(luminance).float())
    assert to_image_batch(pixels[:, :, 0], (3, 4, 6)).shape == (1, 3, 4, 6)
    assert torch.equal(to_image_batch(pixels[:, :, 0], (3, 4, 6))[0, 2], torch.tensor(pixels[:, :, 0]) / 255)
    alpha = np.full((4, 6, 1), 51, np.uint8)  # a fifth
    over_white = to_image_batch(np.concatenate([pixels, alpha], 2), (3, 4, 6))
    torch.testing.assert_close(over_white[0].movedim(0, 2), torch.tensor(pixels / 255 * 0.2 + 0.8).float())


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
    for mode in ("RGBA", "CMYK", "YCbCr", "I", "F"):
        converted = Image.fromarray(pixels).convert(mode) if mode not in "IF" else gray.convert(mode)
        rgb = torch.tensor(np.array(converted.convert("RGB"))).movedim(2, 0)[None] / 255
        torch.testing.assert_close(to_image_batch(converted, (3, 4, 6)), rgb)


def test_sixteen_bit_pictures_are_not_saturated(pixels: np.ndarray) -> None:
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    torch.testing.assert_close(to_image_batch(deep, (1, 4, 6)), to_image_batch(pixels[:, :, 0], (1, 4, 6)))


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
        ("cat.png", TypeError, "image of type str"),
        ([[0.0, 1.0]], TypeError, "image of type list"),
        (np.full((2, 2), np.nan), ValueError, "nan"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), ValueError, "nan"),
        (np.full((2, 2), np.inf), ValueError, "inf"),
        (np.array([[-0.5, 0.5]]), ValueError, r"-0\.5\.\.0\.5"),
        (np.array([[0.0, 255.0]]), ValueError, r"0\.\.255"),
        (np.array([[-1, 5]]), ValueError, r"integers outside 0\.\.255"),
        (np.array([[0, 256]]), ValueError, r"integers outside 0\.\.255"),
        (np.zeros((3, 4, 4, 3)), ValueError, r"shape \(3, 4, 4, 3\): expected \(H, W\), \(H, W, C\)"),
        (np.zeros((3, 9, 9)), ValueError, r"shape \(3, 9, 9\)"),
        (torch.zeros(9, 9, 3), ValueError, r"shape \(9, 9, 3\): expected \(H, W\), \(C, H, W\)"),
        (torch.zeros(2, 3, 9, 9), ValueError, r"shape \(2, 3, 9, 9\)"),
        (torch.zeros(0, 9), ValueError, r"shape \(0, 9\)"),
        (torch.zeros(()), ValueError, r"shape \(\)"),
    ],
)
def test_what_is_not_an_image_is_said(image: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        to_image_batch(image, (3, 8, 8))
