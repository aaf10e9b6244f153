"""How an attempt ended and whose fault it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoctl.data.errors import DataError, NotFoundError, StorageError
from dinoctl.handover.ledger import FencedError
from dinoctl.handover.outcome import Outcome, classify, telling
from dinoctl.spec.errors import EnvironmentProblem, UserError
from dinoctl.training.ledger import CorruptCheckpointError
from dinoctl.training.loop import DivergedError


def foreign(module: str, name: str, base: type[BaseException] = Exception) -> type[BaseException]:
    return type(name, (base,), {"__module__": module})


ActorDied = foreign("ray.exceptions", "ActorDiedError")
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:6049. GLHF!"
TIMED_OUT = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"
ASSERT = "CUDA error: device-side assert triggered"
ECC = "CUDA error: uncorrectable ECC error encountered"
MISUSED = "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes"

CASES = [
    (UserError("bad value"), "Spec", False, "bad value"),
    (DataError("no such split"), "Spec", False, "no such split"),
    (DivergedError("the loss is nan"), "Spec", False, "the loss is nan"),
    (EnvironmentProblem("no port"), "Infrastructure", True, "no port"),
    (StorageError("disk full"), "Infrastructure", True, "disk full"),
    (NotFoundError("no bucket"), "Infrastructure", True, "no bucket"),
    (OSError(5, "Input/output error"), "Infrastructure", False, "OSError: [Errno 5] Input/output error"),
    (ConnectionResetError("reset"), "Infrastructure", False, "ConnectionResetError: reset"),
    (TimeoutError("waited 600 s"), "Infrastructure", False, "TimeoutError: waited 600 s"),
    (MemoryError(), "Infrastructure", False, "MemoryError: MemoryError"),
    (CorruptCheckpointError("step 5 is damaged"), "Infrastructure", False, "CorruptCheckpointError: step 5 is damaged"),
    (FencedError("attempt 1 was replaced"), "Stopped", False, "attempt 1 was replaced"),
    (ActorDied("node lost\nmore"), "Infrastructure", False, "ActorDiedError: node lost"),
    (RuntimeError(GLOO), "Infrastructure", False, f"RuntimeError: {GLOO}"),
    (RuntimeError(TIMED_OUT), "Infrastructure", False, f"RuntimeError: {TIMED_OUT}"),
    (torch.distributed.DistBackendError("NCCL error"), "Infrastructure", False, "DistBackendError: NCCL error"),
    (RuntimeError(ECC), "Infrastructure", False, f"RuntimeError: {ECC}"),
    (RuntimeError("No CUDA GPUs are available"), "Infrastructure", False, "RuntimeError: No CUDA GPUs are available"),
    (
        RuntimeError("CUDA error: device-side assert triggered"),
        "Application",
        False,
        "RuntimeError: CUDA error: device-side assert triggered",
    ),
    (RuntimeError(MISUSED), "Application", False, f"RuntimeError: {MISUSED}"),
    (ValueError("shape"), "Application", False, "ValueError: shape"),
    (KeyError("name"), "Application", False, "KeyError: 'name'"),
    (AssertionError(), "Application", False, "AssertionError: AssertionError"),
    (RuntimeError("first\nsecond"), "Application", False, "RuntimeError: first"),
    (KeyboardInterrupt(), "Stopped", False, "KeyboardInterrupt"),
    (SystemExit(15), "Stopped", False, "15"),
    (
        OSError(28, "No space left on device", "/data/x"),
        "Infrastructure",
        True,
        "no space left (/data/x); free some, then run the same command again",
    ),
]


@pytest.mark.parametrize(
    ("error", "cause", "environment", "message"), CASES, ids=[f"{type(c[0]).__name__}-{i}" for i, c in enumerate(CASES)]
)
def test_whose_fault_it_is(error: BaseException, cause: str, environment: bool, message: str) -> None:
    assert classify(4, error) == Outcome(4, "failed", cause, message, environment=environment)


def test_a_bug_is_told_with_its_place() -> None:
    try:
        torch.zeros(2) + torch.zeros(3)
    except RuntimeError as error:
        line = error.__traceback__.tb_lineno  # type: ignore[union-attr]
        outcome = classify(1, error)
    assert outcome.cause == "Application"
    assert outcome.message.endswith(f" (test_handover_outcome.py:{line})")


@pytest.mark.parametrize(("package", "cause"), [("ray", "Infrastructure"), ("mine", "Application")])
def test_a_bare_exception_out_of_ray_is_no_bug_of_ours(tmp_path: Path, package: str, cause: str) -> None:
    """Ray says so that a node did not start in time."""
    file = tmp_path / package / "node.py"
    code = compile("def start():\n    raise Exception('The current node timed out during startup.')", str(file), "exec")
    space: dict[str, Any] = {}
    exec(code, space)
    with pytest.raises(Exception, match="timed out") as caught:
        space["start"]()
    assert classify(3, caught.value).cause == cause


def test_round_trip() -> None:
    failed = Outcome(1, "failed", "Infrastructure", "disk full", 3, True, "node-7")
    assert Outcome.from_json(failed.to_json()) == failed
    newer = json.dumps({**json.loads(failed.to_json()), "added": "by a newer worker"})
    assert Outcome.from_json(newer) == failed


ECHO = RuntimeError(GLOO)


@pytest.mark.parametrize(
    ("errors", "telling_one"),
    [
        ([ECHO, UserError("bad value"), ECHO], 1),
        ([ECHO, ValueError("a bug")], 1),
        ([ECHO, OSError("node is going down")], 1),
        ([OSError("node is going down"), ECHO], 0),
        ([ECHO, StorageError("disk full")], 1),
        ([UserError("bad value"), StorageError("disk full")], 1),
        ([ValueError("a bug"), UserError("bad value")], 1),
        ([UserError("bad value"), FencedError("replaced")], 1),
        ([ECHO, RuntimeError(GLOO + " later")], 0),
    ],
)
def test_the_telling_error_of_all_ranks(errors: list[BaseException], telling_one: int) -> None:
    outcomes = [classify(4, error, f"node-{rank}") for rank, error in enumerate(errors)]
    assert telling(outcomes) == outcomes[telling_one]
    assert telling([]) is None
