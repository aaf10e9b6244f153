"""A Ray that is late, as on a machine in full use, is started again in the same process."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(600)

# Its first node manager is stopped as soon as it is there, so that Ray waits for it in vain.
_PROGRAM = """
import atexit, threading, time
import psutil

def suspend_first():
    while True:
        for child in psutil.Process().children(recursive=True):
            try:
                if child.name() == "raylet":
                    return child.suspend()
            except psutil.NoSuchProcess:
                pass
        time.sleep(0.002)

def names():
    return [child.name() for child in psutil.Process().children(recursive=True)]

atexit.register(lambda: print("at the end", names(), flush=True))
threading.Thread(target=suspend_first, daemon=True).start()

import ray
from dinoctl import ray_local

ray_local.start(2, lambda: {unwanted})
print("answer", ray.get(ray.remote(lambda: 42).remote()))
print("managers", names().count("raylet"))
ray.shutdown()
"""


def run(unwanted: bool) -> subprocess.CompletedProcess[str]:
    program = _PROGRAM.replace("{unwanted}", str(unwanted))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=540)


def test_a_ray_that_is_late_is_started_again_and_nothing_of_the_first_is_left() -> None:
    done = run(unwanted=False)
    assert done.returncode == 0, done.stderr
    assert "answer 42" in done.stdout
    assert "managers 1" in done.stdout
    assert "Ray did not start, and is started again: The current node timed out" in done.stderr


def test_a_ray_that_is_late_is_not_started_again_for_a_job_that_was_stopped_meanwhile() -> None:
    done = run(unwanted=True)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("stopped as asked, before Ray had started")
    assert done.stdout == "at the end []\n"
