"""MLflow in a process of its own: importing it costs seconds and a hundred megabytes, and a server that hangs must not
hold up anything else. The child reads one request from its input, and leaves one line of JSON.

Everything it does may be done twice, so a child that is killed at the time-out has done no harm.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dinoctl.data.storage import open_storage
from dinoctl.handover import promotion
from dinoctl.handover.judgement import Champions
from dinoctl.handover.runs import RunKey
from dinoctl.handover.spools import ship_kept
from dinoctl.spec.errors import EnvironmentProblem, redacted
from dinoctl.spec.job import JobSpec
from dinoctl.spec.resolve import ResolvedJob
from dinoctl.tracking.gate import Champion

_MARK = "dinoctl-tracking:"
_ADDRESS = re.compile(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>")
_CHILDREN = threading.BoundedSemaphore(2)
"""At a time: each holds MLflow, some 200 MB of the operator's memory, and one of its threads."""


class Busy(Exception):
    """As many children work as may; nothing was done. Worth another try in some seconds."""


class TrackingProblem(EnvironmentProblem):
    """The tracking server did not do what was asked. Worth another try, later."""


class Tracking:
    """The tracking server at ``uri``, asked through a child. ``timeout`` in seconds."""

    def __init__(self, uri: str, timeout: float = 120.0) -> None:
        self.uri, self._timeout = uri, timeout

    def champions(self, job: ResolvedJob) -> Champions:
        """See ``handover.promotion``; asks nobody where the gate compares with none."""
        if not promotion.compares(job):
            return {}
        found = self._ask({"do": "champions", "job": _plain(job)})
        return {name: one and Champion(**one) for name, one in found["champions"].items()}

    def promote(self, job: ResolvedJob, storage: str, key: RunKey) -> Mapping[str, Any]:
        """Registers the output: ``promotion`` (fields, None where there is nothing), ``refused`` (why not, where
        another model has become champion since it was judged), ``runId``.
        """
        return self._ask({"do": "promote", "job": _plain(job), "storage": storage, "key": asdict(key)})

    def close(
        self, job: ResolvedJob, storage: str, key: RunKey, *, complete: bool, attempts: tuple[int, int]
    ) -> Mapping[str, Any]:
        """Sends what metrics of the life's attempts (first, last) are left, and ends the run: ``runId``."""
        what = {"do": "close", "job": _plain(job), "storage": storage, "key": asdict(key), "complete": complete}
        return self._ask({**what, "attempts": attempts})

    def _ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raises Busy instead of waiting: a tracking server that hangs must not hold up jobs that don't need it."""
        if not _CHILDREN.acquire(blocking=False):
            raise Busy(self._told("as many processes as may are waiting for it"))
        try:
            return self._asked(request)
        finally:
            _CHILDREN.release()

    def _asked(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        text = json.dumps({**request, "uri": self.uri})
        command = [sys.executable, "-m", "dinoctl.cluster.tracking_child"]
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(text, timeout=self._timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise TrackingProblem(self._told(f"no answer within {self._timeout:g} s")) from None
        return self._answer(output, child.returncode)

    def _answer(self, output: str, code: int) -> Mapping[str, Any]:
        lines = output.strip().splitlines()
        answer = next((line.removeprefix(_MARK) for line in reversed(lines) if line.startswith(_MARK)), None)
        if answer is None:
            raise TrackingProblem(
                self._told(f"the process ended with code {code}: {lines[-1] if lines else 'no word'}")
            )
        fields: Mapping[str, Any] = json.loads(answer)
        if "problem" in fields:
            raise TrackingProblem(self._told(fields["problem"]))
        return fields

    def _told(self, why: str) -> str:
        """The same words for the same trouble, or each try would be news: without the addresses of Python's objects."""
        plain = _ADDRESS.sub(r"\1", why)
        return redacted(f"MLflow at {self.uri} failed: {plain}")


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the child does."""
    uri, job = request["uri"], _job(request["job"])
    if request["do"] == "champions":
        found = promotion.champions(uri, job)
        return {"champions": {name: one and asdict(one) for name, one in found.items()}}
    key, storage = RunKey(**request["key"]), open_storage(request["storage"])
    run_id = key.ensure(uri, {"dinoctl.stage": job.kind, **job.labels})
    if request["do"] == "promote":
        try:
            made = promotion.promote(uri, job, storage, run_id, promotion.champions(uri, job))
        except promotion.RefusedError as error:
            return {"promotion": None, "refused": str(error), "runId": run_id}
        return {"promotion": made, "runId": run_id}
    first, last = request["attempts"]
    ship_kept(uri, run_id, storage, first, last)  # what MLflow never took, because it was down when an attempt ended
    promotion.close(uri, job, storage, run_id, complete=request["complete"])
    return {"runId": run_id}


def main() -> int:
    """Reads a request, leaves an answer or a problem."""
    try:
        fields = answer(json.load(sys.stdin))
    except Exception as error:
        lines = str(error).strip().splitlines()
        fields = {"problem": f"{type(error).__name__}: {lines[0] if lines else 'no explanation'}"}
    sys.stdout.write(f"\n{_MARK}{json.dumps(fields)}\n")
    return 0


def _plain(job: ResolvedJob) -> dict[str, Any]:
    return {**job.to_dict(), "parents": list(job.parents), "specHash": job.spec_hash}


def _job(fields: Mapping[str, Any]) -> ResolvedJob:
    metadata = fields["metadata"]
    spec = JobSpec.model_validate(fields["spec"], by_alias=True, by_name=False)
    parents, labels = tuple(fields["parents"]), metadata.get("labels", {})
    return ResolvedJob(metadata["name"], spec, parents, labels, fields["specHash"], {}, "")


if __name__ == "__main__":
    sys.exit(main())
