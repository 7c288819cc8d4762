"""Where a run goes on: its folder, the checkpoint to start from, and what must not have changed since."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Set
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from common.checks import nearest
from common.files import BrokenCheckpoint, read_checkpoint
from experiments.mistakes import Mistake
from experiments.run_folder import (
    RunFolder,
    find_runs,
    folder_of_checkpoint,
    launcher_run_id,
    new_run_id,
    runs_root,
)
from experiments.technique import Adjustable

RUN_ID = "LIT_RUN_ID"
"""environment variable that tells the processes which a run starts on its other devices which run they belong to"""


def with_own_config(args: list[str]) -> list[str]:
    """A checkpoint in a run's folder brings its configuration along where none is given."""
    given = any(arg in ("-c", "--config") or arg.startswith(("-c=", "--config=")) for arg in args)
    for i, arg in enumerate(args):
        if not given and arg.split("=")[0] == "--ckpt_path":
            path = arg.partition("=")[2] or "".join(args[i + 1 : i + 2])
            if folder := folder_of_checkpoint(Path(path)):
                return [args[0], "-c", str(folder.config), *args[1:]]
    return args


def locate(subcommand: str, config: Any) -> tuple[RunFolder, Path | None]:
    """The folder of the run and the checkpoint to start from, if any.

    ``ckpt_path`` may be a file, ``last`` (the newest state of the run ``run.id``, or of the newest run of this name;
    for ``fit`` none is a fresh start) or ``best`` (likewise). A file in a run's folder belongs to that run. Under
    torchrun its ``--rdzv-id`` stands for ``run.id``.

    Raises:
        Mistake: no such checkpoint.
    """
    options = config.run
    name = options.name or f"{_technique(config.model.class_path)}/{_snake_case(config.data.class_path)}"
    if len(name.split("/")) != 2:
        raise Mistake(f"run.name={name}: expected <technique>/<data set>")
    root = runs_root(options)
    run_id = options.id or os.environ.get(RUN_ID) or launcher_run_id()
    wanted = config.ckpt_path
    if wanted in ("last", "best"):
        folders = [RunFolder(root / name / run_id)] if run_id else find_runs(root, name)[::-1]
        for folder in folders:
            found = newest_readable(folder) if wanted == "last" else folder.best_checkpoint()
            if found:
                return folder, found
        if subcommand != "fit" or wanted == "best":
            raise Mistake(f"ckpt_path={wanted}: no run of {name} in {root} has such a checkpoint")
        wanted = None
    if wanted:
        path = Path(wanted)
        if not path.is_file():
            near = nearest(path.name, (file.name for file in path.parent.glob("*.ckpt")))
            raise Mistake(f"ckpt_path={wanted}: no such file; expected a checkpoint, 'last' or 'best'{near}")
        if (origin := folder_of_checkpoint(path)) and not options.id:
            return origin, path
        return RunFolder(root / name / (run_id or new_run_id())), path
    return RunFolder(root / name / (run_id or new_run_id())), None


def newest_readable(folder: RunFolder) -> Path | None:
    """The newest state of a run that can be read; says so where a newer one cannot."""
    candidates = folder.recovery_checkpoints()
    for i, path in enumerate(candidates):
        try:
            read_checkpoint(path)
        except BrokenCheckpoint as error:
            older = candidates[i + 1] if i + 1 < len(candidates) else None
            print(f"warning: {error}; resuming from {older or 'the start'} instead", file=sys.stderr)
        else:
            return path
    return None


def check_weights_file(init_from: str | None) -> None:
    """Raises Mistake where there is no file to start a new run from."""
    if init_from and not (path := Path(init_from)).is_file():
        near = nearest(path.name, (file.name for file in path.parent.glob("*.ckpt")))
        raise Mistake(f"init_from={init_from}: no such file; expected a checkpoint{near}")


def refuse_contradictions(subcommand: str, config: Any, now: dict[str, Any], checkpoint: Path, facts: Set[str]) -> None:
    """Compares what is asked for with what a checkpoint was made with.

    Lightning would let the checkpoint's hyper-parameters win over the command line without a word.

    Args:
        config: of the subcommand, as parsed. What an evaluation may adjust and doesn't is taken from the checkpoint.
        now: the same as plain data.
        facts: arguments of the model that come from the data, which may be larger by now, say.

    Raises:
        Mistake: they contradict each other; names the first argument.
    """
    asked = config.model.as_dict()
    saved = read_checkpoint(checkpoint).get("hyper_parameters", {})
    if (saved_class := saved.get("_class_path", asked["class_path"])) != asked["class_path"]:
        raise Mistake(f"ckpt_path={checkpoint}: holds a {saved_class}, expected a {asked['class_path']}")
    pairs = {f"model.{key}": (value, saved.get(key, value)) for key, value in asked.get("init_args", {}).items()}
    package, _, name = asked["class_path"].rpartition(".")
    model_class = getattr(import_module(package), name)
    origin = folder_of_checkpoint(checkpoint)
    if subcommand != "fit":
        for key in model_class.adjustable if isinstance(model_class, Adjustable) else ():
            new, old = pairs.pop(f"model.{key}")
            if new is None and old is not None:
                config.model.init_args[key] = old
    elif origin is not None:
        run = yaml.safe_load(origin.config.read_text())
        for part in ("model", "data"):
            before, after = run[part].get("init_args", {}), now[part].get("init_args", {})
            pairs |= {f"{part}.{key}": (value, before.get(key, value)) for key, value in after.items()}
        pairs["seed_everything"] = (now["seed_everything"], run["seed_everything"])
    for name, (asked_for, made_with) in pairs.items():
        if name.removeprefix("model.") in facts:
            continue
        for key, new, old in differing(name, _plain(asked_for), _plain(made_with)):
            raise Mistake(
                f"{key}={new}: contradicts the checkpoint {checkpoint}, which was made with {old}; "
                "use the same value, or start a new run without --ckpt_path"
            )


def differing(name: str, new: Any, old: Any) -> Iterator[tuple[str, Any, Any]]:
    """What differs of two values of an argument: names, new and old values.

    Of two choices of one class, an argument that the class did not yet have has its default, as if it had been there.
    """
    if isinstance(new, dict) and isinstance(old, dict) and new.get("class_path", 0) == old.get("class_path", 1):
        before, after = (each.get("init_args") or {} for each in (old, new))
        for key in after:
            yield from differing(f"{name}.{key}", after[key], before.get(key, after[key]))
    elif new != old:
        yield name, new, old


def _plain(value: object) -> Any:
    return yaml.safe_load(yaml.safe_dump(value)) if not hasattr(value, "as_dict") else value.as_dict()


def _technique(class_path: str) -> str:
    """``lit_models.vqa.VQA`` is ``vqa``."""
    return class_path.split(".")[-2] if "." in class_path else class_path.lower()


def _snake_case(class_path: str) -> str:
    """``datamodules.easy_vqa.EasyVQA`` is ``easy_vqa``."""
    name = class_path.rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
