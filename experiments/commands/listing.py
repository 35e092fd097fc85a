"""The listing of tasks, recipes and models."""

from __future__ import annotations

import inspect

from ..contestants.own import known, none_fits
from ..names import found
from ..tasks import TASKS
from ..tasks.make import make_task
from ..tasks.task import Source
from .arguments import RECIPES


def listing(task: str | None, data: str | None) -> str:
    """The tasks and recipes or, given a task, its models; `data` is the folder of the task's data."""
    if task is None:
        tasks = {name: (inspect.getdoc(found(name, TASKS, "task")) or "").splitlines()[0] for name in TASKS}
        recipes = {
            f"@{path.stem}": path.read_text().splitlines()[0].lstrip("# ") for path in sorted(RECIPES.glob("*.txt"))
        }
        rest = (
            "implicit compare TASK --list lists its models. For a task of your own, name MODULE:FUNCTION, which "
            "returns a Task."
        )
        return "\n".join(["tasks", *_lines(tasks), "recipes", *_lines(recipes), rest])
    made = make_task(task, Source(data))
    contestants = known(task, made)
    if not contestants:
        return none_fits(made)
    models = {
        f"{name}{'' if contestant.usual else ' *'}": f"{contestant.reading}: {contestant.description}"
        for name, contestant in contestants.items()
    }
    rest = "For a network of your own, name MODULE:FUNCTION, which makes one for a task."
    if not all(contestant.usual for contestant in contestants.values()):
        rest = f"* is not part of all: name it. {rest}"
    return "\n".join([f"models of {task}", *_lines(models), rest])


def _lines(words: dict[str, str]) -> list[str]:
    width = max(map(len, words), default=0)
    return [f"  {name:{width}}  {line}" for name, line in words.items()]
