"""The configurations, each made small by ``shrink/<technique>/<data set>.yaml``.

A configuration whose data has to be made first has ``shrink/<technique>/<data set>.py`` beside it, whose
``prepare(folder)`` writes it to a folder that then is LIT_DATA.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import DATA, REPOSITORY

SHRINK = Path(__file__).parent / "shrink"
NOT_TECHNIQUES = ("overlays", "sweeps", "cluster")
CONFIGS = sorted(
    path.relative_to(REPOSITORY / "configs").with_suffix("").as_posix()
    for path in REPOSITORY.glob("configs/*/*.yaml")
    if path.parent.name not in NOT_TECHNIQUES
)
EMBEDDED = {
    *("autoencoder/digits", "captioner/scenes", "char_lm/python_stdlib", "deep_image_prior/denoise"),
    *("deep_image_prior/inpaint", "deep_image_prior/super_resolve", "linear_probe/digits", "metric_learning/digits"),
    *("moco/digits", "seq_autoencoder/glyphs", "simclr/digits", "sketch_rnn/glyphs", "text_to_image/scenes"),
    *("text_vae/python_lines", "vae/digits", "vqa/easy_vqa", "vqa/sort_of_clevr"),
}
"""what runs offline with what pip installed: the first choice where one configuration stands for several"""


def files_of(name: str) -> list[Path]:
    """The configuration and what makes it small, of which the later wins."""
    files = [REPOSITORY / "configs" / f"{name}.yaml", SHRINK / f"{name}.yaml"]
    return [file for file in files if file.is_file()]


def options_of(name: str, folder: Path) -> tuple[list[str], Path]:
    """The options that choose one configuration, made small, and its LIT_DATA, which may be made in ``folder``."""
    options = [part for file in files_of(name) for part in ("-c", str(file))]
    if not (maker := SHRINK / f"{name}.py").is_file():
        return options, DATA
    spec = importlib.util.spec_from_file_location("maker", maker)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prepare(folder)
    return options, folder


def classes_of(name: str) -> dict[str, str]:
    """The classes that the tests of a configuration run: the model's, the data's, and those of the data's parts."""
    classes: dict[str, str] = {}
    for file in files_of(name):
        settings = yaml.safe_load(file.read_text())
        parts: dict[str, Any] = {"model": settings.get("model"), "data": settings.get("data")}
        parts |= (parts["data"] or {}).get("init_args", {})
        for part, value in parts.items():
            if isinstance(value, dict) and "class_path" in value:
                classes[part] = value["class_path"]
    return classes


def first_of_each(part: str | None = None) -> list[str]:
    """One configuration of each set of classes, or of each class of a part: an embedded default where there is one."""
    first: dict[object, str] = {}
    for name in sorted(CONFIGS, key=lambda name: (name not in EMBEDDED, name)):
        classes = classes_of(name)
        first.setdefault(classes[part] if part else tuple(sorted(classes.items())), name)
    return sorted(first.values())


ONE_OF_EACH = first_of_each()
TECHNIQUES = first_of_each("model")


@pytest.fixture(
    params=[name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that choose one configuration, made small; the fast tier takes one of each set of classes."""
    options, data = options_of(request.param, tmp_path / "data")
    monkeypatch.setenv("LIT_DATA", str(data))
    return options
