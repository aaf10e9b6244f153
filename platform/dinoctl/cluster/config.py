"""The operator's configuration file, with the line of every mistake in it."""

from pathlib import Path

from pydantic import ValidationError

from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.profile import OperatorConfig
from dinoctl.spec.wording import problem_of
from dinoctl.spec.yamldoc import read_yaml


def read_config(file: Path) -> OperatorConfig:
    """Profiles and settings.

    Raises:
        SpecError: with all problems.

    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SpecError([Problem(str(file), 0, 0, "", f"cannot be read: {reason}")]) from error
    docs = read_yaml(text, str(file))
    if len(docs) != 1:
        message = f"must be one document with profiles, found {len(docs)}"
        raise SpecError([Problem(str(file), 0, 0, "", message)])
    try:
        return OperatorConfig.model_validate(docs[0].data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise SpecError([problem_of(docs[0], detail, OperatorConfig) for detail in error.errors()]) from None
