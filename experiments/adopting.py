"""The facts that a checkpoint's model was made with win over those of the data that it is used on.

A vocabulary of as many words, or as many classes, would fit the weights just as well and mean something else. So the
data take the checkpoint's facts over by name (:class:`~experiments.technique.AdoptsFacts`), or are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from common.facts import difference, plain
from common.files import read_checkpoint
from experiments.facts import classes_asked_for, shared_facts
from experiments.mistakes import Mistake
from experiments.run_folder import folder_of_checkpoint, is_first_process
from experiments.technique import AdoptsFacts, Fingerprinted

NOT_WHICH = ("batch_size", "num_workers", "root")
"""arguments of data modules that say how the data are read, or where they lie, and not which they are"""


def saved_facts(checkpoint: Path, facts: Set[str]) -> dict[str, Any]:
    """Those of the model's arguments that came from the data, as a checkpoint has them; some may be missing."""
    saved = read_checkpoint(checkpoint).get("hyper_parameters", {})
    return {name: saved[name] for name in sorted(facts) if name in saved}


def own_facts(args: list[str], model: type, facts: Set[str], base: Path) -> list[str]:
    """Options for the facts that the data of a checkpoint's run had, and that the data of a command line don't have.

    So a captioner describes a folder of pictures, which has no words.

    Args:
        facts: those that the data of the command line have.
        base: the configuration that is always underneath.
    """
    given = dict(pairwise(args)) | dict(arg.split("=", 1) for arg in args if arg.startswith("--") and "=" in arg)
    checkpoint = Path(given.get("--ckpt_path", ""))
    if not checkpoint.is_file() or (origin := folder_of_checkpoint(checkpoint)) is None:
        return []
    _, before = classes_asked_for([args[0], "-c", str(origin.config)], base)
    lacking = (shared_facts(model, before) if before else set()) - facts
    saved = saved_facts(checkpoint, {name for name in lacking if f"--model.{name}" not in given})
    return [part for name, value in saved.items() for part in (f"--model.{name}", json.dumps(value))]


def adopt(data: object, saved: Mapping[str, Any], checkpoint: Path) -> list[str]:
    """Lets the data take over the facts in which they differ from a checkpoint's.

    Returns:
        the names of those facts.

    Raises:
        Mistake: they can't; names the first fact and its first differences.
        ValueError: the same, as the data say it.
    """
    differing = {
        name: value for name, value in saved.items() if hasattr(data, name) and _differ(getattr(data, name), value)
    }
    if not differing:
        return []
    told = {name: difference(getattr(data, name), value) for name, value in differing.items()}
    settled = data.adopt(differing) if isinstance(data, AdoptsFacts) else ()
    for name in differing:
        if name not in settled:
            raise Mistake(
                f"data.{name}: {told[name]}; expected data as {checkpoint} was made with, since "
                f"{type(data).__name__} cannot take this over"
            )
    return list(differing)


def _differ(ours: object, theirs: object) -> bool:
    return bool(plain(ours) != plain(theirs))


def other_arguments(data: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The arguments that choose other data than those of the run that a checkpoint is of, and their values.

    Args:
        data: the configuration of the data, as plain data.

    Returns:
        by their names, as ``data.source``; empty where the file is in no run's folder.
    """
    origin = folder_of_checkpoint(checkpoint)
    if origin is None:
        return {}
    before = yaml.safe_load(origin.config.read_text()).get("data", {})
    return dict(_changed("data", before, data))


def _changed(name: str, before: object, after: object) -> list[tuple[str, Any]]:
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [(name, after)] if plain(before) != plain(after) else []
    if before.get("class_path") != after.get("class_path"):
        return [(name, after.get("class_path"))]
    found: list[tuple[str, Any]] = []
    for key in after:
        if key in before and key not in NOT_WHICH:  # a new argument has its default, as if it had been there
            found += _changed(name if key == "init_args" else f"{name}.{key}", before[key], after[key])
    return found


def are_others(data: Any, checkpoint: Path) -> bool:
    """Whether the training data are others than those that a checkpoint was saved with, by their fingerprints.

    False too where that can't be told: there is none, or the training data are not at hand.
    """
    saved = read_checkpoint(checkpoint).get("fingerprints")
    if all(each is None for each in saved or ()) or not is_first_process():
        return False
    try:
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
    except (OSError, ValueError):  # a model may be used where its training data never were
        return False
    return isinstance(loader, Fingerprinted) and [loader.fingerprint()] != saved
