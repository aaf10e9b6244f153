"""Filling a learner tensor by tensor, so that an engine can shard each one before the next is there.

An engine takes a learner whose parameters are shapes alone (on the meta device) and a stream of named whole fp32
tensors. Whatever nobody filled would still be a shape, so a gap can't go unnoticed; it is told by name.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinoctl.training.weights import Tensors

Place = Callable[[str, Tensor], None]
NamedGroups = list[dict[str, Any]]  # optimizer groups whose ``params`` are names


@dataclass(frozen=True)
class Roster:
    """The tensors of a learner by name and role.

    ``averaged``: name of the average -> name of the student's parameter that it follows. ``frozen``: what is neither
    trained nor an average, but changes and has to survive (the Gram teacher). ``fixed``: what never changes, a
    distillation's teacher, and is in no checkpoint.
    """

    shapes: dict[str, tuple[int, ...]]
    trained: tuple[str, ...]
    averaged: dict[str, str]
    frozen: tuple[str, ...]
    fixed: tuple[str, ...]

    @staticmethod
    def of(learner: nn.Module) -> "Roster":
        """Of a learner with its ``ema``, if it has one, still in place."""
        named = dict(learner.named_parameters())
        prefix = "teacher." if getattr(learner, "ema", None) is None else "ema."
        students = [name for name in named if name.startswith("student.")]
        averaged = {prefix + name.removeprefix("student."): name for name in students}
        changing = {*students, *averaged, *(name for name in named if name.startswith("gram."))}
        return Roster(
            shapes={name: tuple(p.shape) for name, p in named.items()},
            trained=tuple(name for name, p in named.items() if p.requires_grad),
            averaged={twin: name for twin, name in averaged.items() if twin in named},
            frozen=tuple(name for name in named if name.startswith("gram.")),
            fixed=tuple(name for name in named if name not in changing),
        )


def named_groups(groups: list[dict[str, Any]], learner: nn.Module) -> NamedGroups:
    """Optimizer groups with names for parameters: filling replaces the parameters themselves."""
    names = {id(p): name for name, p in learner.named_parameters()}
    return [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]


def own_tensors(learner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that a learner has already; each is let go once it has been handed on."""
    held = [(name, p.detach()) for name, p in learner.named_parameters()]
    return (held.pop(0) for _ in range(len(held)))


def blank(learner: nn.Module, device: torch.device) -> None:
    """Leaves the shapes of all parameters; buffers move to ``device``. The average of a distilled student (``ema``)
    takes no part in forward: it stops being a sub-module, so that no engine keeps working copies of it.

    Raises ValueError for a buffer without values: one that is built under ``torch.device("meta")`` has to say
    ``device="cpu"``.
    """
    for module in learner.modules():
        for name, p in module._parameters.items():
            if p is not None and not p.is_meta:
                module._parameters[name] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                raise ValueError(f"buffer {name} of {type(module).__name__} has no values; build it with device='cpu'")
            module._buffers[name] = None if buffer is None else buffer.to(device)
    learner.__dict__["ema"] = learner._modules.pop("ema", None)


def fill(roster: Roster, tensors: Tensors, place: Place) -> None:
    """Hands every tensor to ``place``. Raises ValueError for one that is missing, unknown or of another shape."""
    missing = dict(roster.shapes)
    for name, tensor in tensors:
        shape = missing.pop(name, None)
        if shape != tuple(tensor.shape):
            raise ValueError(f"tensor {name} of shape {tuple(tensor.shape)}: the learner has {shape or 'no such one'}")
        place(name, tensor.detach())
    if missing:
        names = ", ".join(list(missing)[:5])
        raise ValueError(f"nothing fills {len(missing)} of the learner's {len(roster.shapes)} tensors: {names}")


def set_aside(learner: nn.Module, names: Iterable[str]) -> None:
    """The modules that hold the parameters ``names`` go on as plain attributes: what takes all of a module's parameters
    leaves theirs alone. `all_modules` still lists them.
    """
    aside = set(names)
    for root in {name.partition(".")[0] for name in aside}:
        whole = {f"{root}.{name}" for name, _ in learner._modules[root].named_parameters()}  # type: ignore[union-attr]
        if not whole <= aside:
            raise ValueError(f"{root} also has parameters that stay, such as {min(whole - aside)}")
        learner.__dict__[root] = learner._modules.pop(root)


@contextmanager
def apart(learner: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """`set_aside` for a time."""
    modules = dict(learner._modules)
    set_aside(learner, names)
    try:
        yield
    finally:
        for root in modules.keys() - learner._modules.keys():
            del learner.__dict__[root]
        learner._modules.clear()
        learner._modules.update(modules)


def all_modules(learner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module), the learner itself first, with those that are set aside."""
    yield from learner.named_modules()
    for root, module in vars(learner).items():
        if isinstance(module, nn.Module):
            yield from module.named_modules(prefix=root)


def replace(learner: nn.Module, name: str, tensor: Tensor) -> nn.Parameter:
    """Puts a parameter of these values into the place of the shape ``name``."""
    path, _, leaf = name.rpartition(".")
    owner = learner.get_submodule(path)
    parameter = nn.Parameter(tensor, requires_grad=owner.get_parameter(leaf).requires_grad)
    owner._parameters[leaf] = parameter
    return parameter
