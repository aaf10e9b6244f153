"""Where things lie in a pod. Its root is read-only; what is written is scratch, and gone with the pod."""

from pathlib import Path

ATTEMPT_DIR = "/etc/dinoctl"
ATTEMPT_KEY = "attempt.json"
ATTEMPT_FILE = f"{ATTEMPT_DIR}/{ATTEMPT_KEY}"
STATE = "/var/lib/dinoctl"
SCRATCH = Path(STATE) / "attempt"
SPOOL = Path(STATE) / "spool"
CACHE = f"{STATE}/cache"
CREDENTIALS = "/var/run/secrets/dinoctl"
"""Token, CA and name space for the one thing that workers ask of the API server: reporting progress."""
