"""Fixtures of the tests of whole runs."""

from support.fixtures import s3, s3_faults, s3_server  # noqa: F401
