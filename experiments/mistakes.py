"""Turns a user's mistake into one readable line: what is wrong, what was expected, and the nearest valid name."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from common.checks import nearest
from experiments.arguments import COMMANDS, Mistake
from experiments.run_folder import REPOSITORY


class Parser(LightningArgumentParser):
    """Lightning's parser, with error messages of one line instead of forty."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # one of several types is being tried: the outermost parser will speak
            super().error(message, ex)
        raise Mistake(one_line(message, self))


def mistake_in(error: BaseException, while_building: bool) -> str | None:
    """The line to show for an exception that a user's mistake caused; None for any other exception.

    Mistakes are the errors that this project's own code raises on purpose (a ``raise`` of a ValueError, TypeError or
    OSError), Lightning's misconfiguration errors, and, ``while_building`` the objects that the configuration names, any
    ValueError or OSError.
    """
    while str(error).startswith(_WRAPPED) and error.__cause__ is not None:
        error = error.__cause__  # what the class, or the data, said, which jsonargparse wraps
    if isinstance(error, (Mistake, MisconfigurationException)):
        return _flat(str(error))
    if not isinstance(error, (ValueError, TypeError, OSError)):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = last.filename.startswith(str(REPOSITORY) + os.sep) and "site-packages" not in last.filename
    if (ours and (last.line or "").startswith("raise")) or (while_building and not isinstance(error, TypeError)):
        return _flat(str(error))
    return None


_WRAPPED = ("Does not validate against any of the Union", "Call to compute_fn of link")


def one_line(message: str, parser: LightningArgumentParser) -> str:
    """The useful line of jsonargparse's message, with the nearest valid name if a name is wrong."""
    keys = re.findall(r"(?:Parser key|Key) \"([^\"]+)\":", message)
    given = re.search(r"Given value: NestedArg\(key='([^']+)', val=(.*)\)", message)
    path = ".".join(dict.fromkeys(keys))  # in order, each once
    if given and not path.endswith(given[1]):
        path = f"{keys[0]}.{given[1]}"
    path = path.replace(".init_args", "")
    classes = re.findall(r"class_path '([^']+)'", message)

    if match := re.search(r"unrecognized arguments: (\S+)", message):
        return f"{match[1]}: no such option{nearest(match[1].split('=')[0], _options(parser))}"
    if match := re.search(r"argument subcommand: invalid choice: '([^']+)' \(choose from (.*)\)", message):
        known = [*match[2].replace("'", "").split(", "), *COMMANDS]
        return f"{match[1]}: no such subcommand; expected {', '.join(known)}{nearest(match[1], known)}"
    if match := _UNKNOWN_KEY.search(message):
        owner = classes[-1] if classes else ""
        known = _arguments(owner) if owner else [option.lstrip("-") for option in _options(parser)]
        prefix = keys[0] if keys else ""
        what = f"{owner} has no argument {match[1]!r}" if owner else "no such key"
        return f"{prefix}.{match[1]}: {what}{nearest(match[1], known)}".lstrip(".")
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        module = f"{match[1]}.{match[2]}"
        if classes and classes[-1].startswith(f"{module}."):
            return f"{path}: no module named {module!r}{nearest(module, _modules())}"
        return f"{path}: {match[1]} has no class {match[2]!r}{nearest(match[2], _classes(match[1]))}"
    if match := re.search(r"No module named '([^']+)'", message):
        return f"{path}: no module named {match[1]!r}{nearest(match[1], _modules())}"
    if classes and (match := re.search(r"the following arguments are required: (\w+)", message)):
        source = ", or data with an attribute of that name" if path == "model" else ""
        return f"{path}.{match[1]}: {classes[-1]} requires it; expected --{path}.{match[1]}{source}"
    if match := re.search(r"File does not exist: '([^']+)'", message):
        return f"{path}: no file {_relative(match[1])!r}{nearest(_relative(match[1]), _configs())}"
    if match := re.search(r"Expected an? (.+?)\.? Got value: (.*)", message):
        return f"{path}={match[2]}: expected {_type_name(match[1])}"
    leaves = [line.strip(" -") for line in message.splitlines()]
    leaves = [line for line in leaves if line and not _NOISE.match(line)]
    value = given[2].strip("'\"") if given else next(iter(re.findall(r"Given value: (.*)", message)), "")
    expected = [_type_name(match[1]) for line in leaves if (match := re.match(r"Expected an? (.*)", line))]
    if expected and value:
        return f"{path}={value}: expected {' or '.join(dict.fromkeys(expected))}"
    detail = "; ".join(leaves) or _flat(message)
    return f"{path}={value}: {detail}" if path and value else f"{path}: {detail}" if path else detail


_UNKNOWN_KEY = re.compile(r"(?:Option|Key|Group key|does not accept option) '([^']+)'")
_NOISE = re.compile(
    r"Parser key|Does not validate|Subtypes|Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but"
    r"|Expected a dot import path|Problem with given class_path|Type typing"
)


def _type_name(text: str) -> str:
    """``<class 'int'>`` as ``int`` and ``typing.Literal['a', 'b']`` as ``'a', 'b'``."""
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    return re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", text)


def _options(parser: LightningArgumentParser) -> list[str]:
    """Every option of a parser and its subcommands."""
    options: list[str] = []
    for action in parser._actions:
        options += action.option_strings
        for sub in (getattr(action, "choices", None) or {}).values() if isinstance(action.choices, dict) else ():
            options += _options(sub)
    return options


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return []
    return [parameter for parameter in inspect.signature(made).parameters]


def _classes(module: str) -> list[str]:
    return [name for name, _ in inspect.getmembers(importlib.import_module(module), inspect.isclass)]


def _modules() -> list[str]:
    files = [*REPOSITORY.glob("lit_models/*.py"), *REPOSITORY.glob("datamodules/*.py")]
    return [f"{file.parent.name}.{file.stem}" for file in files]


def _configs() -> list[str]:
    return [str(file.relative_to(REPOSITORY)) for file in REPOSITORY.glob("configs/**/*.yaml")]


def _relative(path: str) -> str:
    return os.path.relpath(path) if os.path.isabs(path) else path


def _flat(message: object) -> str:
    return re.sub(r"\s*\n\s*", " ", str(message)).strip()
