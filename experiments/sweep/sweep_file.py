"""A Weights & Biases sweep file and the trials that it describes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import yaml

from common.checks import nearest
from experiments.arguments import Mistake
from experiments.run_folder import RunFolder, RunOptions, read_record, runs_root

DISTRIBUTIONS = {
    "value": ("constant",),
    "values": ("categorical", "categorical_w_probabilities"),
    "min": ("int_uniform", "uniform", "log_uniform_values"),
}
"""distributions, by the key of a parameter"""
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]


@dataclass
class Trial:
    """One run of a sweep: ``state`` is waiting, running, finished, failed or stopped."""

    id: str
    parameters: dict[str, Any]
    command: list[str]
    root: Path
    state: str = "waiting"
    exit_status: int | None = None
    last_line: str = ""
    seconds: float = 0.0

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, wherever its name put it; None before the run was started."""
        return next((RunFolder(path) for path in self.root.glob(f"*/*/{self.id}")), None)

    def summary(self) -> dict[str, Any]:
        """The run's summary; empty if there is none that can be read."""
        try:
            return read_record(self.folder.summary) if self.folder else {}
        except ValueError:
            return {}

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"root": str(self.root), "run": str(self.folder.path) if self.folder else None}


def read_sweep(file: Path) -> dict[str, Any]:
    """The sweep file, with its defaults.

    Raises:
        Mistake: there is no such file, it is not YAML, or it is not a sweep that can run locally.
    """
    if not file.is_file():
        near = nearest(str(file), (str(path) for path in file.parent.glob("*.yaml")))
        raise Mistake(f"{file}: no such file; expected a sweep file like those in configs/sweeps/{near}")
    content = _load(file)
    if not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        raise Mistake(f"{file}: not a sweep; expected the keys method, program and parameters")
    sweep: dict[str, Any] = {
        "name": file.stem,
        "command": DEFAULT_COMMAND,
        "program": "train.py",
        "seed": 0,
        "run_cap": None,
    }
    sweep |= content
    if sweep.get("method") not in ("grid", "random"):
        raise Mistake(f"{file}: method={sweep.get('method')}: expected grid or random; bayes needs W&B's server")
    cap = 1 if sweep["run_cap"] is None and sweep["method"] == "grid" else sweep["run_cap"]
    if not isinstance(cap, int) or cap < 1:
        raise Mistake(f"{file}: run_cap={cap}: expected the number of trials, required for random search")
    if not isinstance(sweep["command"], list):
        raise Mistake(f"{file}: command={sweep['command']}: expected a list of words")
    if "${program}" in sweep["command"] and not Path(sweep["program"]).is_file():
        raise Mistake(f"{file}: program={sweep['program']}: no such file in {Path.cwd()}")
    for name, spec in sweep["parameters"].items():
        _check(f"{file}: parameters.{name}", spec)
    return sweep


def _load(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty if it contains something else."""
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Mistake(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _check(where: str, spec: object) -> None:
    if isinstance(spec, dict) and "parameters" in spec:
        raise Mistake(f"{where}: nested parameters; expected names with dots, such as model.fusion")
    if not isinstance(spec, dict) or not ({"value", "values"} & set(spec) or {"min", "max"} <= set(spec)):
        raise Mistake(f"{where}: expected a value, values, or min and max")
    kind, known = _distribution(spec), DISTRIBUTIONS[next(key for key in DISTRIBUTIONS if key in spec)]
    if kind not in known:
        raise Mistake(f"{where}: distribution={kind}: expected {', '.join(known)}{nearest(kind, known)}")
    if "values" in spec and (not isinstance(spec["values"], list) or not spec["values"]):
        raise Mistake(f"{where}: values={spec['values']}: expected a list")
    if "probabilities" in spec and len(spec["probabilities"]) != len(spec.get("values", ())):
        raise Mistake(f"{where}: probabilities={spec['probabilities']}: expected one per value")
    for key in ("min", "max") if "min" in spec else ():
        if not isinstance(spec[key], int if kind == "int_uniform" else int | float):
            number = "a whole number" if kind == "int_uniform" else "a number (YAML reads 1e-3 as text, 1.0e-3 as one)"
            raise Mistake(f"{where}: {key}={spec[key]}: expected {number}")
    if "min" in spec and (spec["min"] > spec["max"] or (kind == "log_uniform_values" and spec["min"] <= 0)):
        raise Mistake(f"{where}: min={spec['min']}, max={spec['max']}: expected min ≤ max, both above 0 for logarithms")


def _distribution(spec: dict[str, Any]) -> str:
    """The distribution that W&B chooses if the file does not."""
    if "values" in spec or "value" in spec:
        return str(spec.get("distribution", "categorical" if "values" in spec else "constant"))
    whole = isinstance(spec["min"], int) and isinstance(spec["max"], int)
    return str(spec.get("distribution", "int_uniform" if whole else "uniform"))


def expand(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each trial. A larger ``run_cap`` adds trials after the same first ones.

    Raises:
        Mistake: a grid over a continuous parameter.
    """
    specs: dict[str, dict[str, Any]] = sweep["parameters"]
    if sweep["method"] == "grid":
        for name, spec in specs.items():
            if _distribution(spec) in ("uniform", "log_uniform_values"):
                raise Mistake(
                    f"parameters.{name}: no grid over {_distribution(spec)}; expected values, or method: random"
                )
        drawn = (dict(zip(specs, values, strict=True)) for values in product(*map(_choices, specs.values())))
    else:
        generator = random.Random(sweep["seed"])
        # Few values may have fewer combinations than run_cap: there is an end to drawing.
        draws = range(100 * sweep["run_cap"])
        drawn = ({name: _draw(spec, generator) for name, spec in specs.items()} for _ in draws)
    different: dict[str, dict[str, Any]] = {}
    for parameters in drawn:
        different.setdefault(json.dumps(parameters, default=str), parameters)
        if len(different) == sweep["run_cap"]:
            break
    return list(different.values())


def _choices(spec: dict[str, Any]) -> list[Any]:
    if "value" in spec:
        return [spec["value"]]
    return list(spec["values"]) if "values" in spec else list(range(spec["min"], spec["max"] + 1))


def _draw(spec: dict[str, Any], generator: random.Random) -> Any:
    kind = _distribution(spec)
    if kind == "uniform":
        return generator.uniform(spec["min"], spec["max"])
    if kind == "log_uniform_values":
        return math.exp(generator.uniform(math.log(spec["min"]), math.log(spec["max"])))
    return generator.choices(_choices(spec), spec.get("probabilities"))[0]


def fill(command: list[Any], program: str, parameters: dict[str, Any]) -> list[str]:
    """The ``command`` block with its ``${…}`` filled in as W&B's agent does.

    Raises:
        Mistake: an unknown name.
    """
    pairs = [f"{name}={value}" for name, value in parameters.items()]
    flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in parameters.items()
        if value is not False
    ]
    words = {
        "env": ["/usr/bin/env"],
        "interpreter": [sys.executable],  # W&B's is `python`, which may be another one
        "program": [program],
        "args": [f"--{pair}" for pair in pairs],
        "args_no_hyphens": pairs,
        "args_no_equals": [word for name, value in parameters.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": flags,
        "args_json": [json.dumps(parameters, default=str)],
        "args_append_hydra": [f"+{pair}" for pair in pairs],
        "args_override_hydra": [f"++{pair}" for pair in pairs],
    }
    filled: list[str] = []
    for word in map(str, command):
        word = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda match: os.environ.get(match[1], match[1]), word)
        if not (macro := re.fullmatch(r"\$\{(.*)\}", word)):
            filled.append(word)
        elif macro[1] in words:
            filled += words[macro[1]]
        else:
            raise Mistake(f"command: {word} is unknown{nearest(macro[1], words)}")
    return filled


def make_trials(sweep: dict[str, Any]) -> list[Trial]:
    """The trials in order, each with a run id derived from the sweep's name and its parameters."""
    trials = []
    for parameters in expand(sweep):
        digest = hashlib.sha256(
            json.dumps([sweep["name"], parameters], sort_keys=True, default=str).encode()
        ).hexdigest()
        command = fill(sweep["command"], sweep["program"], parameters)
        run_id = f"{slug(sweep['name'])}-{digest[:8]}"
        trials.append(Trial(run_id, parameters, [*command, f"--run.id={run_id}"], _root(command)))
    return trials


def slug(name: str) -> str:
    """A sweep's name in a form for file names."""
    return re.sub(r"[^\w.-]+", "-", name)


def _root(command: list[str]) -> Path:
    """The folder of all runs; the command or a file that it names may set it."""
    root = None
    for word, following in pairwise([*command, ""]):
        option, _, value = word.partition("=")
        value = value or following
        if option == "--run.root":
            root = value
        elif option in ("-c", "--config") and Path(value).is_file():
            root = (_load(Path(value)).get("run") or {}).get("root") or root
    return runs_root(RunOptions(root=root))
