"""A new run that starts from the weights of an old one: whatever fits is taken, by name.

Rows that belong to a word or a class go to the same word or class of the new data, wherever it is counted now. Which
dimensions of which weights those are is found out by building the model with one more word, or class.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.facts import are_names
from common.files import read_checkpoint
from experiments.mistakes import Mistake
from experiments.run_folder import is_first_process
from experiments.technique import StartsAnew, TakenWhole

COUNTED = {"num_classes": "class_names"}
"""facts that say how many names another one has; a model may know the number alone"""
SHOWN = 3
"""names of weights that a line lists"""


@dataclass
class Names:
    """The names along some dimensions of a model's weights: those of the old run's data and those of the new one's."""

    old: list[str]
    new: list[str]

    def places(self, extra: int) -> tuple[Tensor, Tensor]:
        """Where what both have stands, in the old weights and in the new; ``extra`` entries stand behind the names."""
        here = {name: place for place, name in enumerate(self.new)}
        pairs = [(place, here[name]) for place, name in enumerate(self.old) if name in here]
        pairs += [(len(self.old) + i, len(self.new) + i) for i in range(extra)]
        table = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
        return table[:, 0], table[:, 1]

    @property
    def shared(self) -> int:
        return len(set(self.old) & set(self.new))


@dataclass
class Transfer:
    """What became of each weight."""

    taken: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, Tensor] = field(default_factory=dict)
    by: dict[str, str] = field(default_factory=dict)
    """what the mapped ones were mapped by"""
    left_out: dict[str, str] = field(default_factory=dict)
    """those of the checkpoint that are not used, and why"""
    new: list[str] = field(default_factory=list)
    """those of the model that the checkpoint does not have"""

    def leave_out(self, name: str, why: str) -> None:
        for used in (self.taken, self.mapped, self.by):
            used.pop(name, None)
        self.left_out[name] = why

    def lines(self) -> Iterator[str]:
        """The report: a line for each kind that there is."""
        for how in dict.fromkeys(self.by.values()):
            names = [name for name, by in self.by.items() if by == how]
            yield f"{'mapped':>10}  {len(names)}: {_listed(names)}, {how}"
        reasons = dict.fromkeys(self.left_out.values())
        for why in list(reasons)[:SHOWN]:
            names = [name for name, each in self.left_out.items() if each == why]
            yield f"{'left out':>10}  {len(names)}: {_listed(names)}, {why}"
        if len(reasons) > SHOWN:
            rest = sum(why in list(reasons)[SHOWN:] for why in self.left_out.values())
            yield f"{'left out':>10}  {rest} more"
        if self.new:
            yield f"{'new':>10}  {len(self.new)}: {_listed(self.new)}"


def start_from(module: nn.Module, path: Path, data: object = None) -> Transfer:
    """Loads whatever fits of a checkpoint's weights into ``module``, and says what that was.

    Args:
        data: where the names of the new classes are, if the model knows their number alone.

    Raises:
        BrokenCheckpoint: see :func:`common.files.read_checkpoint`.
        Mistake: nothing fits.
    """
    content = read_checkpoint(path)
    old, new = content["state_dict"], module.state_dict()
    done = _sorted(module, old, new, _indexed(module, content.get("hyper_parameters", {}), data))
    used = done.taken | done.mapped
    if not any(value.dim() > 1 for name, value in used.items() if name in dict(module.named_parameters())):
        holds = content.get("hyper_parameters", {}).get("_class_path", "a network")
        raise Mistake(
            f"init_from={path}: nothing in it fits {type(module).__name__}: it holds {holds} with {_sample(old)}; "
            f"expected some of {_sample(new)}"
        )
    module.load_state_dict(new | used)
    if is_first_process():
        print(f"init_from={path}: {len(done.taken)} of the model's {len(new)} tensors are taken as they are")
        for line in done.lines():
            print(line)
    return done


def _sorted(
    module: nn.Module, old: Mapping[str, Tensor], new: Mapping[str, Tensor], indexed: Mapping[str, dict[int, Names]]
) -> Transfer:
    """What is to become of each weight. ``indexed``: the names along dimensions of weights whose names have changed."""
    done, anew = Transfer(), _starting_anew(module)
    for name, here in new.items():
        if name not in old:
            done.new.append(name)
            continue
        there = old[name]
        if any(f"{name}.".startswith(f"{each}.") for each in anew):
            done.leave_out(name, "which every training starts anew")
        elif name in indexed:
            found = _mapped(there, here, indexed[name])
            if found is None:
                done.leave_out(name, "of which no name is the same")
            else:
                done.mapped[name] = found
                known = dict.fromkeys(f"{each.shared} of {len(each.new)} known" for each in indexed[name].values())
                done.by[name] = f"by name: {', '.join(known)}"
        elif there.shape == here.shape or _accepts(module, name, there):
            done.taken[name] = there
        else:
            done.leave_out(name, f"{tuple(there.shape)} in it and {tuple(here.shape)} in the model")
    for name in old:
        if name not in new:
            done.leave_out(name, "which the model does not have")
    for prefix, part in module.named_modules():
        of_part = [name for name in new if name.startswith(f"{prefix}.")]
        if isinstance(part, TakenWhole) and part.taken_whole and not all(name in done.taken for name in of_part):
            for name in of_part:
                if name in old:
                    done.leave_out(name, f"since {prefix} is of use as a whole only")
    return done


def _starting_anew(module: nn.Module) -> list[str]:
    """The names, or their beginnings, of what no other training has a use for."""
    return [
        f"{prefix}.{name}".removeprefix(".")
        for prefix, part in module.named_modules()
        if isinstance(part, StartsAnew)
        for name in part.not_transferred
    ]


def _indexed(module: nn.Module, before: Mapping[str, Any], data: object) -> dict[str, dict[int, Names]]:
    """By the names of weights: which dimensions are counted by names, where these are others than before.

    A dimension whose names are not known of both has none that are the same.
    """
    found: dict[str, dict[int, Names]] = {}
    arguments = dict(getattr(module, "hparams", {}))
    for changes, names in _changed(arguments, before, data):
        for weight, shape in _shapes(module, arguments | changes).items():
            own = module.state_dict()[weight].shape
            for dim, (longer, size) in enumerate(zip(shape, own, strict=False)):
                if longer == size + 1:
                    found.setdefault(weight, {})[dim] = names
    return found


def _changed(
    arguments: Mapping[str, Any], before: Mapping[str, Any], data: object
) -> Iterator[tuple[dict[str, Any], Names]]:
    """For each list of names that is not as it was: arguments by which it has one more, and the names."""
    for fact, value in arguments.items():
        if fact in COUNTED:
            lists = (before.get(COUNTED[fact]), arguments.get(COUNTED[fact]) or getattr(data, COUNTED[fact], None))
            old, new = (list(names or ()) for names in lists)
            if fact in before and (not old or old != new):
                yield {fact: value + 1}, Names(old, new)
        elif fact not in COUNTED.values() and are_names(value) and are_names(before.get(fact)):
            if list(value) != list(before[fact]):
                yield {fact: [*value, "one more"]}, Names(list(before[fact]), list(value))
        elif isinstance(value, Mapping) and isinstance(before.get(fact), Mapping):
            for key, names in value.items():
                old = before[fact].get(key, [])
                if are_names(names) and list(names) != list(old):
                    yield {fact: {**value, key: [*names, "one more"]}}, Names(list(old), list(names))


def _shapes(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, torch.Size]:
    """The shapes of the weights of a module like this one, with these arguments."""
    known = inspect.signature(type(module)).parameters
    with torch.random.fork_rng(devices=[]):
        made = type(module)(**{name: value for name, value in arguments.items() if name in known})
    return {name: value.shape for name, value in made.state_dict().items()}


def _mapped(there: Tensor, here: Tensor, names: Mapping[int, Names]) -> Tensor | None:
    """New weights with the old ones wherever the names are the same; None where none is, or the rest does not fit."""
    if there.dim() != here.dim():
        return None
    sources, targets = [], []
    for dim in range(here.dim()):
        if dim in names:
            extra = here.shape[dim] - len(names[dim].new)
            if extra < 0 or there.shape[dim] - len(names[dim].old) != extra or not names[dim].shared:
                return None
            source, target = names[dim].places(extra)
        elif there.shape[dim] != here.shape[dim]:
            return None
        else:
            source = target = torch.arange(here.shape[dim])
        sources.append(source)
        targets.append(target)
    found = here.clone()
    found[torch.meshgrid(*targets, indexing="ij")] = there[torch.meshgrid(*sources, indexing="ij")].to(found)
    return found


def _accepts(module: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the part that a tensor belongs to takes it in another shape than its own."""
    prefix, _, own = name.rpartition(".")
    part = module.get_submodule(prefix)
    if type(part)._load_from_state_dict is nn.Module._load_from_state_dict:
        return False
    errors: list[str] = []
    trial = {own: value}
    kept = {key: buffer for key, buffer in part.named_buffers(recurse=False)}
    part._load_from_state_dict(trial, "", {}, False, [], [], errors)
    for key, buffer in kept.items():  # it was a trial
        part.register_buffer(key, buffer)
    return not errors


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _sample(state: Mapping[str, Tensor]) -> str:
    """``encoder.0.weight (64, 3, 3, 3), …``."""
    weights = [f"{name} {tuple(value.shape)}" for name, value in state.items() if value.dim() > 1]
    return _listed(weights) or "no weights"
