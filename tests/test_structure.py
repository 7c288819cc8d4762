"""Imports point one way and make no circle: at run time, inside of functions and for types alike.

train.py → experiments → common; lit_models → datamodules → common; lit_models/figures → lit_models.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGES = ("common", "datamodules", "lit_models", "experiments")
DATA = {"datamodules", "datamodules.parts"}
SHARED = {"lit_models.networks", "lit_models.parts", "lit_models.scores"}
BELOW: dict[str, set[str]] = {
    "common": set(),
    "datamodules.parts": {"common"},
    "datamodules": {"common", "datamodules.parts"},
    **{room: {"common"} | DATA | SHARED for room in SHARED},
    "lit_models": {"common"} | DATA | SHARED,
    "lit_models.figures": {"common", "lit_models"} | DATA | SHARED,
    "experiments": {"common"},
    "train": {"experiments"},
}
"""each room, and the rooms that it may import from beside itself"""
COMMANDS = ("experiments.baselines.", "experiments.from_lightning_bolts", "experiments.restore.")
"""programs of their own, which know models and data and which nobody imports"""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


PATHS = {
    module_of(path): path
    for path in [REPOSITORY / "train.py", *(file for name in PACKAGES for file in (REPOSITORY / name).rglob("*.py"))]
}


def imported(module: str) -> Iterator[str]:
    """The project's modules that one imports, wherever in its file it does."""
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            name = name if name in PATHS else name.rpartition(".")[0]
            if name in PATHS:
                yield name


GRAPH = {module: set(imported(module)) - {module} for module in PATHS}


def room_of(module: str) -> str:
    """The innermost room that a module stands in."""
    return max((room for room in BELOW if f"{module}.".startswith(f"{room}.")), key=len)


def allowed(module: str, other: str) -> bool:
    here, there = room_of(module), room_of(other)
    if here == "lit_models" == there:
        return False  # a technique is one file
    return here == there or there in BELOW[here]


def test_every_import_points_down() -> None:
    edges = [(module, other) for module, others in sorted(GRAPH.items()) for other in sorted(others)]
    wrong = [f"{a} -> {b}" for a, b in edges if not allowed(a, b) and not a.startswith(COMMANDS)]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_a_command() -> None:
    assert not [f"{a} -> {b}" for a, others in GRAPH.items() for b in others if b.startswith(COMMANDS) and a != b]


def reached(start: str) -> set[str]:
    """All that a module imports, and what that imports, and so on."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = GRAPH[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_no_imports_make_a_circle() -> None:
    everything = {module: reached(module) for module in GRAPH}
    circles = {
        " <-> ".join(sorted(other for other in everything[module] if module in everything[other]))
        for module in GRAPH
        if module in everything[module]
    }
    assert not circles, "\n".join(sorted(circles))
