"""Tasks in child processes, results in the order of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from dinoctl.data.children import Child

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    factory: Callable[..., Callable[[Task], Result]], arguments: tuple[Any, ...], tasks: Sequence[Task], workers: int
) -> Generator[tuple[Task, Result]]:
    """Each task with ``factory(*arguments)(task)``, made in up to ``workers`` children, or here when one is enough.

    Close the generator: children that are at work end at once.
    """
    count = min(workers, len(tasks))
    if count <= 1:
        work = factory(*arguments)
        yield from ((task, work(task)) for task in tasks)
        return
    children = [Child(factory, *arguments) for _ in range(count)]
    try:
        for child, task in zip(children, tasks, strict=False):
            child.send(task)
        for number, task in enumerate(tasks):
            child = children[number % count]
            result: Result = child.receive()
            if number + count < len(tasks):
                child.send(tasks[number + count])
            yield task, result
    finally:
        for child in children:
            child.close()
