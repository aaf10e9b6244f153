"""The one entry point of every attempt, on a laptop and on a cluster: ``python -m dinoctl.worker --job FILE``.

It runs the stage of an attempt file, under Ray Train when the stage wants a group of workers, and leaves
``outcome.json`` in the attempt's place (``handover.attempts``). SIGTERM and SIGINT ask for a checkpoint and a clean
stop. On a cluster this process, the driver, and its ranks lie on different machines; they share the job's storage.
"""

import argparse
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dinoctl.handover.attempt import PREEMPTED, Attempt
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.capture import accompanied
from dinoctl.handover.claim import claim
from dinoctl.handover.outcome import Outcome
from dinoctl.spec.errors import EnvironmentProblem
from dinoctl.stages import STAGES

if TYPE_CHECKING:
    from dinoctl.training.context import Context
    from dinoctl.training.loop import LoopResult

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done, or on one machine stopped as asked; 1: not done (``outcome.json`` says why); 3: on a cluster,
    the storage can't be reached.
    """
    parser = argparse.ArgumentParser(prog="python -m dinoctl.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--job", type=Path, required=True, help="attempt file (dinoctl.attempt/v1)")
    parser.add_argument("--parent", type=int, default=0, help="stop when this process, the parent, is gone")
    options = parser.parse_args(arguments)
    if options.parent:
        _die_with(options.parent)
    attempt = Attempt.read(options.job)
    if attempt.cluster is not None:
        return _on_cluster(attempt, options.job)
    if not claim(attempt.scratch):
        return 0  # this attempt was started twice; the other process has it
    _stop_on_signals(attempt)
    outcome = _run(attempt, options.job)
    AttemptStore.of(attempt).write_outcome(outcome)
    return 0 if outcome.phase != "failed" else 1


def _on_cluster(attempt: Attempt, path: Path) -> int:
    """As a RayJob's driver. Whatever is not done must not look done: KubeRay takes exit code 0 for success, and a loop
    that stops in time on machines that are taken away returns as cleanly as one that is at its end.
    """
    store = AttemptStore.of(attempt)
    try:
        if not _claimed(store):
            return 1
        store.write_document(attempt)
        alone = not STAGES[attempt.spec.kind].distributed
        with accompanied(attempt, path, "driver", reports=alone):
            _stop_on_signals(attempt)
            outcome = _taken(attempt, _run(attempt, path))
            store.write_outcome(outcome)
    except EnvironmentProblem as error:
        sys.stderr.write(f"error: {error}\n")
        return 3
    return 0 if outcome.phase == "succeeded" else 1


def _claimed(store: AttemptStore) -> bool:
    """Kueue may admit the RayJob of an attempt a second time; what that one has done or left undone stays its own."""
    if store.claim({"pod": os.environ.get("DINOCTL_POD", ""), "node": _node()}):
        return True
    first = (store.claimed() or {}).get("pod", "")
    message = f"started twice: attempt {store.number} was begun by pod {first} already; a new attempt goes on"
    store.refuse(Outcome(store.number, "failed", "Preempted", message))
    sys.stderr.write(f"{message}\n")
    return False


def _taken(attempt: Attempt, outcome: Outcome) -> Outcome:
    """A failure of the machines, once their end was announced, is that end; and so is a stop."""
    if outcome.environment or not _preempted(attempt.stop_file):
        return outcome
    if outcome.phase == "stopped":
        return replace(outcome, cause="Preempted", message=outcome.message or "preempted; what is done so far is kept")
    if outcome.cause != "Infrastructure":
        return outcome
    why = f"preempted before a checkpoint was committed: {outcome.message}"
    return replace(outcome, cause="Preempted", message=why)


def _preempted(stop_file: Path) -> bool:
    return stop_file.exists() and stop_file.read_text().strip() == PREEMPTED


def _node() -> str:
    return os.environ.get("DINOCTL_NODE", "")


def _run(attempt: Attempt, path: Path) -> Outcome:
    from dinoctl.handover.output import read_output
    from dinoctl.handover.storages import check_datasets, check_storages

    try:
        done = read_output(attempt.storage)
        if done is not None and done.spec_hash == attempt.spec_hash:
            return Outcome(attempt.number, "succeeded", step=done.step)  # an earlier attempt died after its proof
        check_storages([attempt.storage_uri], [attempt.spec])
        check_datasets([attempt.spec])
        if STAGES[attempt.spec.kind].distributed:
            return _in_group(attempt, path)
        return _alone(attempt)
    except BaseException as error:
        traceback.print_exc()
        return AttemptStore.of(attempt).failed(error)


def _alone(attempt: Attempt) -> Outcome:
    import torch

    from dinoctl.handover.progress import ProgressFile
    from dinoctl.training.context import ProcessContext

    nodes = [_node()] if attempt.cluster else []
    context = ProcessContext(torch.device("cpu"), attempt.stop_file, sink=ProgressFile(attempt, nodes).write)
    result = STAGES[attempt.spec.kind].load()(attempt, context)
    return Outcome(attempt.number, "stopped" if result.stopped else "succeeded", step=result.step)


def _in_group(attempt: Attempt, path: Path) -> Outcome:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from dinoctl.ray_workers import group_config

    compute = attempt.spec.compute
    use_gpu = compute.gpus_per_worker > 0
    _start_ray(attempt, compute.workers * compute.cpus_per_worker, use_gpu)
    _stop_on_signals(attempt)  # again: Ray has put a handler of its own in place, which would exit at once
    # A pod offers as many of `rank` as it has memory for: CPUs are no measure where a rank has less than one.
    rank = {"rank": 1.0} if attempt.cluster else {}
    try:
        _trainer_class()(
            rank_main,
            train_loop_config={"job": str(path)},
            torch_config=group_config("nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=compute.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": compute.cpus_per_worker, **rank},
            ),
            # Restarts are the lifecycle's: it knows an attempt's cause and counts it; so Ray Train makes none.
            # Nothing is stored through Ray Train, so on a cluster, too, a directory of the driver's machine will do:
            # only driver and controller, which runs beside it, look for the mark that Ray leaves there.
            run_config=RunConfig(
                name=f"{attempt.name}-{attempt.number}",
                storage_path=str(attempt.scratch / "ray"),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # type: ignore[call-arg]
            ),
        ).fit()
    finally:
        ray.shutdown()
    return AttemptStore.of(attempt).result() or Outcome(
        attempt.number, "failed", "Infrastructure", "the workers ended without a result"
    )


def _trainer_class() -> Any:
    """On a Ray of our own nothing is left to clean up after us, and without a dashboard Ray Train's cleaner can't look
    and says so every second. The hook is private; without it the log is longer.
    """
    from ray.train.torch import TorchTrainer

    if os.environ.get("RAY_ADDRESS"):
        return TorchTrainer

    base: Any = TorchTrainer

    class LocalTrainer(base):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()
            return [one for one in made if type(one).__name__ != "PlacementGroupCleanerCallback"]

    return LocalTrainer


def rank_main(config: Mapping[str, Any]) -> None:
    """One rank, inside a Ray Train worker."""
    from ray import train

    path = Path(config["job"])
    attempt, rank = Attempt.read(path), train.get_context().get_world_rank()
    with _beside(attempt, path, rank):
        try:
            _work(attempt, rank)
        except BaseException as error:
            if attempt.cluster is not None:
                traceback.print_exc()  # Ray will say it to the driver; this rank's own log should have it, too
            AttemptStore.of(attempt).write_rank_error(rank, error, _node())
            raise


def _beside(attempt: Attempt, path: Path, rank: int) -> AbstractContextManager[None]:
    """On a cluster a companion tells the world of this rank; on one machine the executor looks for itself."""
    if attempt.cluster is None:
        return nullcontext()
    return accompanied(attempt, path, f"rank-{rank:05d}", reports=rank == 0)


def _work(attempt: Attempt, rank: int) -> None:
    import torch
    from ray import train

    from dinoctl.handover.progress import ProgressFile
    from dinoctl.ray_workers import preemption_notice
    from dinoctl.training.context import ProcessContext

    compute = attempt.spec.compute
    _prepare_environment(compute.gpus_per_worker > 0)
    torch.set_num_threads(compute.threads_per_worker)
    device = train.torch.get_device() if compute.gpus_per_worker else torch.device("cpu")
    context = ProcessContext(device, attempt.stop_file, warned=preemption_notice)
    nodes = context.gather(_node()) if attempt.cluster else []
    if nodes and rank == 0:
        AttemptStore.of(attempt).write_nodes(nodes)
    context.sink = ProgressFile(attempt, nodes).write
    result = STAGES[attempt.spec.kind].load()(attempt, context)
    if rank == 0:
        AttemptStore.of(attempt).write_result(_told(attempt, context, result))


def _told(attempt: Attempt, context: "Context", result: "LoopResult") -> Outcome:
    from dinoctl.training.loop import used

    request = context.stop_request()
    if not result.stopped or request is None:
        return Outcome(attempt.number, "stopped" if result.stopped else "succeeded", step=result.step)
    cause, why = ("Preempted", "preempted") if request.preempted else ("", "stopped as asked")
    message = f"{why}; step {result.step} committed, {used(request)}"
    return Outcome(attempt.number, "stopped", cause, message, result.step)


def _prepare_environment(use_gpu: bool) -> None:
    # Ninja and other tools of the environment must be found by what Ray starts, also without an activated venv.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_gpu else "cpu")


def _start_ray(attempt: Attempt, cpus: float, use_gpu: bool) -> None:
    """Joins the cluster that there is (a RayJob's driver, tests), or starts one on this machine."""
    import ray

    from dinoctl import ray_local

    _prepare_environment(use_gpu)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # of a short grace, Ray's own 5 s are a lot
    if attempt.cluster is not None:
        os.environ.setdefault("RAY_ADDRESS", "auto")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
        return
    cores = max(int(-(-cpus // 1)), os.cpu_count() or 1)  # more ranks than cores is slow, not wrong
    ray_local.start(cores, attempt.stop_file.exists)


def _stop_on_signals(attempt: Attempt) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        attempt.stop_file.touch()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _die_with(parent: int) -> None:
    """Linux sends SIGTERM when the parent dies, however it dies; if it is gone already, stop at once."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
