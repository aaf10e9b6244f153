"""The tensors of a whole learner, from those of its networks: what an engine fills a learner of shapes from."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

Tensors = Iterable[tuple[str, Tensor]]


def learner_tensors(
    learner: nn.Module, student: Tensors, teacher: Tensors | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name in the learner, tensor), each as soon as its source gives it.

    The student's average (`teacher.`, or `ema.` beside a frozen teacher) and the Gram teacher start as copies.
    `teacher` are the tensors of a teacher with values of its own.
    """
    names = {name for name, _ in learner.named_parameters()}  # now: an engine takes `ema` away

    def of_teacher(name: str) -> list[str]:
        return [f"teacher.{name}", "gram." + name.removeprefix("backbone.")]

    def all_tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in student:
            yield f"student.{name}", tensor
            copies = [f"ema.{name}", *(of_teacher(name) if teacher is None else [])]
            yield from ((copy, tensor) for copy in copies if copy in names)
        for name, tensor in teacher or ():
            yield from ((target, tensor) for target in of_teacher(name) if target in names)

    return all_tensors()


def tensors_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those of a network that has them already."""
    return ((name, p.detach()) for name, p in network.named_parameters())
