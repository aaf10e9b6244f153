import base64
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dinoctl.data.storage import open_storage
from dinoctl.handover.output import Output, write_output
from dinoctl.lifecycle import (
    Attempt,
    AttemptState,
    Cause,
    Evidence,
    Outcome,
    Progress,
    Promotion,
    Reason,
    Status,
    Waste,
)
from dinoctl.local.report import duration, write_report
from dinoctl.local.report.jobs import log_tail
from dinoctl.local.state import JobState, StateDir
from dinoctl.tracking.spool import Spool

NASTY = "<script>alert('&')</script>"
SPEC = {"seed": 0, "pretrain": {"steps": 40, "heads": {"dino": {"prototypes": 256}}, "data": {"source": NASTY}}}


class Page(HTMLParser):
    """The elements, their attributes and the text of a page; refuses tags that are not closed."""

    VOID = frozenset({"meta", "img", "link", "br", "path", "input"})
    OPTIONAL = frozenset({"th", "tr", "thead", "tbody", "li"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID | self.OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID | self.OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def attempt(number: int, cause: Cause | None = Cause.SUCCEEDED, **fields: object) -> Attempt:
    state = AttemptState.RUNNING if cause is None else AttemptState.ENDED
    times = {"intended_at": 1e9 + number, "started_at": 1e9 + number, "ended_at": None if cause is None else 1e9 + 400}
    return Attempt(number, state, "s", cause=cause, **{**times, **fields})  # type: ignore[arg-type]


def new_job(state: StateDir, name: str, status: Status | None, spec: dict[str, object] | None = None) -> JobState:
    job = state.job(name)
    job.save_document({"spec": spec or SPEC, "file": "jobs/zoo.yaml", "specHash": "s", "parents": []})
    if status is not None:
        job.save_status(status)
    return job


def trained(state: StateDir, name: str = "learn") -> JobState:
    """A job whose second attempt resumed at step 21, finished, passed its gate and was promoted."""
    status = Status(
        "s",
        attempts=(attempt(1, Cause.INFRASTRUCTURE, message="node lost"), attempt(2, start_step=20, end_step=40)),
        began_at=1e9,
        progress=Progress(2, 40, 40, 1e9 + 399, 95.0),
        output=_lifecycle_output(),
        evidence=Evidence(True, "knn_top1 0.861 >= 0.8; far above the untrained backbone", "m", "s", 2),
        promotion=Promotion("teacher", "7", "champion", "s", 2),
        outcome=Outcome(True, Reason.FINISHED),
        waste=Waste(1.0, 12.0, 30.5),
    )
    job = new_job(state, name, status)
    for number, first, last in ((1, 1, 30), (2, 21, 41)):
        with Spool(job.spool(status), attempt=number, resumed_at=first) as spool:
            for step in range(first, last):
                metrics = {"loss": 10 - step / 10, "ibot": 3.0, "koleo": 0.0, "schedule/learning_rate": step / 1e4}
                spool.append(step, metrics | {"schedule/weight_decay": 0.04, "odd_metric": step / 7}, 1e9 + step)
    storage = open_storage(job.storage_uri(status))
    summary = {"images_per_s": 97.4, "knn_top1": 0.861, "knn_top1_k10": 0.861, "random_knn_top1_k10": 0.46}
    write_output(storage, Output("pretrain", "s", 2, 40, "c", summary), None)
    picture = io.BytesIO()
    Image.new("RGBA", (8, 4), (200, 10, 10, 255)).save(picture, format="PNG")
    storage.write("pictures/pca.png", picture.getvalue())
    return job


def _lifecycle_output() -> object:
    from dinoctl.lifecycle import Output as Done

    return Done(40, "s", 2)


def broken(state: StateDir, name: str = "broken") -> JobState:
    message = f"ValueError: {NASTY}"
    status = Status(
        "s",
        attempts=(attempt(1, Cause.APPLICATION, message=message),),
        began_at=1e9,
        outcome=Outcome(False, Reason.APPLICATION_EXHAUSTED, message),
    )
    job = new_job(state, name, status)
    job.scratch(1).mkdir(parents=True)
    lines = [f"line {i}" for i in range(60)] + [f"\x1b[36mred\x1b[0m {NASTY}"]
    (job.scratch(1) / "worker.log").write_text("\n".join(lines))
    return job


def report(state: StateDir, *names: str) -> tuple[str, Page]:
    html = write_report(state, names).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def test_a_finished_job_shows_its_figures_its_gate_and_its_curves(state: StateDir) -> None:
    trained(state)
    html, page = report(state, "learn")
    for text in (
        "zoo",
        "Complete",
        "86.1 %",
        "97",
        "teacher/7",
        "champion",
        "44 s",
        "far above the untrained backbone",
    ):
        assert text in page.text
    for chart in ("Loss and its parts", "Learning rate", "odd_metric"):
        assert chart in page.text
    assert "Entropy" not in page.text  # none was logged
    assert "Constant: weight decay 0.04." in page.text
    assert "node lost" in page.text
    assert "KoLeo" not in page.text  # its weight is 0
    assert "2001-09-09 01:46 UTC" in page.text
    assert html.count("attempt 2</text>") == 3  # every chart marks the step at which attempt 2 went on


def test_the_picture_is_inside_the_file(state: StateDir) -> None:
    trained(state)
    _, page = report(state, "learn")
    (source,) = (attrs["src"] for tag, attrs in page.tags if tag == "img")
    assert source is not None
    assert source.startswith("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size == (8, 4)


def test_a_large_picture_goes_in_smaller(state: StateDir) -> None:
    storage = open_storage(trained(state).storage_uri(None))
    noise = io.BytesIO()
    Image.effect_noise((1000, 1000), 90).convert("RGB").save(noise, format="PNG")
    storage.write("pictures/pca.png", noise.getvalue())
    html, page = report(state, "learn")
    (source,) = (attrs["src"] for tag, attrs in page.tags if tag == "img")
    assert str(source).startswith("data:image/webp;base64,")
    assert len(html) < 4 / 3 * len(noise.getvalue())


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(state: StateDir) -> None:
    trained(state)
    broken(state)
    html, page = report(state, "learn", "broken")
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert str(attrs.get(name) or "#").startswith(("#", "data:"))
    assert not [word for word in ("http:", "https:", "@import", "url(") if word in html]


def test_every_element_is_closed(state: StateDir) -> None:
    trained(state)
    broken(state)
    _, page = report(state, "learn", "broken")
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert ids == ["learn", "broken"]


def test_a_failed_job_shows_its_message_and_the_end_of_its_log(state: StateDir) -> None:
    broken(state)
    _, page = report(state, "broken")
    assert "Failed" in page.text
    assert "line 59" in page.text
    assert "line 21" in page.text
    assert "line 20" not in page.text  # 40 lines, no more
    assert f"\nred {NASTY}" in page.text  # without terminal colours


def test_what_users_and_programs_wrote_is_text_and_never_markup(state: StateDir) -> None:
    broken(state)
    html, page = report(state, "broken")
    assert NASTY not in html
    assert page.text.count(NASTY) == 3  # message, log, spec


def test_jobs_that_wait_run_or_have_left_nothing_yet_have_their_place(state: StateDir) -> None:
    new_job(state, "pending", None)
    new_job(state, "young", Status("s", attempts=(attempt(1, None),), began_at=1e9, progress=Progress(1, 3, 40, 1e9)))
    _, page = report(state, "pending", "young")
    assert "Pending" in page.text
    assert "3 / 40" in page.text


def test_no_jobs_make_a_page_too(state: StateDir) -> None:
    state.root.mkdir()
    _, page = report(state)
    assert "no jobs" in page.text


def test_jobs_come_in_the_order_given(state: StateDir) -> None:
    for name in ("b", "a"):
        new_job(state, name, None)
    _, page = report(state, "b", "a")
    assert [attrs["id"] for _, attrs in page.tags if "id" in attrs] == ["b", "a"]


def test_the_same_directory_gives_the_same_bytes(state: StateDir) -> None:
    trained(state)
    broken(state)
    first, second = (report(state, "learn", "broken")[0] for _ in range(2))
    assert first == second


def test_a_restarted_job_shows_its_present_life_only(state: StateDir) -> None:
    job = trained(state)
    job.save_status(Status("s", first_attempt=3, next_attempt=3, attempts=(attempt(1), attempt(2))))
    _, page = report(state, "learn")
    assert "Loss and its parts" not in page.text
    assert "86.1 %" not in page.text


def test_log_lines_that_repeat_are_said_once(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("start\n" + "".join(f"(pid={i}) waiting\n" for i in range(90)) + "end\n")
    assert log_tail(log) == ["start", "(pid=0) waiting  (x 90)", "end"]
    assert log_tail(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (312, "5 min 12 s"), (25_500, "7 h 05 min"), (266_400, "3 d 02 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_line_stays_light() -> None:
    code = "import json, sys, dinoctl.local.report; json.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "jinja2", "matplotlib", "PIL", "numpy", "mlflow", "ray"}
    assert not heavy & set(json.loads(done.stdout))
