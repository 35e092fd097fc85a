"""A user's own contestants, and the toolkit's contestants for a user's task."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable

from torch import Tensor, nn

from ..errors import InputError
from ..names import found, unknown
from ..tasks.goals import Classification, ExactMatch, NextCharacter
from ..tasks.task import Task
from . import CONTESTANTS
from .contestant import Contestant, Contestants, against
from .reasoning import thinkers
from .small import pictures, vectors
from .text import language_models

Entry = Contestant | Callable[..., nn.Module]
"""A contestant, or a function of the task, or of the task and a `size`, that makes a new network."""


def contestants_for(task: Task) -> Contestants:
    """The toolkit's own contestants for a task of yours, chosen by its inputs and goal: name → contestant.

    Args:
        task: on vectors (batch, numbers); on pictures (batch, channels, height, width), with the goal
            `Classification`; on puzzles (batch, cells, symbols), with `ExactMatch`; or on a text, with
            `NextCharacter`. There are none for other tasks.
    """
    if isinstance(task.goal, NextCharacter):
        return language_models(task)
    inputs, _ = task.sample(1)
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        return vectors(task, width=16, depth=6, size=32)
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and isinstance(task.goal, Classification):
        return pictures(task)
    if isinstance(inputs, Tensor) and inputs.ndim == 3 and isinstance(task.goal, ExactMatch):
        return thinkers(task)
    return {}


def none_fits(task: Task) -> str:
    """That the toolkit has no contestants for the task, in words, and what to do."""
    inputs, _ = task.sample(1)
    shape = f" of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else ""
    return (
        f"no network of the toolkit fits inputs{shape} with the goal {type(task.goal).__name__}: they take vectors "
        "(batch, numbers) and, for Classification, pictures (batch, channels, height, width). Reshape the data, or "
        "name a network of your own, MODULE:FUNCTION"
    )


def known(name: str, task: Task) -> Contestants:
    """The toolkit's contestants for the task of that name on the command line."""
    make = found(CONTESTANTS[name], {}, "the contestants of") if name in CONTESTANTS else contestants_for
    contestants: Contestants = make(task)
    return contestants


def entered(name: str, entry: Entry, task: Task) -> Contestant:
    """The contestant that an entry stands for; `InputError` if it cannot take part."""
    if isinstance(entry, Contestant):
        return entry
    if isinstance(entry, nn.Module):
        raise InputError(
            f"{name} is a network: pass a function of the task that makes one, since each seed needs a new one"
        )
    if not callable(entry):
        raise InputError(f"{name} is a {type(entry).__name__}, not a function of the task that makes a network")
    try:
        parameters = inspect.signature(entry).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = {}  # type: ignore[assignment]
    sized = "size" in parameters
    default = parameters["size"].default if sized else None
    last: list[weakref.ref[Tensor]] = []

    def build(size: int) -> nn.Module:
        nonlocal last
        network = entry(task, size=size) if sized else entry(task)
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
        learned = [each for each in network.parameters() if each.requires_grad]
        if {id(each) for each in learned} & {id(known) for ref in last if (known := ref()) is not None}:
            raise TypeError(
                f"{name} returned the parameters of its last network again: it must make new ones at each call"
            )
        last = [weakref.ref(each) for each in learned]
        return network

    return Contestant(
        "own",
        (inspect.getdoc(entry) or "a network of your own").splitlines()[0].rstrip("."),
        build,
        fixed=not sized,
        size=default if isinstance(default, int) else None,
    )


def chosen(models: str, contestants: Contestants, task: Task) -> tuple[Contestants, list[str]]:
    """All contestants that can be a baseline, and the names of those that take part.

    Args:
        models: names separated by commas: the toolkit's, `all` for those that usually take part, `MODULE:FUNCTION`.
        contestants: the toolkit's.
        task: the task that networks are made for.
    """
    names: list[str] = []
    contestants = dict(contestants)
    for name in (part.strip() for part in models.split(",")):
        if name == "all":
            names += [usual for usual, contestant in contestants.items() if contestant.usual]
            if not names:
                raise InputError(none_fits(task))
            continue
        if name not in contestants:
            if ":" not in name:
                raise unknown(name, contestants, "model") if contestants else InputError(none_fits(task))
            contestants[name] = entered(name, found(name, {}, "model"), task)
        names.append(name)
    return contestants, list(dict.fromkeys(names))


def compared_with(baseline: str | None, contestants: Contestants, names: list[str]) -> Contestants:
    """The same contestants, each with a baseline: the one given, else its own if all have one, else the first name."""
    if baseline is None and all(contestants[name].baseline in contestants for name in names):
        return contestants
    first = names[0] if baseline is None else baseline
    if first not in contestants:
        raise unknown(first, contestants, "baseline")
    size = None if contestants[first].fixed else contestants[first].size
    return against(first, size, contestants)
