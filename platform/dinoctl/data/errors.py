"""The two ways data can fail: the user's mistake, or the environment.

Both carry one clear line: what is wrong, where, and what to do. Callers print it without a traceback.
"""

from dinoctl.spec.errors import EnvironmentProblem, UserError


class DataError(UserError):
    """The user's mistake or broken data: names the path and the fix. Exit code 2."""


class ChangedError(DataError):
    """A dataset is no longer the one that was opened: ends the job, where a single broken sample would be replaced."""


class StorageError(EnvironmentProblem):
    """The environment failed (missing bucket, no credentials, full disk): what was tried, what to do. Exit code 3."""


class NotFoundError(StorageError):
    """The object or file does not exist."""
