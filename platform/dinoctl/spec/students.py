"""Several students of one teacher: what their sections leave open, and what contradicts itself in them."""

from collections.abc import Iterator, Mapping

from dinoctl.spec.fill import Filler
from dinoctl.spec.job import JobSpec
from dinoctl.spec.recipe import Heads
from dinoctl.spec.shares import divide, step_flops
from dinoctl.spec.stages import Distill, Student
from dinoctl.spec.yamldoc import Path

Finding = tuple[Path, str]


def complete_students(stage: Distill, path: Path, filler: Filler) -> Distill:
    """Every derived field of every student but ``ranks``, and the crops. Heads, optimizer and schedules that a student
    leaves out stay out: they are read from the section.
    """
    students = {
        name: _completed(one, stage, (*path, "students", name), filler) for name, one in (stage.students or {}).items()
    }
    patch_size = next(iter(students.values())).model.patch_size
    crops = filler.crops(stage.crops, (*path, "crops"), patch_size=patch_size)
    return stage.model_copy(update={"students": students, "crops": crops})


def _completed(one: Student, stage: Distill, path: Path, filler: Filler) -> Student:
    model = filler.model(one.model, (*path, "model"), drop_path=0.0)
    rule = "that of the distill section"
    update: dict[str, object] = {"model": model}
    if one.schedules is not None:
        update["schedules"] = filler.inherit(one.schedules, stage.schedules, (*path, "schedules"), rule)
    if one.optimizer is not None:
        update["optimizer"] = filler.inherit(one.optimizer, stage.optimizer, (*path, "optimizer"), rule)
    if one.heads is not None:
        update["heads"] = filler.inherit(one.heads, stage.heads, (*path, "heads"), rule)
    return one.model_copy(update=update)


def student_costs(stage: Distill, teacher_width: int) -> dict[str, float]:
    """Operations of an image in the step of each student, for dividing the workers."""
    return {
        name: step_flops(one.model, one.heads or stage.heads or Heads(), stage.crops, stage.masks, teacher_width)
        for name, one in (stage.students or {}).items()
    }


def check_students(spec: JobSpec, stage: Distill, students: Mapping[str, Student], path: Path) -> Iterator[Finding]:
    """Engine, heads, numbers of workers and patch sizes."""
    workers, batch = spec.compute.workers, stage.global_batch
    if spec.compute.engine.name == "deepspeed":
        text = "deepspeed shards over all workers, but each of several students has its own; use engine: {name: ddp}"
        yield ("spec", "compute", "engine", "name"), text
    if stage.headless is not None and stage.headless.features is not None:
        yield (*path, "headless"), "features are matched by one student at a time; make each student a job of its own"
    if stage.headless is not None and stage.headless.warmup is not None:
        for name, one in students.items():
            if one.heads is not None:
                yield from prototypes(one.heads, stage.heads or Heads(), (*path, "students", name, "heads"))
    if len({one.model.patch_size for one in students.values()}) > 1:
        sizes = ", ".join(f"{name} {one.model.patch_size}" for name, one in students.items())
        yield (*path, "students"), f"patch sizes differ ({sizes}), but all have to be the teacher's"
    if any(one.ranks is None for one in students.values()):
        yield (*path, "students"), _no_division(stage, students, workers)
        return
    for name, one in students.items():
        own = batch // (one.ranks or 1)
        if stage.losses.koleo > 0 and stage.losses.koleo_group is None and own < 2:
            text = f"{own} image a worker, but KoLeo compares at least 2; raise globalBatch, or losses.koleo: 0"
            yield (*path, "students", name), text


def _no_division(stage: Distill, students: Mapping[str, Student], workers: int) -> str:
    given = {name: one.ranks for name, one in students.items() if one.ranks is not None}
    fits = (n for n in range(1, 4 * workers + 64) if divide(dict.fromkeys(students, 1.0), n, stage.global_batch, given))
    near = min(fits, key=lambda n: (abs(n - workers), n), default=None)
    said = f", {', '.join(f'{n} for {name}' for name, n in given.items())}" if given else ""
    better = f"; workers: {near} would do" if near else "; choose ranks that divide globalBatch"
    return (
        f"{workers} workers do not divide among {len(students)} students{said} so that each number divides "
        f"globalBatch {stage.global_batch}{better}"
    )


def prototypes(student: Heads, teacher: Heads, path: Path) -> Iterator[Finding]:
    """Heads that do not pair up with the teacher's."""
    if (student.ibot is None) != (teacher.ibot is None):
        right = "null shares the head, as the teacher does" if teacher.ibot is None else "the teacher has two heads"
        yield (*path, "ibot"), f"must be like the teacher's ({right}); leave heads out to take the teacher's"
    pairs = [("dino", student.dino, teacher.dino), ("ibot", student.ibot, teacher.ibot)]
    for name, mine, other in pairs:
        if mine and other and mine.prototypes != other.prototypes:
            text = f"{mine.prototypes}, but the teacher has {other.prototypes}; leave it out"
            yield (*path, name, "prototypes"), text
