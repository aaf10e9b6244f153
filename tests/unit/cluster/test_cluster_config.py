"""The operator's configuration file and logs."""

import json
import logging

import pytest

from dinoctl.cluster.config import read_config
from dinoctl.cluster.logs import JsonFormatter
from dinoctl.spec.errors import SpecError

GOOD = """\
profiles:
  a100:
    image: registry.example/dinoctl@sha256:{digest}
    storage: s3://bucket/prefix
    trackingUri: http://mlflow:5000
    queue: vision
resync: 5m
""".format(digest="0" * 64)


def test_a_good_file(tmp_path) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text(GOOD)
    config = read_config(file)
    assert config.profiles["a100"].queue == "vision"
    assert config.resync == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("queue:", "que:"), r"operator.yaml:6:5: profiles.a100.que: unknown field; did you mean 'queue'"),
        (GOOD.replace("resync: 5m", "resync: soon"), r":7:1: resync: 'soon' is not a duration"),
        (GOOD.replace("resync", "sync"), r":7:1: sync: unknown field; did you mean 'resync'"),
        (GOOD.replace("@sha256:" + "0" * 64, ":latest"), r":2:3: profiles.a100: image .* has no digest"),
        (GOOD.replace("a100:", "A_100:"), r":2:3: profiles.A_100: must be text like"),
        (GOOD + "defaultProfile: h100\n", r"defaultProfile 'h100' is not among the profiles: a100"),
        (GOOD.replace("http://", "http://me:pw@"), r":5:5: .*trackingUri: http://mlflow:5000 holds a password"),
        ("profiles: {}\n", "profiles: "),
        ("- a\n", "must be a mapping"),
        ("", "must be one document"),
        (f"{GOOD}---\n{GOOD}", "found 2"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_mistakes_name_their_line(tmp_path, text, message) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_config(file)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(SpecError, match=r"none.yaml: cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def _line(**extra: object) -> dict:
    logger = logging.getLogger("dinoctl.test")
    try:
        raise ValueError("two\nlines with http://user:secret@host")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.WARNING, "f.py", 1, "at %s", ("s3://k:s@b",), info, extra=extra)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_log_line_is_one_json_object_with_what_it_concerns() -> None:
    line = _line(job="a", namespace="n", attempt=3, reason="Preempted", body={"data": "token"})
    assert line["message"] == "at s3://b"
    assert (line["level"], line["job"], line["attempt"], line["reason"]) == ("warning", "a", 3, "Preempted")
    assert "secret" not in str(line)
    assert "token" not in str(line)
    assert "ValueError" in line["traceback"]
