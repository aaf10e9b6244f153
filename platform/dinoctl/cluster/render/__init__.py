"""From an attempt to Kubernetes objects: pure, so that the same attempt always becomes the same bytes.

No string of a user reaches a shell line: what runs is fixed, and what it does lies in a mounted file.
"""

from dinoctl.cluster.render.layout import Refused, check
from dinoctl.cluster.render.objects import render
from dinoctl.cluster.render.paths import ATTEMPT_FILE, SCRATCH, SPOOL
from dinoctl.cluster.render.rayjob import RAY_VERSION

__all__ = ["ATTEMPT_FILE", "RAY_VERSION", "SCRATCH", "SPOOL", "Refused", "check", "render"]
