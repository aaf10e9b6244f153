"""Killing parts of a run at random steps changes nothing: the weights end the same, bit by bit."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.runs import PACK, TRAIN, Runs, trained_on

pytestmark = pytest.mark.timeout(1500)  # real runs, several of them, on whatever machine this is


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    runs = Runs(tmp_path_factory.mktemp("undisturbed"), PACK + TRAIN)
    code, output = runs.run()
    assert code == 0, output + runs.log("train")
    assert len(runs.attempts("train")) == 1
    return runs.export_hash("train")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of those tests whose pipeline begins with training."""
    return tmp_path_factory.mktemp("packed") / "set"


@pytest.fixture
def runs(tmp_path: Path, packed: Path) -> Iterator[Runs]:
    made = Runs(tmp_path, trained_on(packed))
    yield made
    made.close()


def test_killed_rank_driver_and_cli_end_with_the_same_weights(runs: Runs, undisturbed: str) -> None:
    where = random.Random(20261123)  # random steps, the same ones every time
    runs.write(PACK + TRAIN)
    runs.start()

    runs.wait(lambda: runs.step("train") >= where.randint(6, 14), "the first attempt to train")
    runs.ranks("train")[where.randint(0, 1)].kill()
    runs.wait(lambda: len(runs.attempts("train")) >= 2, "a second attempt after a rank was killed")
    runs.wait(lambda: runs.step("train") >= where.randint(18, 26), "the second attempt to train")
    runs.worker("train").kill()
    runs.wait(lambda: len(runs.attempts("train")) >= 3, "a third attempt after the driver was killed")
    runs.wait(lambda: runs.step("train") >= where.randint(30, 38), "the third attempt to train")
    assert runs.process is not None
    runs.process.send_signal(signal.SIGKILL)
    runs.process.communicate()

    code, output = runs.run()
    assert code == 0, output + runs.log("train")
    assert runs.export_hash("train") == undisturbed
    status = runs.status("train")
    assert status.get("failures", {}).get("application", 0) == 0, "a kill is not the program's fault"
    numbers = [attempt["number"] for attempt in status["attempts"]]
    assert numbers == list(range(1, len(numbers) + 1))
    starts = [attempt["startStep"] for attempt in status["attempts"][1:]]
    assert starts == sorted(starts)
    assert all(step >= 5 for step in starts), "no attempt began from nothing"
    assert len(runs.attempts("pack")) == 1, "a finished job is not repeated"


def test_ctrl_c_commits_a_checkpoint_and_the_same_command_goes_on(runs: Runs, undisturbed: str) -> None:
    process = runs.start()
    runs.wait(lambda: runs.step("train") >= 8, "the first attempt to train")
    process.send_signal(signal.SIGINT)
    code, output = runs.finish()
    assert code == 130, output
    head = runs.status("train")["head"]["step"]
    assert head >= 8
    assert runs.attempts("train")[-1].joinpath("outcome.json").read_text().count('"stopped"') == 1

    code, output = runs.run()
    assert code == 0, output + runs.log("train")
    status = runs.status("train")
    assert status["attempts"][-1]["startStep"] == head
    trained = [attempt["cause"] for attempt in status["attempts"] if "trainedAt" in attempt]
    assert trained == ["Stopped", "Succeeded"], runs.story("train")
    charged = sum(status.get("failures", {}).values())  # none, but for starts that this machine was too busy for
    assert charged == len(status["attempts"]) - 2, "Ctrl-C is charged to no budget\n" + runs.story("train")
    assert runs.export_hash("train") == undisturbed

    code, output = runs.run()  # nothing is left to do, and nothing is done
    assert code == 0
    assert len(runs.attempts("train")) == len(status["attempts"])


def test_suspend_and_resume_from_another_terminal(runs: Runs, undisturbed: str) -> None:
    runs.start()
    runs.wait(lambda: runs.step("train") >= 6, "the first attempt to train")
    code, output = runs.call("suspend", "train")
    assert code == 0, output
    code, output = runs.finish()
    assert code == 0, output
    assert "Suspended" in output
    assert runs.call("resume", "train")[0] == 0
    code, output = runs.run()
    assert code == 0, output + runs.log("train")
    assert runs.export_hash("train") == undisturbed


def test_stop_change_the_document_and_restart(runs: Runs, packed: Path) -> None:
    long = trained_on(packed).replace("precision: fp32", "precision: fp32, engine: {name: ddp}")
    short = long.replace("steps: 60", "steps: 8").replace("warmupSteps: 10", "warmupSteps: 2")
    runs.write(long)
    process = runs.start()
    runs.wait(lambda: runs.step("train") >= 4, "the first attempt to train")
    process.send_signal(signal.SIGINT)
    assert runs.finish()[0] == 130
    runs.write(short)
    code, output = runs.run()
    assert code == 2
    assert "spec.pretrain.steps was 60, is 8" in output
    code, output = runs.run("--restart", "train")
    assert code == 0, output + runs.log("train")
    assert runs.status("train")["attempts"][-1]["number"] >= 2
    runs.write(short.replace("workers: 2", "workers: 1"))
    assert runs.run()[0] == 0, "another number of workers is not another result"
