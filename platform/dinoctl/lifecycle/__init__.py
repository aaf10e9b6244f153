"""The one state machine behind `dinoctl run` and the operator: pure functions over frozen values.

``decide`` says what to remember and what to do, from what was asked, what was remembered and what is seen. There is
no I/O, no clock and no randomness in here, so every rule is a row in a table test, and any interleaving of crashes
can be tried.
"""

from dinoctl.lifecycle.actions import Action, Decision, Finalize, Promote, StartAttempt, StopAttempt, Wait
from dinoctl.lifecycle.conditions import settled
from dinoctl.lifecycle.decide import decide, restart
from dinoctl.lifecycle.summary import explain, state_of
from dinoctl.lifecycle.types import *  # noqa: F403
from dinoctl.lifecycle.types import __all__ as _types

__all__ = [
    "Action",
    "Decision",
    "Finalize",
    "Promote",
    "StartAttempt",
    "StopAttempt",
    "Wait",
    "decide",
    "explain",
    "restart",
    "settled",
    "state_of",
    *_types,
]
