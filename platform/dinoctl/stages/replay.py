"""``python -m dinoctl.stages.replay``: the very batch of a step of a job once more, on one process.

Nothing of the job is written to: its storage is opened read-only, and no attempt begins. The result is a JSON file.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinoctl.data.batch import Batch
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import CHECKPOINTS, HEADS_CHECKPOINTS, Commit, Ledger
from dinoctl.spec.errors import EnvironmentProblem, UserError
from dinoctl.spec.stages import Distill
from dinoctl.stages import STAGES
from dinoctl.stages.batches import inputs_of, one_batch
from dinoctl.stages.data import Data, open_data
from dinoctl.stages.readonly import ReadOnlyAttempt
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.train import make_engine, schedules_of
from dinoctl.tracking.jsonnum import strict
from dinoctl.tracking.spool import history
from dinoctl.training.context import Context, ProcessContext
from dinoctl.training.engines.base import Engine
from dinoctl.training.learner import Learner
from dinoctl.training.ledger import Checkpoint
from dinoctl.training.loop import LoopResult
from dinoctl.training.matching import FeatureLearner
from dinoctl.training.replay import Replayed, replay
from dinoctl.training.weights import Tensors


@dataclass(frozen=True)
class Request:
    """``step`` counts from 0. ``from_step``: whose weights, 0 the initial ones, None the newest at or before ``step``.
    ``ranks``: how many the job had, None what its document says. ``worst``: how many images are told of.
    """

    attempt: Attempt
    step: int
    from_step: int | None = None
    ranks: int | None = None
    worst: int = 8
    save: Path | None = None


def run(request: Request) -> dict[str, Any]:
    """Replays the step; returns what there is to tell as data that strict JSON can hold (`tracking.jsonnum`).

    Raises:
        UserError: no such step or checkpoint, a job that does not train, or ranks that its batch does not divide among.
        OSError: ``save`` is no folder to write to.
    """
    attempt = _alone(request.attempt)
    kind = attempt.spec.kind
    if not hasattr(attempt.spec.stage, "schedules"):
        raise UserError(f"{attempt.name} is of stage {kind}, which has no training steps to replay")
    _check_alone(attempt)
    _check_warmed(attempt)
    ranks = request.ranks or request.attempt.spec.compute.workers
    if request.save is not None:
        _check_writable(request.save)
    told: dict[str, Any] = {}

    def work(
        attempt: Attempt,
        context: Context,
        recipe: Recipe,
        learner: Learner | FeatureLearner,
        image_size: int,  # noqa: ARG001
        tensors: Tensors | None = None,
    ) -> LoopResult:
        told.update(_work(request, attempt, context, recipe, learner, ranks, tensors))
        return LoopResult(request.step, stopped=True, images_per_s=0.0)

    device = "cuda" if attempt.spec.compute.gpus_per_worker and torch.cuda.is_available() else "cpu"
    stage: Any = STAGES[kind].load()
    stage(attempt, ProcessContext(torch.device(device)), work)
    return told


def _alone(attempt: Attempt) -> ReadOnlyAttempt:
    """The attempt with an engine for one process."""
    engine = attempt.spec.compute.engine.model_copy(update={"name": "ddp"})
    compute = attempt.spec.compute.model_copy(update={"workers": 1, "engine": engine})
    alone = replace(attempt, spec=attempt.spec.model_copy(update={"compute": compute}))
    return ReadOnlyAttempt(**vars(alone))


def _check_alone(attempt: Attempt) -> None:
    stage = attempt.spec.stage
    if isinstance(stage, Distill) and stage.students:
        raise UserError(f"{attempt.name} has several students, whose steps are not done again one by one")


def check_ranks(recipe: Recipe, ranks: int) -> None:
    """Raises UserError, with the numbers that do, when a step's batch does not divide among ``ranks``."""
    batch, least = recipe.global_batch, 2 if recipe.losses.koleo > 0 else 1
    fits = [n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or batch // n >= least)]
    if ranks in fits:
        return
    if batch % ranks:
        wrong = f"{batch} images of a step do not divide among {ranks} ranks"
    else:
        wrong = f"{batch // ranks} image a rank, but KoLeo compares at least 2"
    raise UserError(f"{wrong}; --ranks can be {', '.join(map(str, fits))}")


def _check_writable(folder: Path) -> None:
    """Before the work, not after it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_warmed(attempt: Attempt) -> None:
    """Heads that a distillation has not warmed up yet would be trained, which is no replay."""
    stage = attempt.spec.stage
    if not isinstance(stage, Distill) or stage.headless is None or stage.headless.warmup is None:
        return
    head = Ledger(attempt.storage.child(HEADS_CHECKPOINTS)).head(attempt.spec_hash)
    if head is None or head.step < (stage.headless.warmup.steps or 1):
        raise UserError(f"{attempt.name} has not warmed up its teacher's heads yet; its steps begin after that")


def _work(
    request: Request,
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    learner: Learner | FeatureLearner,
    ranks: int,
    tensors: Tensors | None,
) -> dict[str, Any]:
    step = request.step
    if not 0 <= step < recipe.steps:
        raise UserError(f"{attempt.name} has steps 0 to {recipe.steps - 1}; there is no step {step}")
    check_ranks(recipe, ranks)
    ledger = Ledger(attempt.storage.child(CHECKPOINTS))
    commit = choose(ledger, attempt.spec_hash, step, request.from_step)
    config = learner.student.backbone.config
    engine = make_engine(attempt, context, recipe, learner, config.depth, tensors=tensors)
    if commit is not None:
        engine.load(Checkpoint(ledger.storage, commit).read, commit.step - commit.skipped)
    notes = list(_notes(learner, commit, step, ranks))
    values, data = schedules_of(recipe).at(step), open_data(recipe, attempt.spec.seed)
    if values.refresh_gram:
        engine.copy("teacher.backbone.", "gram.")
    batches = [one_batch(attempt, recipe, data, step, config.patch_size, rank, ranks) for rank in range(ranks)]
    inputs = inputs_of(recipe, engine.device)
    found = replay(learner, engine, batches, inputs=inputs, values=values, step=step, seed=attempt.spec.seed)
    told: dict[str, Any] = strict(_told(request, attempt, found, data, commit, notes, ranks, engine))
    if request.save is not None:
        _save(request.save, told, batches, request.worst)
    return told


def choose(ledger: Ledger, spec_hash: str, step: int, from_step: int | None) -> Commit | None:
    """The checkpoint to replay ``step`` from; None: the initial weights.

    Raises:
        UserError: there is no such one; the message lists those that there are.
    """
    found = {s: c for s in ledger.steps() if (c := ledger.commit(s)) is not None and c.spec_hash == spec_hash}
    have = f"checkpoints there are: {', '.join(map(str, found)) or 'none'}; --from-step 0 takes the initial weights"
    if from_step is not None:
        if from_step not in found and from_step != 0:
            raise UserError(f"no checkpoint of step {from_step} is left; {have}")
        return found.get(from_step)
    before = [s for s in found if s <= step]
    if not before and step > 0:
        raise UserError(f"no checkpoint at or before step {step} is left; {have}")
    return found[max(before)] if before else None


def _notes(learner: Learner | FeatureLearner, commit: Commit | None, step: int, ranks: int) -> Iterator[str]:
    """What a reader has to know to compare this with the job."""
    at = 0 if commit is None else commit.step
    if at != step:
        yield f"the weights are of step {at}, so losses differ from the job's own in step {step}"
    if ranks > 1:
        yield (
            f"{ranks} ranks one after the other: targets are balanced over the whole batch, KoLeo and stochastic depth "
            "are each rank's own, as in the job; sums are in another order"
        )
    if ranks > 1 and isinstance(learner, Learner) and learner.losses.koleo_group is not None:
        learner.losses = learner.losses.model_copy(update={"koleo_group": None})
        yield "losses.koleoGroup spans ranks, which is not repeated here: koleo is of each rank's own images"


def _told(
    request: Request,
    attempt: Attempt,
    found: Replayed,
    data: Data,
    commit: Commit | None,
    notes: list[str],
    ranks: int,
    engine: Engine,
) -> dict[str, Any]:
    return {
        "job": attempt.name,
        "step": request.step,
        "checkpoint": 0 if commit is None else commit.step,
        "weights": "initial" if commit is None else f"checkpoint of step {commit.step}",
        "ranks": ranks,
        "device": str(engine.device),
        "notes": notes,
        "logged_loss": _logged(attempt, request.step),
        **asdict(found),
        "images": [{**image, **_origin(data, int(image["sample"]))} for image in found.images],
    }


def _origin(data: Data, sample: int) -> dict[str, str]:
    """Where a sample comes from: the dataset's URI and the sample's key there."""
    for part in data.parts:
        if sample < len(part):
            return {"dataset": part.uri, "key": part.keys()[sample]}
        sample -= len(part)
    raise ValueError(f"no dataset holds sample {sample}")


def _logged(attempt: Attempt, step: int) -> float | None:
    """The job's own loss in that step, where a metric point covers it alone."""
    points = dict(history(attempt.spool).get("loss", []))
    alone = step == 0 or step in points
    return points.get(step + 1) if alone else None


def _save(folder: Path, told: dict[str, Any], batches: list[Batch], worst: int) -> None:
    """``replay.json``, and the crops of the worst images as PNG."""
    (folder / "replay.json").write_text(json.dumps(told, indent=1, allow_nan=False), encoding="utf-8")
    wanted = [(int(image["rank"]), int(image["sample"])) for image in told["images"][:worst]]
    for rank, sample in wanted or [(0, int(one)) for one in batches[0].sample_ids[:worst]]:
        batch = batches[rank]
        lane, images = batch.sample_ids.tolist().index(sample), len(batch.sample_ids)
        crops = {"global": batch.global_crops, "local": batch.local_crops}
        for name, stack in crops.items():
            for number, crop in enumerate([] if stack is None else stack[lane::images]):
                pixels = np.ascontiguousarray(crop.permute(1, 2, 0).numpy())
                Image.fromarray(pixels).save(folder / f"rank{rank}-sample{sample}-{name}{number}.png")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes as the command's: 2 the user's mistake, 3 the surroundings; the message is on standard error."""
    parser = argparse.ArgumentParser(prog="python -m dinoctl.stages.replay", description=__doc__.splitlines()[0])
    parser.add_argument("--attempt", type=Path, required=True, help="attempt file of the job")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--step", type=int, required=True)
    for name in ("--from-step", "--ranks"):
        parser.add_argument(name, type=int)
    parser.add_argument("--worst", type=int, default=8)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(arguments)
    fields = {name: value for name, value in vars(options).items() if name not in ("attempt", "out")}
    try:
        told = run(Request(Attempt.read(options.attempt), **fields))
    except (UserError, EnvironmentProblem) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UserError) else 3
    except OSError as error:
        if not error.filename:
            raise
        sys.stderr.write(f"{error.filename}: {error.strerror}; mend it, then run the same command again\n")
        return 3
    options.out.write_text(json.dumps(told, allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
