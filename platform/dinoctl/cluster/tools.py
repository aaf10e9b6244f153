"""What every round of work on a job is done with."""

from collections.abc import Callable
from dataclasses import dataclass

from dinoctl.cluster.act import Hands
from dinoctl.cluster.events import Events
from dinoctl.cluster.observe import Eyes
from dinoctl.cluster.protocol import Api
from dinoctl.cluster.reports import Reports
from dinoctl.cluster.tracking_child import Tracking
from dinoctl.cluster.view import View
from dinoctl.cluster.wishes import DocumentsOf
from dinoctl.spec.profile import OperatorConfig


@dataclass(frozen=True)
class Tools:
    """What every round works with."""

    api: Api
    view: View
    config: OperatorConfig
    eyes: Eyes
    hands: Hands
    events: Events
    reports: Reports
    tracking: Callable[[str], Tracking]
    documents: DocumentsOf
