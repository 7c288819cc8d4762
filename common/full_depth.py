"""A picture with all its bits and what comes along with it, and another one written in its likeness.

:func:`common.pictures.decode` reads what networks are trained on, in 8 bits. Where the picture itself is the result, it
should come back as it was: see :class:`FullDepth`.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.pictures import check_range, frames_of, numbers_of, reading

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112
"""number of the EXIF tag by which a camera says how it was held"""
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
SUFFIXES |= {"AVIF": ".avif", "PPM": ".ppm"}
"""by Pillow's names of the types in which a picture comes back; any other one comes back as PNG"""
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}
"""how Pillow writes a type"""


@dataclass(frozen=True)
class FullDepth:
    """A picture, upright, see :func:`in_full`."""

    values: np.ndarray
    """(C, H, W) float32 in 0..1, with C 1 or 3; white where nothing can be seen of them"""
    bits: int = 8
    """of a number: 8 or 16, or 32, which are floats"""
    alpha: np.ndarray | None = None
    """(H, W), like ``values``: how opaque each pixel is"""
    kind: str | None = None
    """Pillow's name of the file's type, such as "TIFF"; None if it is no file"""
    frames: int = 1
    """more for an animation, of which this is the first one"""
    along: dict[str, Any] = field(default_factory=dict)
    """what else a file keeps: ``icc_profile``, ``dpi``, ``exif`` without the orientation"""
    lost: str = ""
    """what of the file is not in here, in words"""


def in_full(picture: Any) -> FullDepth:
    """A picture of any kind that :func:`common.pictures.opened` takes, or the content of a file, with all its bits.

    Raises:
        FileNotFoundError, TypeError, ValueError: as :func:`~common.pictures.opened`; the content is broken.
    """
    if isinstance(picture, bytes):
        return reading(picture, lambda image: _of_pillow(image, picture))
    if isinstance(picture, (str, Path)):
        file = Path(picture).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"image={file}: no such file")
        try:
            return in_full(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: cannot be decoded: {error}") from error
    if hasattr(picture, "getexif"):  # Pillow's
        return _of_pillow(picture, b"")
    values = numbers_of(picture)
    return _of_numbers(values, 65535 if values.dtype == np.uint16 else 255)


def _of_pillow(image: Image, content: bytes) -> FullDepth:
    """An open image; ``content`` is that of its file, if there is one."""
    from PIL import ImageOps

    exif = image.getexif()
    along = {name: image.info[name] for name in ("icc_profile", "dpi") if image.info.get(name)}
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa") and image.mode[0] not in "IF":
        along.pop("icc_profile", None)  # of colors that the picture does not keep, such as CMYK
    more = {"kind": image.format, "frames": frames_of(image), "along": along}
    deep = image.mode[0] != "I" and any(";16" in str(tile[3]) for tile in _tiles(image.format, content))
    if deep and image.format == "PNG":
        values = _upright(_deep_png(content), exif.get(ORIENTATION, 1))
        found = _of_numbers(values, 65535, **more)
    else:
        upright = ImageOps.exif_transpose(image)
        if upright.mode[0] in "IF":  # "I;16" too
            values = np.asarray(upright)
            found = _of_numbers(values.astype(np.int64) if upright.mode != "F" else values, 65535, **more)
        else:
            is_gray = upright.mode in ("1", "L", "LA", "La")
            opaque = not upright.has_transparency_data
            mode = ("L" if is_gray else "RGB") + ("" if opaque else "A")
            if deep:
                more["lost"] = "read with 8 of its 16 bits"
            found = _of_numbers(np.asarray(upright.convert(mode)), 255, **more)
    exif.pop(ORIENTATION, None)
    if len(exif):
        along["exif"] = exif.tobytes()
    return found


def _tiles(kind: str | None, content: bytes) -> list[Any]:
    """How the pixels lie in a file of a type, before they are loaded."""
    from PIL import Image

    if not content or kind not in ("PNG", "TIFF"):
        return []
    with Image.open(io.BytesIO(content), formats=[kind]) as image:
        return list(image.tile)


def _deep_png(content: bytes) -> np.ndarray:
    """(H, W, C) uint16 of a PNG that Pillow would read with 8 of its 16 bits."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    pixels = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    found: np.ndarray = pixels.movedim(0, -1).numpy()
    return found


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C), as Pillow would turn them."""
    from PIL import Image, ImageOps

    places = Image.fromarray(np.arange(values.shape[0] * values.shape[1], dtype=np.int32).reshape(values.shape[:2]))
    places.getexif()[ORIENTATION] = orientation
    turned: np.ndarray = values.reshape(-1, values.shape[2])[np.asarray(ImageOps.exif_transpose(places))]
    return turned


def _of_numbers(values: np.ndarray, most: int, **more: Any) -> FullDepth:
    """Pixels (H, W) or (H, W, C), where the last of 2 or 4 channels says how opaque they are."""
    check_range(values, most)
    is_float = np.issubdtype(values.dtype, np.floating)
    scaled = np.clip(values, 0, 1).astype(np.float32) if is_float else values.astype(np.float32) / np.float32(most)
    scaled = scaled[..., None] if scaled.ndim == 2 else scaled
    alpha = scaled[..., -1] if scaled.shape[2] in (2, 4) else None
    if alpha is not None:
        scaled = np.where(alpha[..., None] > 0, scaled[..., :-1], np.float32(1))
    bits = 32 if is_float else 16 if most == 65535 else 8
    return FullDepth(np.ascontiguousarray(scaled.transpose(2, 0, 1)), bits, alpha, **more)


def suffix_like(original: FullDepth, file: Path | None, lossless: bool = False) -> str:
    """The end of the name of a file that can hold a picture in the likeness of ``original``.

    That of its own ``file``, if it is of a type that can: PNG takes the place of GIF, whose colors are too few, of BMP
    and PPM where there is alpha, and, where nothing may be lost, of JPEG and AVIF.
    """
    from PIL import Image

    kind = original.kind or "PNG"
    cannot = original.alpha is not None and kind in ("BMP", "PPM", "JPEG")
    if cannot or kind not in SUFFIXES or (lossless and kind in ("JPEG", "MPO", "AVIF")):
        return ".png"
    Image.init()
    given = file.suffix if file else ""
    same = Image.EXTENSION.get(given.lower()) in (kind, "JPEG" if kind == "MPO" else kind)
    return given if same else SUFFIXES[kind]


def write_like(original: FullDepth, image: np.ndarray, file: Path) -> str:
    """Writes a picture in the likeness of another one, to a file that must not exist yet.

    It has the bits of the original as far as the file's type has them, its alpha, which is scaled if the picture is
    larger, and its ICC profile, resolution and EXIF texts. JPEG and AVIF are written with a quality of 95.

    Args:
        image: (C, H, W) in 0..1.
        file: its ending says the type.

    Returns:
        what the file can't hold, in words.

    Raises:
        ValueError: there is no such type, or it can't be written. FileExistsError: there is such a file.
    """
    from PIL import Image

    Image.init()
    kind = Image.EXTENSION.get(file.suffix.lower(), "")
    if kind not in SUFFIXES:
        raise ValueError(f"{file}: expected a name that ends in {', '.join(SUFFIXES.values())}")
    pixels, lost = np.clip(image, 0, 1).transpose(1, 2, 0), []
    if original.alpha is not None and kind in ("JPEG", "BMP", "PPM"):
        lost.append(f"alpha is left out, which {kind} does not have")
    elif original.alpha is not None:
        size = (pixels.shape[1], pixels.shape[0])
        alpha = np.asarray(Image.fromarray(original.alpha).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    is_gray = pixels.shape[2] == 1
    pixels = pixels[..., 0] if is_gray else pixels
    if original.bits == 32 and kind == "TIFF" and is_gray:
        content = _by_pillow(pixels.astype(np.float32), kind, original.along)
    elif original.bits > 8 and kind == "PNG":
        content = deep_png(np.rint(pixels * 65535).astype(np.uint16), original.along)
    elif original.bits > 8 and kind in ("TIFF", "PPM") and is_gray:
        content = _by_pillow(np.rint(pixels * 65535).astype(np.uint16), kind, original.along)
    else:
        if original.bits == 16:
            lost.append(f"written with 8 of its 16 bits, as {kind} has them here; PNG has 16")
        content = _by_pillow(np.rint(pixels * 255).astype(np.uint8), kind, original.along)
    with file.open("xb") as opened:
        opened.write(content)
    return "; ".join(lost)


def _by_pillow(pixels: np.ndarray, kind: str, along: dict[str, Any]) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, format=kind, **OPTIONS.get(kind, {}), **along)
    return content.getvalue()


def deep_png(pixels: np.ndarray, along: dict[str, Any] | None = None) -> bytes:
    """A PNG of 16 bits, which Pillow writes for gray only, of (H, W) or (H, W, 2 to 4) uint16 (PNG 3rd ed., 11)."""
    along = along or {}
    height, width, channels = (*pixels.shape, 1)[:3]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    lines = np.pad(rows, ((0, 0), (1, 0)))  # each begins with its filter, 0 for none
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))]
    if profile := along.get("icc_profile"):
        chunks.append((b"iCCP", b"ICC\0\0" + zlib.compress(profile)))
    if dpi := along.get("dpi"):
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(float(each) / 0.0254) for each in dpi), 1)))
    if exif := along.get("exif"):
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
