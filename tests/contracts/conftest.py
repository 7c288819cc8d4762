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

from experiments.callbacks.representation_probe import monitors
from tests.conftest import DATA, NO_PICTURES, NO_PROBE, REPOSITORY

SHRINK = Path(__file__).parent / "shrink"
NOT_TECHNIQUES = ("overlays", "sweeps", "cluster")
CONFIGS = sorted(
    path.relative_to(REPOSITORY / "configs").with_suffix("").as_posix()
    for path in REPOSITORY.glob("configs/*/*.yaml")
    if path.parent.name not in NOT_TECHNIQUES
)
EMBEDDED = [
    *("autoencoder/digits", "captioner/scenes", "char_lm/python_stdlib", "deep_image_prior/inpaint"),
    *("deep_image_prior/super_resolve", "deep_image_prior/denoise", "linear_probe/digits", "metric_learning/digits"),
    *("moco/digits", "seq_autoencoder/glyphs", "simclr/digits", "sketch_rnn/glyphs", "text_to_image/scenes"),
    *("text_vae/python_lines", "vae/digits", "vqa/easy_vqa", "vqa/sort_of_clevr"),
]
"""what runs offline with what pip installed: where one configuration stands for several, the first of these"""


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
    """The classes that the tests of a configuration run: of the model, of the data, and of a source that they wrap."""
    classes: dict[str, str] = {}
    for file in files_of(name):
        settings = yaml.safe_load(file.read_text())
        parts: dict[str, Any] = {key: settings.get(key) or {} for key in ("model", "data")}
        parts["source"] = parts["data"].get("init_args", {}).get("source")
        for part, value in parts.items():
            if isinstance(value, dict) and "class_path" in value:
                classes[part] = value["class_path"]
    return classes


def first_of_each(*parts: str) -> list[str]:
    """One configuration of each combination of classes."""
    first: dict[object, str] = {}
    for name in [*EMBEDDED, *CONFIGS]:
        classes = classes_of(name)
        first.setdefault(tuple(classes.get(part) for part in parts), name)
    return sorted(first.values())


ONE_OF_EACH = first_of_each("model", "data", "source")
TECHNIQUES = first_of_each("model")
BY_TECHNIQUE = [name if name in TECHNIQUES else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
"""for contracts that do not depend on the data: in the fast tier each technique once"""


@pytest.fixture(
    params=[name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that choose one configuration, made small; the fast tier takes one of each set of classes."""
    options, data = options_of(request.param, tmp_path / "data")
    monkeypatch.setenv("LIT_DATA", str(data))
    return options


@pytest.fixture
def bare(config: list[str], pytestconfig: pytest.Config) -> list[str]:
    """``config`` without pictures and, in the fast tier, without the probe where it does not choose the checkpoint.

    Both are in the tiny run; they take longer than all the rest of a training as small as these.
    """
    settings = [yaml.safe_load(Path(path).read_text()) for path in config[1::2]]
    best_by = [s["best"]["monitor"] for s in settings if "best" in s]
    bare = [*config, *NO_PICTURES]
    if pytestconfig.getoption("--all") or set(best_by[-1:]) & set(monitors()):
        return bare
    return [*bare, *NO_PROBE]
