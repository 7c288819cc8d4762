"""Captions of photographs: Karpathy's split files of Flickr8k, Flickr30k and COCO, and COCO's own caption files.

A caption's words are those of :func:`common.vocabulary.tokenize` without punctuation marks. For a Karpathy file they
are its ``tokens``, which are already in lower case and without punctuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from common.checks import at_least, one_of
from common.files import data_root, read_json, require
from common.pictures import Fit
from common.vocabulary import PAD, UNK, tokenize
from datamodules.captions import PARTS, CaptionBatch, Captions, CaptionTable
from datamodules.parts.image_features import (
    CachedFeatures,
    ImageSource,
    PhotographFiles,
    write_features,
)
from datamodules.parts.image_files import Broken, part_called
from datamodules.parts.loader import TensorLoader, WorkerLoader
from datamodules.parts.visual_questions import split_images

KARPATHY_FILES = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
COCO_PAGE = "https://cocodataset.org/#download"
IMAGES_OF = {
    "flickr8k": "https://github.com/jbrownlee/Datasets/releases",
    "flickr30k": "https://shannon.cs.illinois.edu/DenotationGraph",
    "coco": COCO_PAGE,
}
"""where to get the photographs of Karpathy's data sets"""

RESTVAL = "restval"
"""holds the images of COCO's val2014 that Karpathy & Fei-Fei 2015 use neither to validate nor to test; for training"""


class Photograph(NamedTuple):
    """An image of a captions file."""

    number: int
    """COCO's id, or the Karpathy file's ``imgid`` if it has no other id"""
    file: str
    """its path within the image folder"""
    captions: list[str]
    """its words, separated by spaces, none of them empty; no caption where nobody has described it"""


def read_karpathy(path: Path) -> dict[str, list[Photograph]]:
    """The images of each part, "train", "val" and "test", in the order of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file or a record of it is malformed; names the file and the record.
    """
    records = _records(path, read_json(path), "images", KARPATHY_FILES)
    parts: dict[str, list[Photograph]] = {part: [] for part in PARTS}
    numbers, files, wordless = set(), set(), _Wordless(path)
    for place, record in enumerate(records):
        number = record.get("cocoid", record.get("imgid"))
        if not _is_whole(number):
            raise _malformed(path, f"record {place} of 'images'", "a whole number as 'imgid' or 'cocoid'")
        what = f"image {number}"
        if number in numbers:
            raise _malformed(path, what, "it only once")
        file = _inside(path, what, record, "filename")
        if record.get("filepath"):
            file = f"{_inside(path, what, record, 'filepath')}/{file}"
        if file in files:
            raise _malformed(path, what, f"{file} as the file of one image only")
        split = record.get("split")
        part = "train" if split == RESTVAL else part_called(str(split))
        if part is None:
            raise _malformed(path, what, f"one of {[*PARTS, RESTVAL]} as 'split', not {split!r}")
        sentences = record.get("sentences", [])
        if not isinstance(sentences, list):
            raise _malformed(path, what, "a list as 'sentences'")
        captions = [
            wordless.unless(_sentence(path, f"{what}, sentence {i}", sentence), f"{what}, sentence {i}")
            for i, sentence in enumerate(sentences)
        ]
        numbers.add(number)
        files.add(file)
        parts[part].append(Photograph(number, file, [text for text in captions if text]))
    wordless.tell()
    for part in ("train", "val"):
        if not parts[part]:
            raise ValueError(f"{path}: no image of the {part} part, expected images for training and validation")
    return parts


def _sentence(path: Path, what: str, sentence: object) -> str:
    """The words of a sentence of a Karpathy file: its tokens, or those of its text if it has none."""
    found = sentence if isinstance(sentence, dict) else {}
    tokens, raw = found.get("tokens"), found.get("raw")
    if tokens is None and isinstance(raw, str):
        return words_of(raw)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _malformed(path, what, "a list of words as 'tokens', or a text as 'raw'")
    return _given(tokens)


def read_coco(path: Path) -> list[Photograph]:
    """The images of one of COCO's caption files, by their ids; their captions are in the order of *their* ids.

    A file without annotations, such as that of the test images, has images alone.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file or a record of it is malformed; names the file and the record.
    """
    content = read_json(path)
    files: dict[int, str] = {}
    for place, record in enumerate(_records(path, content, "images", COCO_PAGE)):
        number = record.get("id")
        if not _is_whole(number):
            raise _malformed(path, f"record {place} of 'images'", "a whole number as 'id'")
        if number in files:
            raise _malformed(path, f"image {number}", "it only once")
        files[number] = _inside(path, f"image {number}", record, "file_name")
    captions: dict[int, dict[int, str | None]] = {number: {} for number in files}
    wordless, numbers = _Wordless(path), set()
    described = _records(path, content, "annotations", COCO_PAGE) if "annotations" in content else []
    for place, record in enumerate(described):
        number, image, text = record.get("id"), record.get("image_id"), record.get("caption")
        if not _is_whole(number):
            raise _malformed(path, f"record {place} of 'annotations'", "a whole number as 'id'")
        what = f"annotation {number}"
        if number in numbers:
            raise _malformed(path, what, "it only once")
        if not _is_whole(image) or image not in files:
            raise _malformed(path, what, f"the id of one of the 'images' as 'image_id', not {image!r}")
        if not isinstance(text, str):
            raise _malformed(path, what, "a text as 'caption'")
        numbers.add(number)
        captions[image][number] = wordless.unless(words_of(text), what)
    wordless.tell()
    return [
        Photograph(number, files[number], [text for _, text in sorted(texts.items()) if text])
        for number, texts in sorted(captions.items())
    ]


class _Wordless:
    """Captions without a word, of which the real files may have a few: they are left out with a warning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []

    def unless(self, text: str, what: str) -> str | None:
        """The text, or None if it has no word."""
        if not text:
            self.found.append(what)
        return text or None

    def tell(self) -> None:
        if self.found:
            rank_zero_warn(f"{self.path}: left out {len(self.found)} captions without a word, first {self.found[0]}")


def _records(path: Path, content: object, key: str, page: str) -> list[dict[str, Any]]:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a file as from {page}, with a list of records under {key!r}")
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            raise _malformed(path, f"record {place} of {key!r}", "an object with fields")
    return records


def _malformed(path: Path, what: str, expected: str) -> ValueError:
    return ValueError(f"{path}: {what}: expected {expected}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _inside(path: Path, what: str, record: dict[str, Any], key: str) -> str:
    """A path in a record that stays within the image folder."""
    name = record.get(key)
    if not isinstance(name, str) or not name:
        raise _malformed(path, what, f"a file name as {key!r}")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name:
        raise _malformed(path, what, f"a path within the image folder as {key!r}, not {name!r}")
    return name


def words_of(text: str) -> str:
    """The words of a text without punctuation marks, separated by spaces."""
    return " ".join(filter(_is_word, tokenize(text)))


def _given(tokens: Sequence[str]) -> str:
    """Tokens as they are given, but for their case and for punctuation marks, separated by spaces."""
    composed = (unicodedata.normalize("NFC", token.lower()) for token in tokens)
    return " ".join("".join(token.split()) for token in composed if any(map(_is_word, token)))


def _is_word(token: str) -> bool:
    return token[0].isalnum() or token[0] == "_"


class PhotographTable(CaptionTable):
    """A :class:`~datamodules.captions.CaptionTable` that fetches its images when a batch is formed."""

    def __init__(self, source: ImageSource, photographs: Sequence[Photograph], vocab: Sequence[str]) -> None:
        numbers = [photograph.number for photograph in photographs]
        source.check(numbers)
        captions = [photograph.captions or [UNK] for photograph in photographs]  # which nobody looks at
        super().__init__(torch.tensor(numbers), captions, vocab, split=str.split)
        self.source = source

    def __getitem__(self, indices: Tensor) -> CaptionBatch:
        batch = super().__getitem__(indices)
        return batch._replace(images=self.source(batch.images.tolist()))


class PhotographCaptions(Captions):
    """Shared by the data sets of photographs: decoded images or cached features, and words by frequency.

    A source calls :meth:`learn` in its constructor. Photographs without a caption are left out, which is said, unless
    none of the test part has one: then those can be predicted.

    Args:
        folder: the data set's folder; ``features`` is relative to it.
        page: where to get the images.
        batch_size, captions_per_image: see :class:`~datamodules.captions.Captions`.
        features: ``<prefix>`` of image features to use instead of the images: see
            :class:`~datamodules.parts.image_features.CachedFeatures`.
        image_size: height and width that images are brought to.
        fit: how, see :func:`common.pictures.fitted`.
        num_workers: number of processes that decode images.
        check, broken: before the first step, decode each photograph once; at one that cannot be decoded stop ("error"),
            or leave it out ("skip").
        min_count: words that occur less often in the training captions become ``<unk>``.
    """

    photographs: dict[str, list[Photograph]]
    """of each part"""
    split = staticmethod(str.split)  # what was read are words already

    def __init__(
        self,
        folder: Path,
        page: str,
        batch_size: int,
        captions_per_image: int | None,
        features: str | None,
        image_size: int,
        fit: Fit,
        num_workers: int,
        min_count: int,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        super().__init__(batch_size, captions_per_image)
        one_of(Broken, broken=broken)
        self.check, self.broken = check, broken
        at_least(1, image_size=image_size, min_count=min_count)
        at_least(0, num_workers=num_workers)
        self.page = page
        self.features = None if features is None else folder / features
        one_of(Fit, fit=fit)
        self.image_size, self.fit, self.num_workers, self.min_count = image_size, fit, num_workers, min_count
        self.preprocessing = {"fit": fit, "stored": None}
        self.image_shape = [3, image_size, image_size] if self.features is None else CachedFeatures(self.features).shape
        self.attributes = {}

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Captions.adopt`; and photographs are read as the model's own were, at its size."""
        settled = super().adopt(facts)
        if self.features is None:
            self.image_shape = list(facts.get("image_shape", self.image_shape))
            self.preprocessing = facts.get("preprocessing") or self.preprocessing
            self.image_size, self.fit = self.image_shape[1], self.preprocessing["fit"]
            settled.add("image_shape")
        return settled

    def learn(self, parts: Mapping[str, list[Photograph]]) -> None:
        """Takes the photographs of each part, and the words of the training captions."""
        self.photographs, without = {}, 0
        for part, photographs in parts.items():
            described = [photograph for photograph in photographs if photograph.captions]
            chosen = photographs if part == "test" and not described else described
            self.photographs[part] = chosen
            without += len(photographs) - len(chosen)
        if without:
            rank_zero_info(f"left out {without} of {sum(map(len, parts.values()))} photographs: without a caption")
        self.is_described = any(photograph.captions for photograph in self.photographs["test"])
        if not self.photographs["train"]:
            self.vocab, self.longest = [PAD, UNK], 1  # a checkpoint has to bring them
        else:
            self.learn_words([photograph.captions for photograph in self.photographs["train"]], self.min_count)

    @property
    def part_names(self) -> list[str]:
        """Those that have photographs."""
        return [part for part, photographs in self.photographs.items() if photographs]

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return super().test_dataloader() if self.is_described else []

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.loader("test")

    def image_folder(self, part: str) -> Path:
        raise NotImplementedError

    def files(self, part: str) -> PhotographFiles:
        """The photographs of a part by their numbers."""
        files = {photograph.number: photograph.file for photograph in self.photographs[part]}
        return PhotographFiles(self.image_folder(part), files, self.image_size, self.fit, self.page)

    def prepare_data(self) -> None:
        """Looks at all photographs that the run will need, also at those of the test, before its first step."""
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        if fits and not self.photographs["train"]:
            raise ValueError(f"{type(self).__name__}: no photograph has a caption, expected some to train on")
        for part in PARTS if fits else ("test",):
            self._usable(part)

    def _usable(self, part: str) -> list[Photograph]:
        """Those that can be decoded."""
        chosen = self.photographs[part]
        if self.features is not None or not self.check:
            return chosen
        lost = self.files(part).undecodable((each.number for each in chosen), self.broken)
        return [each for each in chosen if each.number not in lost]

    def setup(self, stage: str | None = None) -> None:
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for part in wanted.get(stage or "", PARTS):
            if part not in self.tables and self.photographs[part]:
                photographs = self.photographs[part] = self._usable(part)
                source = self.files(part) if self.features is None else CachedFeatures(self.features)
                self.tables[part] = PhotographTable(source, photographs, self.vocab)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The id and the file of each photograph."""
        chosen = self.photographs[part]
        return {"image_id": [each.number for each in chosen], "file": [each.file for each in chosen]}

    def official_results(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """Captions in the results format of COCO, which its evaluation code reads."""
        if not all("caption" in row for row in rows):  # images that were drawn of captions
            return None
        return [{"image_id": row["image_id"], "caption": row["caption"]} for row in rows]

    def loader(self, part: str, **options: Any) -> TensorLoader:
        if self.features is None:
            return WorkerLoader(self.tables[part], self.batch_size, num_workers=self.num_workers, **options)
        return super().loader(part, **options)


class KarpathyCaptions(PhotographCaptions):
    """Flickr8k, Flickr30k or COCO in the splits of Karpathy & Fei-Fei 2015, which most papers report on.

    ``restval`` belongs to the training part.

    Args:
        root: the data folder, by default ``LIT_DATA`` or ``data/``; the files are in its folder ``<name>/``. The paths
            below are relative to it, or absolute.
        name: "flickr8k", "flickr30k" or "coco".
        captions: the captions file; by default ``dataset_<name>.json``.
        images: the folder of the images; by default ``images``. For COCO, whose file has ``train2014/`` and
            ``val2014/`` in its paths, the default is the data set's own folder.
        batch_size, captions_per_image, features, image_size, fit, num_workers, min_count, check, broken: see
            :class:`PhotographCaptions`; five captions come with each image.

    Raises:
        FileNotFoundError: a file or an image is not there; says where to get it.
        ValueError: an argument is out of range, or a file is malformed; names the file and the record.
    """

    def __init__(
        self,
        root: str | None = None,
        name: str = "flickr8k",
        captions: str | None = None,
        images: str | None = None,
        batch_size: int = 32,
        captions_per_image: int | None = None,
        features: str | None = None,
        image_size: int = 224,
        fit: Fit = "squash",
        num_workers: int = 4,
        min_count: int = 5,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        one_of(IMAGES_OF, name=name)
        folder = data_root(root) / name
        super().__init__(
            folder,
            IMAGES_OF[name],
            batch_size,
            captions_per_image,
            features,
            image_size,
            fit,
            num_workers,
            min_count,
            check,
            broken,
        )
        self.images = folder / (images or ("." if name == "coco" else "images"))
        path = folder / (captions or f"dataset_{name}.json")
        require(path, KARPATHY_FILES)
        self.learn(read_karpathy(path))

    def image_folder(self, part: str) -> Path:
        return self.images


class CocoCaptions(PhotographCaptions):
    """COCO captions from the official files: trains on train2014 without a validation split, and tests on val2014.

    The captions of the official test images are not public.

    Args:
        root: the data folder, by default ``LIT_DATA`` or ``data/``; the files are in its folder ``coco/``. The paths
            below are relative to it, or absolute.
        train_captions, test_captions: official files of 2014 or 2017.
        train_images, test_images: folders of the images.
        val_fraction: share of the training images used for validation.
        split_seed: seed of the validation split, independent of the run's seed.
        batch_size, captions_per_image, features, image_size, fit, num_workers, min_count, check, broken: see
            :class:`PhotographCaptions`; about five captions come with each image.

    Raises:
        FileNotFoundError, ValueError: as :class:`KarpathyCaptions`; an image is in both files.
    """

    def __init__(
        self,
        root: str | None = None,
        train_captions: str = "annotations/captions_train2014.json",
        test_captions: str = "annotations/captions_val2014.json",
        train_images: str = "train2014",
        test_images: str = "val2014",
        val_fraction: float = 0.05,
        split_seed: int = 0,
        batch_size: int = 32,
        captions_per_image: int | None = None,
        features: str | None = None,
        image_size: int = 224,
        fit: Fit = "squash",
        num_workers: int = 4,
        min_count: int = 5,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        folder = data_root(root) / "coco"
        super().__init__(
            folder,
            COCO_PAGE,
            batch_size,
            captions_per_image,
            features,
            image_size,
            fit,
            num_workers,
            min_count,
            check,
            broken,
        )
        self.image_folders = {"train": train_images, "val": train_images, "test": test_images}
        self.folder = folder
        paths = folder / train_captions, folder / test_captions
        for path in paths:  # the second not only when the training is over
            require(path, COCO_PAGE)
        known, test = (read_coco(path) for path in paths)
        if not any(photograph.captions for photograph in known):
            raise ValueError(f"{paths[0]}: expected captions of its images, to train on")
        both = {photograph.number for photograph in known} & {photograph.number for photograph in test}
        if both:
            raise _malformed(paths[1], f"image {min(both)}", f"no image of {paths[0].name}")
        train, val = split_images(len(known), val_fraction, split_seed)
        self.learn({"train": [known[i] for i in train], "val": [known[i] for i in val], "test": test})

    def image_folder(self, part: str) -> Path:
        return self.folder / self.image_folders[part]


def cache_features(encoder: nn.Module, data: PhotographCaptions, prefix: Path, batch_size: int = 64) -> None:
    """Writes the features of all photographs of a data set; ``encoder`` gets them at the data set's ``image_size``.

    See :func:`datamodules.parts.image_features.write_features`; ``features`` then names their ``prefix``.
    """
    images: list[tuple[ImageSource, int]] = []
    for part, photographs in data.photographs.items():
        source = data.files(part)
        source.check(photograph.number for photograph in photographs)
        images += [(source, photograph.number) for photograph in photographs]
    write_features(encoder, images, prefix, batch_size)
