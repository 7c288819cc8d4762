"""The configurations, each made small by ``shrink/<technique>/<data set>.yaml``.

A configuration whose data has to be made first has ``shrink/<technique>/<data set>.py`` beside it, whose
``prepare(folder)`` writes it to a folder that then is LIT_DATA.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import DATA, REPOSITORY

SHRINK = Path(__file__).parent / "shrink"
NOT_TECHNIQUES = ("overlays", "sweeps", "cluster")
CONFIGS = sorted(
    path.relative_to(REPOSITORY / "configs").with_suffix("").as_posix()
    for path in REPOSITORY.glob("configs/*/*.yaml")
    if path.parent.name not in NOT_TECHNIQUES
)


def options_of(name: str, folder: Path) -> tuple[list[str], Path]:
    """The options that choose one configuration, made small, and its LIT_DATA, which may be made in ``folder``."""
    options = ["-c", str(REPOSITORY / "configs" / f"{name}.yaml")]
    if (smaller := SHRINK / f"{name}.yaml").is_file():
        options += ["-c", str(smaller)]
    if not (maker := SHRINK / f"{name}.py").is_file():
        return options, DATA
    spec = importlib.util.spec_from_file_location("maker", maker)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prepare(folder)
    return options, folder


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that choose one configuration, made small."""
    options, data = options_of(request.param, tmp_path / "data")
    monkeypatch.setenv("LIT_DATA", str(data))
    return options
