"""What a command line says of a class that it names: the class takes its own defaults, and ``null`` is null.

jsonargparse keeps what the new class would take too, whoever has chosen it. So the weight decay of AdamW, a default of
PyTorch, would go on as that of an Adam that was named with nothing but its learning rate, where it means another thing;
and the noise of a task as that of another one. It also hands the value of an option such as ``--data.task.sigma`` on
as Python would print it, in which ``null`` is the word "None".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import _typehints
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments.arguments import Mistake
from experiments.technique import TakesOwnDefaults

_keep_what_fits = _typehints.discard_init_args_on_class_path_change
_adapt = _typehints.adapt_class_type

REPLACED = (".optimizer", ".scheduler", ".task")
"""ends of the options of classes that take their own defaults"""


def _take_own_defaults(parser_or_action: Any, previous: Any, value: Any) -> None:
    """In place of jsonargparse's own function, which it calls with the value before and the one that is given."""
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        named = _typehints.import_object(value["class_path"])
        is_ours = isinstance(named, TakesOwnDefaults)
        if is_ours or (isinstance(named, type) and issubclass(named, (Optimizer, LRScheduler))):
            for name in list(previous["init_args"].keys()):
                previous["init_args"].pop(name)
            return
    _keep_what_fits(parser_or_action, previous, value)


def _adapt_with_null(value: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of jsonargparse's own function, which writes the value of a nested option into a text, and reads it."""
    nested = value.get("init_args") if hasattr(value, "get") else None
    if isinstance(nested, _typehints.NestedArg) and _holds_null(nested.val):
        value["init_args"] = nested._replace(val=json.dumps(nested.val))
    return _adapt(value, *args, **kwargs)


def _holds_null(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return any(map(_holds_null, value.values() if isinstance(value, dict) else value))
    return value is None


def mend_parsing() -> None:
    """From now on; may be called again."""
    _typehints.discard_init_args_on_class_path_change = _take_own_defaults
    _typehints.adapt_class_type = _adapt_with_null


def refuse_lost_arguments(args: Sequence[str]) -> None:
    """Refuses an option such as ``--model.optimizer.lr`` before the ``--model.optimizer`` that would drop it.

    Raises:
        Mistake: there is one; names both.
    """
    options = [arg.partition("=")[0] for arg in args]
    for place, (option, value) in enumerate(pairwise([*args, ""])):
        name, chosen = options[place], option.partition("=")[2] or value
        is_class = "." in chosen or chosen[:1].isupper()
        if name.startswith(("--model.", "--data.")) and name.endswith(REPLACED) and is_class:
            for earlier in options[:place]:
                if earlier.startswith(f"{name}."):
                    raise Mistake(f"{earlier} stands before {name}, which replaces it; expected it after that")
