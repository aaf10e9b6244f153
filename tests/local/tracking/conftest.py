import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()


@pytest.fixture(scope="package")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for all tests of this folder: making its tables takes two seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'state' / 'mlflow.db'}"


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """Names that no other test in the store has: fresh("model") is model-7."""
    return lambda prefix: f"{prefix}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def empty_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test runs in an empty folder, and MLflow leaves nothing in it."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []
