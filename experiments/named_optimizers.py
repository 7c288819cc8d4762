"""An optimizer or schedule that a configuration names takes its own defaults, and nothing of the one that it replaces.

jsonargparse keeps what the new class would take too, whoever has chosen it. So the weight decay of AdamW, a default of
PyTorch, would go on as that of an Adam that was named with nothing but its learning rate, where it means another thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import _typehints
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments.arguments import Mistake

_keep_what_fits = _typehints.discard_init_args_on_class_path_change


def _take_own_defaults(parser_or_action: Any, previous: Any, value: Any) -> None:
    """In place of jsonargparse's own function, which it calls with the value before and the one that is given."""
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        named = _typehints.import_object(value["class_path"])
        if isinstance(named, type) and issubclass(named, (Optimizer, LRScheduler)):
            for name in list(previous["init_args"].keys()):
                previous["init_args"].pop(name)
            return
    _keep_what_fits(parser_or_action, previous, value)


def take_own_defaults() -> None:
    """From now on; may be called again."""
    _typehints.discard_init_args_on_class_path_change = _take_own_defaults


def refuse_lost_arguments(args: Sequence[str]) -> None:
    """Refuses an option such as ``--model.optimizer.lr`` before the ``--model.optimizer`` that would drop it.

    Raises:
        Mistake: there is one; names both.
    """
    options = [arg.partition("=")[0] for arg in args]
    for place, (option, value) in enumerate(pairwise([*args, ""])):
        name = options[place]
        is_class = "." in (option.partition("=")[2] or value)
        if name.startswith("--model.") and name.endswith(("optimizer", "scheduler")) and is_class:
            for earlier in options[:place]:
                if earlier.startswith(f"{name}."):
                    raise Mistake(f"{earlier} stands before {name}, which replaces it; expected it after that")
