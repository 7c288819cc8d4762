"""What a picture is, comes back: its bits, how it was held, its alpha, its colors, and what stands beside them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from common.full_depth import FullDepth, deep_png, in_full, suffix_like, write_like

GENERATOR = np.random.default_rng(0)
COLOR = GENERATOR.integers(0, 256, (4, 6, 3), np.uint8)
DEEP = GENERATOR.integers(0, 65536, (4, 6), np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, file: Path, **options: Any) -> FullDepth:
    image.save(file, **options)
    return in_full(file)


def again(original: FullDepth, file: Path) -> Image.Image:
    """The picture itself, written in its own likeness."""
    write_like(original, original.values, file)
    with Image.open(file) as image:
        image.load()
        return image


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_of_gray_come_back(suffix: str, tmp_path: Path) -> None:
    original = saved(Image.fromarray(DEEP), tmp_path / f"a{suffix}")
    assert original.bits == 16
    np.testing.assert_array_equal(np.rint(original.values[0] * 65535), DEEP)
    found = again(original, tmp_path / f"b{suffix_like(original, tmp_path / f'a{suffix}')}")
    assert found.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(found), DEEP)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colors_and_alpha_come_back(channels: int, tmp_path: Path) -> None:
    pixels = GENERATOR.integers(1, 65536, (4, 6, channels), np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(pixels, {"dpi": (300, 300), "icc_profile": PROFILE}))
    original = in_full(tmp_path / "a.png")
    assert (original.bits, original.values.shape[0], original.alpha is None) == (
        16,
        channels - 1 + channels % 2,
        channels == 3,
    )
    write_like(original, original.values, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_sixteen_bits_that_are_not_read_are_said(tmp_path: Path) -> None:
    rows = GENERATOR.integers(0, 65536, (4, 6, 3), np.uint16).tobytes()
    image = Image.new("RGB", (6, 4))
    image.save(tmp_path / "a.tif")
    tags = {256: 6, 257: 4, 258: (16, 16, 16), 259: 1, 262: 2, 277: 3, 278: 4}
    content = tiff(tags, rows)
    assert in_full(content).lost == "read with 8 of its 16 bits"


def tiff(tags: dict[int, int | tuple[int, ...]], rows: bytes) -> bytes:
    """An uncompressed TIFF of one strip."""
    count = len(tags) + 2
    after = 8 + 2 + 12 * count + 4
    entries, more = [], b""
    everything = sorted({**tags, 273: after + 6, 279: len(rows)}.items())
    for tag, value in everything:
        if isinstance(value, tuple):
            entries.append((tag, 3, len(value), after))
            more = np.array(value, "<u2").tobytes()
        else:
            entries.append((tag, 4, 1, value))
    table = b"".join(
        np.array([tag, kind], "<u2").tobytes() + np.array([n, v], "<u4").tobytes() for tag, kind, n, v in entries
    )
    return b"II*\0\x08\0\0\0" + np.array([count], "<u2").tobytes() + table + bytes(4) + more + rows


def test_a_picture_comes_back_upright_with_what_stands_beside_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Grandmother, 1931"
    original = saved(
        Image.fromarray(COLOR), tmp_path / "a.jpg", exif=exif, dpi=(300, 300), icc_profile=PROFILE, quality=95
    )
    assert original.values.shape == (3, 6, 4), "it was held upright"
    found = again(original, tmp_path / "b.jpg")
    assert found.size == (4, 6)
    assert dict(found.getexif()) == {0x010E: "Grandmother, 1931"}
    assert found.info["dpi"] == (300, 300)
    assert found.info["icc_profile"] == PROFILE


def test_sixteen_bits_of_colors_are_turned_upright_too(tmp_path: Path) -> None:
    pixels = GENERATOR.integers(0, 65536, (4, 6, 3), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = deep_png(pixels, {"exif": exif.tobytes()})
    np.testing.assert_array_equal(np.rint(in_full(content).values * 65535), np.rot90(pixels, -1).transpose(2, 0, 1))


def test_alpha_comes_back_and_colors_do_not_pale(tmp_path: Path) -> None:
    alpha = np.array([[0, 51, 128, 200, 254, 255]] * 4, np.uint8)
    original = saved(Image.fromarray(np.dstack([COLOR, alpha])), tmp_path / "a.png")
    assert (original.values[:, :, 0] == 1).all(), "white where nothing can be seen"
    found = np.asarray(again(original, tmp_path / "b.png"))
    np.testing.assert_array_equal(found[..., 3], alpha)
    np.testing.assert_array_equal(found[:, 1:, :3], COLOR[:, 1:])
    larger = np.repeat(np.repeat(original.values, 2, 1), 2, 2)
    write_like(original, larger, tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").size == (12, 8)
    assert write_like(original, original.values, tmp_path / "d.jpg") == "alpha is left out, which JPEG does not have"


def test_palettes_become_colors_and_profiles_of_other_colors_are_left_out(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOR).quantize(256)
    original = saved(palette, tmp_path / "a.gif")
    np.testing.assert_array_equal(original.values.transpose(1, 2, 0) * 255, np.asarray(palette.convert("RGB")))
    assert suffix_like(original, tmp_path / "a.gif") == ".png"
    inks = saved(Image.fromarray(COLOR).convert("CMYK"), tmp_path / "a.jpg", icc_profile=PROFILE)
    assert inks.values.shape[0] == 3
    assert "icc_profile" not in inks.along


def test_floats_and_arrays_keep_their_numbers(tmp_path: Path) -> None:
    floats = GENERATOR.random((4, 6), np.float32)
    original = saved(Image.fromarray(floats), tmp_path / "a.tiff")
    np.testing.assert_array_equal(np.asarray(again(original, tmp_path / "b.tiff")), floats)
    np.testing.assert_array_equal(in_full(floats).values[0], floats)
    np.testing.assert_array_equal(np.rint(in_full(DEEP).values[0] * 65535), DEEP)


@pytest.mark.parametrize(
    ("name", "lossless", "expected"),
    [
        *(("a.JPEG", False, ".JPEG"), ("a.jpg", True, ".png"), ("a.tiff", False, ".tiff"), ("a.webp", True, ".webp")),
        ("a.bmp", False, ".bmp"),
    ],
)
def test_the_type_is_kept_where_it_can_hold_the_result(
    name: str, lossless: bool, expected: str, tmp_path: Path
) -> None:
    original = saved(Image.fromarray(COLOR), tmp_path / name)
    assert suffix_like(original, tmp_path / name, lossless) == expected
    if expected != ".JPEG":
        np.testing.assert_array_equal(
            np.asarray(again(original, tmp_path / f"b{expected}")), np.asarray(Image.open(tmp_path / name))
        )


def test_nothing_is_written_over_and_bits_that_are_lost_are_said(tmp_path: Path) -> None:
    original = in_full(DEEP)
    assert "8 of its 16 bits" in write_like(original, original.values, tmp_path / "a.jpg")
    with pytest.raises(FileExistsError):
        write_like(original, original.values, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.xyz: expected a name that ends in \.jpg"):
        write_like(original, original.values, tmp_path / "a.xyz")


def test_what_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(ValueError, match=r"no\.png: cannot be decoded: not an image in JPEG"):
        in_full(tmp_path / "no.png")
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        in_full(str(tmp_path / "none.png"))
    assert isinstance(in_full(io.BytesIO(deep_png(DEEP)).getvalue()), FullDepth)
