"""Captions of one's own: a CSV file with a picture and a sentence about it in each line."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from common.checks import one_of, within
from common.pictures import Fit
from datamodules.caption_files import Photograph, PhotographCaptions, words_of
from datamodules.parts.image_files import Broken
from datamodules.parts.picture_tables import PictureTable


class CSVCaptions(PhotographCaptions):
    """Captions of one's own about pictures of one's own: a CSV file with the columns ``image,caption``.

    ``image`` is the path of a picture below ``images``; lines with the same picture are captions of it. If there is a
    column ``split``, it says train, val or test; else a tenth of the pictures is for the test, and a tenth of the rest
    for validation. Pictures without a caption are left out, which is said, unless none has one: then all of them are
    the test part, whose captions can be predicted.

    Args:
        path: the CSV file, or its name in the data folder (``LIT_DATA``, by default ``data/``).
        images: the folder of the pictures, by default that of the file.
        val_fraction, test_fraction: shares of the pictures for validation and test, where the file has no ``split``; if
            it has one without any line for validation, that is cut from the training pictures.
        split_seed: seed of the split, independent of the run's seed.
        batch_size, captions_per_image, image_size, fit, num_workers, min_count, check, broken: see
            :class:`~datamodules.caption_files.PhotographCaptions`.

    Raises:
        FileNotFoundError: the file, the folder or a picture is not there; names the nearest.
        ValueError: an argument is out of range, or the file is malformed; names the line.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        batch_size: int = 32,
        captions_per_image: int | None = None,
        image_size: int = 128,
        fit: Fit = "squash",
        num_workers: int = 0,
        min_count: int = 1,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        check: bool = True,
        broken: Broken = "error",
    ) -> None:
        one_of(Fit, fit=fit)
        one_of(Broken, broken=broken)
        within("(0, 1)", val_fraction=val_fraction)
        within("[0, 1)", test_fraction=test_fraction)
        table = PictureTable(path, images, (), ("caption",))
        self.folder = table.numbers.folder
        super().__init__(
            self.folder,
            table.numbers.page,
            batch_size,
            captions_per_image,
            None,
            image_size,
            fit,
            num_workers,
            min_count,
            check,
            broken,
        )
        captions: dict[int, list[str]] = {}
        part_of: dict[int, str] = {}
        for line in table.lines:
            if part_of.setdefault(line.image, line.part) != line.part:
                raise table.malformed(line.number, f"split {line.part!r}, but {part_of[line.image]!r} in a line before")
            captions.setdefault(line.image, []).extend(filter(None, [words_of(line.values.get("caption", ""))]))
        made = [
            (part_of[image], image, Photograph(image, table.numbers.names[image], texts))
            for image, texts in captions.items()
        ]
        if any(captions.values()):
            parts = table.in_parts(made, val_fraction, test_fraction, split_seed)
        else:
            parts = {"train": [], "val": [], "test": [photograph for _, _, photograph in made]}
        self.parts_are_cut = not table.is_split
        counts = ", ".join(f"{len(them)} {part}" for part, them in parts.items() if them)
        described = sum(map(len, captions.values()))
        hint = "" if described else table.hint("caption")
        rank_zero_info(f"{table.file}: {counts} pictures with {described} captions{hint}")
        self.learn(parts)

    def image_folder(self, part: str) -> Path:
        return self.folder
