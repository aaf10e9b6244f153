"""Which jobs a command means: those of a state directory, or those of a namespace on a cluster."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinoctl.cli.options import STATE_DEFAULT

if TYPE_CHECKING:
    from dinoctl.cluster.protocol import Api, Object

_TARGETS = ("cluster", "local")
MANAGER = "dinoctl"


@dataclass(frozen=True)
class Where:
    """The cluster's options, as given."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    @property
    def given(self) -> bool:
        """At least one of them."""
        return any(part is not None for part in (self.namespace, self.context, self.kubeconfig))


def on_cluster(cluster: bool | None, state_dir: Path | None, where: Where) -> bool:
    """See ``options``.

    Raises:
        UserError: when options contradict each other, or DINOCTL_TARGET says neither.

    """
    from dinoctl.spec.errors import UserError

    if where.given and cluster is False:
        raise UserError("--local goes without --namespace, --context and --kubeconfig, which are the cluster's")
    if cluster is not None:
        return cluster
    if where.given:
        return True
    if state_dir is not None:
        return False
    target = os.environ.get("DINOCTL_TARGET", "")
    if target and target not in _TARGETS:
        raise UserError(f"DINOCTL_TARGET is {target!r}; set it to cluster or local")
    return target == "cluster" if target else not STATE_DEFAULT.is_dir() and _configured()


def _configured() -> bool:
    places = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(
        Path(place).expanduser().is_file() for place in places if place
    )


@dataclass(frozen=True)
class Cluster:
    """A namespace, and the way to it."""

    api: "Api"
    namespace: str

    def jobs(self) -> "list[Object]":
        """All DinoJobs, parents before children, the oldest first."""
        from dinoctl.cluster.resources import DINOJOBS

        with told():
            found, _ = self.api.list(DINOJOBS, self.namespace)
        return _parents_first(found)

    def job(self, name: str) -> "Object":
        """One.

        Raises:
            UserError: when there is none of that name; says which there are.

        """
        from dinoctl.cluster.errors import NotFound
        from dinoctl.cluster.resources import DINOJOBS
        from dinoctl.spec.errors import UserError

        with told():
            try:
                return self.api.get(DINOJOBS, self.namespace, name)
            except NotFound as error:
                if error.missing_kind:
                    raise
        raise UserError(f"no job {name!r} in namespace {self.namespace}{self._instead(name)}")

    def _instead(self, name: str) -> str:
        import difflib

        names = [job["metadata"]["name"] for job in self.jobs()]
        close = difflib.get_close_matches(name, names, n=1)
        if close:
            return f"; did you mean {close[0]!r}?"
        return (
            f"; jobs there: {', '.join(names[:10])}"
            if names
            else ", which has no jobs; dinoctl submit FILE starts some"
        )


def _parents_first(found: "list[Object]") -> "list[Object]":
    """Each family together."""
    from dinoctl.cluster.documents import parents_of

    oldest = sorted(found, key=lambda job: job["metadata"].get("creationTimestamp") or "")
    by_name = {job["metadata"]["name"]: job for job in oldest}
    placed: dict[str, Object] = {}
    opened: set[str] = set()  # also ends a cycle, which old clients may have made
    rest = list(reversed(by_name))
    while rest:
        opened.add(name := rest[-1])
        above = [one for one in parents_of(by_name[name]) if one in by_name and one not in opened]
        if above:
            rest += reversed(above)
        else:
            placed.setdefault(name, by_name[rest.pop()])
    return list(placed.values())


def open_cluster(where: Where) -> Cluster:
    """By kubeconfig, context or the pod's own account, as kubectl does.

    Raises:
        EnvironmentProblem: when there is none.

    """
    from dinoctl.cluster.connect import connect
    from dinoctl.cluster.retry import Patience

    api = connect(
        where.context, where.kubeconfig, manager=MANAGER, patience=Patience(timeout=15.0, tries=3, total=10.0)
    )
    return Cluster(api, where.namespace or api.namespace)


class told:  # noqa: N801 - reads as a word: with told()
    """Turns the API server's answers into the words of this command line: the user's mistakes exit with 2."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from dinoctl.cluster.errors import Forbidden, Invalid, NotFound
        from dinoctl.spec.errors import EnvironmentProblem, UserError

        if isinstance(error, NotFound) and error.missing_kind:
            text = "this cluster does not know DinoJobs; its administrator has to install dinoctl (helm install)"
            raise EnvironmentProblem(text) from error
        if isinstance(error, Forbidden) and "is forbidden: User" in error.message:
            raise EnvironmentProblem(f"{error}; ask the administrator for it (rbac.users of the chart)") from error
        if isinstance(error, (Invalid, NotFound)):
            raise UserError(str(error)) from error
