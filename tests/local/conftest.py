"""Fixtures of the tests of whole runs."""

import signal

from support.fixtures import s3, s3_faults, s3_server  # noqa: F401

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
