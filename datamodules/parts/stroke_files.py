"""Sketches in .npz files, such as sketch-rnn's: read without running any code that their pickles may contain.

A sketch in them is a stroke-3 array (n, 3): Δx, Δy from the previous point, and 1 if the pen is lifted after the point,
else 0.
"""

from __future__ import annotations

import io
import pickle
import re
import urllib.request
import zipfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast
from urllib.parse import quote

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from common.files import write_whole
from datamodules.parts.image_files import PARTS, part_called

EXPECTED = "sketches as one array, or as train.npy, valid.npy and test.npy"

LARGEST = 1e30
"""what an offset must be below, in any unit"""

MEMBER_LIMIT = 2**30
"""largest size in bytes to which one of them may unpack"""

QUICKDRAW = "https://storage.googleapis.com/quickdraw_dataset/sketchrnn"

QUICKDRAW_CATEGORIES = (
    *("aircraft carrier", "airplane", "alarm clock", "ambulance", "angel", "animal migration", "ant", "anvil"),
    *("apple", "arm", "asparagus", "axe", "backpack", "banana", "bandage", "barn", "baseball", "baseball bat"),
    *("basket", "basketball", "bat", "bathtub", "beach", "bear", "beard", "bed", "bee", "belt", "bench", "bicycle"),
    *("binoculars", "bird", "birthday cake", "blackberry", "blueberry", "book", "boomerang", "bottlecap", "bowtie"),
    *("bracelet", "brain", "bread", "bridge", "broccoli", "broom", "bucket", "bulldozer", "bus", "bush", "butterfly"),
    *("cactus", "cake", "calculator", "calendar", "camel", "camera", "camouflage", "campfire", "candle", "cannon"),
    *("canoe", "car", "carrot", "castle", "cat", "ceiling fan", "cello", "cell phone", "chair", "chandelier"),
    *("church", "circle", "clarinet", "clock", "cloud", "coffee cup", "compass", "computer", "cookie", "cooler"),
    *("couch", "cow", "crab", "crayon", "crocodile", "crown", "cruise ship", "cup", "diamond", "dishwasher"),
    *("diving board", "dog", "dolphin", "donut", "door", "dragon", "dresser", "drill", "drums", "duck", "dumbbell"),
    *("ear", "elbow", "elephant", "envelope", "eraser", "eye", "eyeglasses", "face", "fan", "feather", "fence"),
    *("finger", "fire hydrant", "fireplace", "firetruck", "fish", "flamingo", "flashlight", "flip flops"),
    *("floor lamp", "flower", "flying saucer", "foot", "fork", "frog", "frying pan", "garden", "garden hose"),
    *("giraffe", "goatee", "golf club", "grapes", "grass", "guitar", "hamburger", "hammer", "hand", "harp", "hat"),
    *("headphones", "hedgehog", "helicopter", "helmet", "hexagon", "hockey puck", "hockey stick", "horse"),
    *("hospital", "hot air balloon", "hot dog", "hot tub", "hourglass", "house", "house plant", "hurricane"),
    *("ice cream", "jacket", "jail", "kangaroo", "key", "keyboard", "knee", "knife", "ladder", "lantern", "laptop"),
    *("leaf", "leg", "light bulb", "lighter", "lighthouse", "lightning", "line", "lion", "lipstick", "lobster"),
    *("lollipop", "mailbox", "map", "marker", "matches", "megaphone", "mermaid", "microphone", "microwave", "monkey"),
    *("moon", "mosquito", "motorbike", "mountain", "mouse", "moustache", "mouth", "mug", "mushroom", "nail"),
    *("necklace", "nose", "ocean", "octagon", "octopus", "onion", "oven", "owl", "paintbrush", "paint can"),
    *("palm tree", "panda", "pants", "paper clip", "parachute", "parrot", "passport", "peanut", "pear", "peas"),
    *("pencil", "penguin", "piano", "pickup truck", "picture frame", "pig", "pillow", "pineapple", "pizza", "pliers"),
    *("police car", "pond", "pool", "popsicle", "postcard", "potato", "power outlet", "purse", "rabbit", "raccoon"),
    *("radio", "rain", "rainbow", "rake", "remote control", "rhinoceros", "rifle", "river", "roller coaster"),
    *("rollerskates", "sailboat", "sandwich", "saw", "saxophone", "school bus", "scissors", "scorpion"),
    *("screwdriver", "sea turtle", "see saw", "shark", "sheep", "shoe", "shorts", "shovel", "sink", "skateboard"),
    *("skull", "skyscraper", "sleeping bag", "smiley face", "snail", "snake", "snorkel", "snowflake", "snowman"),
    *("soccer ball", "sock", "speedboat", "spider", "spoon", "spreadsheet", "square", "squiggle", "squirrel"),
    *("stairs", "star", "steak", "stereo", "stethoscope", "stitches", "stop sign", "stove", "strawberry"),
    *("streetlight", "string bean", "submarine", "suitcase", "sun", "swan", "sweater", "swing set", "sword"),
    *("syringe", "table", "teapot", "teddy-bear", "telephone", "television", "tennis racquet", "tent"),
    *("The Eiffel Tower", "The Great Wall of China", "The Mona Lisa", "tiger", "toaster", "toe", "toilet", "tooth"),
    *("toothbrush", "toothpaste", "tornado", "tractor", "traffic light", "train", "tree", "triangle", "trombone"),
    *("truck", "trumpet", "t-shirt", "umbrella", "underwear", "van", "vase", "violin", "washing machine"),
    *("watermelon", "waterslide", "whale", "wheel", "windmill", "wine bottle", "wine glass", "wristwatch", "yoga"),
    *("zebra", "zigzag"),
)
"""its 345 categories, to find the nearest name to one that is misspelt"""


def read_stroke_file(source: Path | BinaryIO, name: str | None = None) -> dict[str, list[np.ndarray]]:
    """The sketches of each part, each (n, 3) with n ≥ 1, in the file's own numeric types.

    A part is an array, called as people call it (``train``, ``valid``, ``val``, ``test``, …): of objects, of which
    each is a sketch, an array or a list of points; or of numbers (N, T, 3). A file with a single array of any name has
    one part, "all".

    Args:
        source: a file, or its content.
        name: its name in error messages, by default its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an archive or is broken; its pickle asks for something other than NumPy arrays, which is
            refused by name and not run; there is no part for training; one is empty; a sketch has a wrong shape or
            type, a non-finite number, or a pen state other than 0 and 1. Names the file, the part and the sketch.
    """
    name = name or str(source)
    if isinstance(source, Path) and source.is_dir():
        raise ValueError(f"{name}: a folder, expected an .npz file")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{name}: no complete .npz file, expected {EXPECTED} ({error})") from error
    parts: dict[str, list[np.ndarray]] = {}
    with archive:
        for part, member in _members(archive, name).items():
            where = f"{name}: {member}"
            if (size := archive.getinfo(member).file_size) > MEMBER_LIMIT:
                raise ValueError(f"{where}: {size} bytes, expected at most {MEMBER_LIMIT}")
            try:
                arrays = unpickled_arrays(archive.read(member))
            except Exception as error:  # a broken pickle can make the unpickler raise almost anything
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"{where}: cannot be read: {reason}") from error
            check_sketches(arrays, where)
            parts[part] = arrays
    return parts


def _members(archive: zipfile.ZipFile, name: str) -> dict[str, str]:
    """The file of each part in the archive."""
    arrays = [member for member in archive.namelist() if member.endswith(".npy")]
    called = {member: part_called(member.removesuffix(".npy")) for member in arrays}
    if len(arrays) == 1 and called[arrays[0]] in (None, "train"):
        return {"all": arrays[0]}
    members = {part: member for member, part in called.items() if part is not None}
    if "train" not in members or len(members) < sum(part is not None for part in called.values()):
        raise ValueError(f"{name}: it has {', '.join(archive.namelist()) or 'nothing'}; expected {EXPECTED}")
    if others := [member for member, part in called.items() if part is None]:
        rank_zero_warn(f"{name}: left out what is no part: {', '.join(others)}")
    return {part: members[part] for part in PARTS if part in members}


def check_sketches(sketches: Sequence[np.ndarray], where: str) -> None:
    """Raises ValueError, naming ``where`` and the sketch, if one does not match :func:`read_stroke_file`."""
    if not len(sketches):
        raise ValueError(f"{where}: empty, expected at least one sketch")
    for i, sketch in enumerate(sketches):
        if sketch.ndim != 2 or sketch.shape[1] != 3 or not len(sketch) or sketch.dtype.kind not in "iuf":
            raise ValueError(
                f"{where}: sketch {i}: {sketch.dtype} of shape {sketch.shape}, expected numbers of shape (points, 3)"
            )
    points, ends = np.concatenate(sketches), np.cumsum([len(sketch) for sketch in sketches])
    for is_wrong, expected in (
        (~(np.abs(points) < LARGEST).all(1), f"finite numbers, below {LARGEST:g}"),
        (~np.isin(points[:, 2], (0, 1)), "0 or 1 in the last column, whether the pen is lifted after the point"),
    ):
        if is_wrong.any():
            row = int(is_wrong.argmax())
            i = int(np.searchsorted(ends, row, "right"))
            raise ValueError(f"{where}: sketch {i}: a point is {points[row].tolist()}, expected {expected}")


def fetch_quickdraw(category: str, file: Path) -> None:
    """Makes sure that a category of QuickDraw exists, downloading it if it does not.

    There is no published checksum: the download is checked by its length and by reading all three parts before the file
    gets its name.

    Raises:
        FileNotFoundError: it does not exist and cannot be downloaded.
        ValueError: the download is not such a file.
    """
    if file.exists():
        return
    address = f"{QUICKDRAW}/{quote(category)}.npz"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            content, expected = answer.read(), answer.headers.get("Content-Length")
    except (OSError, HTTPException) as error:  # a connection that ends early is not an OSError
        reason = getattr(error, "reason", error)
        raise FileNotFoundError(f"{file}: not found; download it from {address} to this path ({reason})") from error
    if expected is not None and len(content) != int(expected):
        raise ValueError(f"{address}: for {file}: received {len(content)} bytes, expected {expected}")
    parts = read_stroke_file(io.BytesIO(content), f"{address}: for {file}")
    if list(parts) != list(PARTS):
        raise ValueError(f"{address}: for {file}: it has {', '.join(parts)}, expected {', '.join(PARTS)}")
    write_whole(file, [content])


def unpickled_arrays(content: bytes) -> list[np.ndarray]:
    """The arrays of an .npy file that holds one of them, or of lists: see :func:`read_stroke_file`."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError as error:
        raise ValueError(f"no .npy file: {error}") from None
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an .npy file of version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.kind != "O":
        if dtype.kind not in "biuf" or len(shape) != 3:
            raise ValueError(f"an array of {dtype} of shape {shape}, expected sketches: (N, points, 3), or of objects")
        stream.seek(0)
        return [*np.lib.format.read_array(stream, allow_pickle=False)]
    pickled = _Unpickler(stream, encoding="latin1").load()  # in latin1, text of Python 2 is the bytes that it was
    items = pickled.items if isinstance(pickled, _Array) else None
    if items is None or len(items) != int(np.prod(shape)) or len(shape) not in (1, 3):
        raise ValueError(f"expected a one-dimensional array of sketches, found one of shape {shape}")
    if len(shape) == 3:  # NumPy takes drawings with as many points for one array, whose objects are the numbers
        return [*_numbers(items, "its numbers").reshape(shape)]
    return [_numbers(item, f"sketch {i}") for i, item in enumerate(items)]


def _numbers(item: object, what: str) -> np.ndarray:
    """A sketch from what stands for it in a pickle: an array, or a list of its points."""
    if isinstance(item, _Array) and item.numbers is not None:
        return item.numbers
    if isinstance(item, (list, tuple)):
        try:
            array = np.array(item)
        except ValueError:  # points of different lengths
            array = np.empty(0, object)
        if array.dtype.kind in "biuf":
            return array
    raise ValueError(f"{what} is not an array of numbers")


def _bytes_of(text: object, encoding: object) -> bytes:
    """What Python 3 writes for bytes in a pickle of protocol 2 or less, as NumPy did before 1.17; nothing else."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}, expected latin1")
    return text.encode("latin1")


class _Dtype:
    """Stands in for NumPy's dtype in a pickle: numbers or objects, nothing structured."""

    def __init__(self, name: object, *flags: object) -> None:
        if not re.fullmatch("b1|[iuf][1248]|O8?", str(name)):
            raise pickle.UnpicklingError(f"arrays of {name!r}, expected numbers")
        self.name, self.order = str(name), cast(Any, "=")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, *structure = state
        if any(part is not None for part in structure[:3]) or self.order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("structured arrays, expected numbers")


def _numbers_of(data: object, dtype: object) -> np.ndarray:
    """Numbers, flat, from their bytes in a pickle; in the machine's own byte order, since torch knows no other."""
    if not isinstance(dtype, _Dtype) or dtype.name.startswith("O") or not isinstance(data, (str, bytes, bytearray)):
        raise pickle.UnpicklingError("objects in place of numbers")
    content = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(content, np.dtype(dtype.name).newbyteorder(dtype.order)).astype(dtype.name)


def _scalar(dtype: object, data: object) -> np.generic:
    """Stands in for what makes one of NumPy's numbers in a pickle."""
    (number,) = _numbers_of(data, dtype)
    return cast(np.generic, number)


class _Array:
    """Stands in for a NumPy array in a pickle, and takes its bytes or list unchanged.

    NumPy's own arrays would do whatever the file tells them, including interpreting data as pointers.
    """

    items: list[Any] | None = None
    numbers: np.ndarray | None = None

    def __init__(self, *blank: object) -> None:
        """Starts out empty."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.name.startswith("O"):
            self.items = data if isinstance(data, list) else None
            return
        self.numbers = _numbers_of(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(data: object, dtype: object, shape: tuple[int, ...], order: object, *rest: object) -> _Array:
    """Stands in for what makes an array in a pickle of protocol 5."""
    if order not in ("C", "F") or any(each is not None for each in rest):
        raise pickle.UnpicklingError(f"an array in the order {order!r}, expected 'C' or 'F'")
    array = _Array()
    array.numbers = _numbers_of(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return array


class _Unpickler(pickle.Unpickler):
    """Admits only what NumPy's arrays and numbers are made by, and the bytes of their data, as stand-ins.

    No function chosen by the file is called, and NumPy code sees its state only after it has been checked.
    """

    ADMITTED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct only, never called
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): _bytes_of,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(
                f"its pickle asks for {module}.{name}, which was refused and not run; expected only NumPy arrays"
            )
        return self.ADMITTED[module, name]
