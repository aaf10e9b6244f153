"""The Containerfile is built, and what comes out runs as restricted pods run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.buildah import Image, builder, obstacles
from support.kube.required import give_up

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # packages of Debian and of Python are fetched


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Without extras: a minute or two. Those of workers take the same way, and the cluster's pods run from it."""
    give_up("buildah", *obstacles())
    with builder(tmp_path_factory.mktemp("buildah") / "of-its-own") as engine:
        engine.base("python3", "python3-venv", "ca-certificates")
        yield engine.build(ROOT / "image/Containerfile", ROOT, EXTRAS="")


def test_the_client_works_from_it(client: Image) -> None:
    assert client.run("dinoctl", "--version").stdout.startswith("dinoctl ")
    told = client.run("dinoctl", "validate", "-", given=(ROOT / "jobs/digits.yaml").read_text())
    assert told.returncode == 0, told.stderr
    assert client.run(*client.config["Cmd"]).returncode == 0


def test_it_is_nobody_special_who_can_write_nowhere(client: Image) -> None:
    said = client.run(
        "sh", "-c", "id -un; id -u; pwd; for place in / /opt/dinoctl /etc /tmp; do touch $place/x && echo $place; done"
    )
    assert said.stdout.split() == ["dinoctl", "1000", "/tmp", "/tmp"]
    assert said.stderr.count("Read-only file system") == 3


def test_nothing_is_left_of_building_it(client: Image) -> None:
    assert not (client.root / "src").exists()
    assert not list((client.root / "root").glob(".cache/*"))
    assert not list((client.root / "tmp").iterdir())
    assert client.run("sh", "-c", "command -v g++").returncode == 0
