"""How far ours and lightning-bolts are apart, as a table for the docs.

python -m tests.bolts.tables
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bolts.overlay import computed, installed
from tests.bolts.parity import AUGMENTATIONS, ITEMS, difference, distances


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        made.mkdir()
        theirs = computed(installed(Path(folder) / "overlay"), made)
    print("| compared | what | largest difference | of values up to |\n| --- | --- | ---: | ---: |")
    for title, item, pairs, _ in ITEMS:
        for name, pair in pairs(theirs[item]).items():
            most, of = difference(*pair)
            print(f"| {title} | {name} | {most:.1e} | {of:.2g} |")
            title = ""
    print("\n| distribution of views | largest Kolmogorov–Smirnov distance |\n| --- | ---: |")
    for name in AUGMENTATIONS:
        found = distances(theirs["transforms"], name)
        print(f"| {name} | " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()) + " |")


if __name__ == "__main__":
    main()
