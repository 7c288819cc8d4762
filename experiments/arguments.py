"""User mistakes, shared by all subcommands, and the subcommands that are programs of their own."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from typing import NoReturn

from common.checks import nearest

COMMANDS = ("compare", "sweep", "restore")
"""subcommands of ``train.py``: ``experiments/<name>/command.py`` has a ``main(args) -> exit status``"""


class Mistake(Exception):
    """A user's mistake, as one readable line."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises its errors as a :class:`Mistake` with the nearest valid name."""

    def __init__(self, command: str, documentation: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(
            f"train.py {command}", description=documentation, formatter_class=formatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            raise Mistake(f"{match[1]}: no such option{nearest(match[1], self._option_string_actions)}")
        if match := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = match[3].replace("'", "")
            raise Mistake(f"{match[1]}={match[2]}: expected {choices}{nearest(match[2], choices.split(', '))}")
        raise Mistake(message)


def run_command(args: list[str]) -> bool:
    """Runs one of :data:`COMMANDS` if ``args`` start with it, and returns whether they do.

    Raises:
        SystemExit: with status 2 after a mistake, which is reported in one line, or with the subcommand's own status.
    """
    if not args or args[0] not in COMMANDS:
        return False
    try:
        status = importlib.import_module(f"experiments.{args[0]}.command").main(args[1:])
    except (Mistake, OSError) as error:
        if os.environ.get("LIT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 2
    if status:
        raise SystemExit(status)
    return True
