"""``doctor`` refuses what it would otherwise leave out."""

from typer.testing import CliRunner

from dinoctl.cli.main import app
from dinoctl.spec.errors import UserError


def test_shards_of_no_dataset() -> None:
    result = CliRunner().invoke(app, ["doctor", "--shards"])
    assert isinstance(result.exception, UserError)
    assert "--shards needs --dataset" in str(result.exception)
    assert result.stdout == ""
