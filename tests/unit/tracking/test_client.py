import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from dinoctl.tracking.client import artifact_root, mlflow_name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("loss/dino", "loss/dino"),
        ("top1@10", "top1_at_10"),
        ("a+b%", "a_b_"),
        ("/abs", "_abs"),
        ("a//b", "a__b"),
        ("../up", "__up"),
        ("", "_"),
        (".", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_that_mlflow_accepts(key: str, name: str) -> None:
    assert mlflow_name(key) == name


@settings(deadline=None)
@given(st.text(alphabet="ab@./_- :é*", max_size=300))
def test_mlflow_itself_accepts_every_name(key: str) -> None:
    _validate_metric_name(mlflow_name(key))
    assert re.fullmatch(r"[\w\-. :/]{1,250}", mlflow_name(key))


def test_artifacts_lie_beside_a_sqlite_database_and_nowhere_for_a_server() -> None:
    assert artifact_root("sqlite:////data/state/mlflow.db") == "file:///data/state/artifacts"
    assert artifact_root("http://localhost:5000") is None
