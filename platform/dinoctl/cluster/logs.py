"""Structured logs: one JSON object a line, one line an event."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

from dinoctl.spec.errors import redacted

FIELDS = ("namespace", "job", "attempt", "reason", "seconds")
"""What an event may carry in ``extra``; nothing else is written, so no object with a secret in it slips in."""


class JsonFormatter(logging.Formatter):
    """Message and traceback lose line ends, and passwords that URLs in them hold."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "message": redacted(record.getMessage())}
        line |= {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = redacted("".join(traceback.format_exception(record.exc_info[1])).replace("\n", " | "))
        return json.dumps(line, ensure_ascii=False)


def write_json_logs(level: int = logging.INFO) -> None:
    """All logs of the process go to standard error in this form; libraries speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dinoctl").setLevel(level)
    logging.getLogger("kubernetes").setLevel(logging.ERROR)
