"""dinoctl as it is installed on a test cluster: the chart, and the command line of a user."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.kube.cluster import Cluster
from support.kube.tools import TOOLS

ROOT = Path(__file__).parents[3]
_CHART = ROOT / "helm/dinoctl"
_LIMIT_S = 300


class Release:
    """In one namespace; files are written to ``directory``."""

    def __init__(self, kube: Cluster, namespace: str, directory: Path) -> None:
        self.kube, self.namespace, self.directory = kube, namespace, directory

    def install(self, profiles: Mapping[str, Any]) -> None:
        """``profiles``: as in the chart's values; the first is that of jobs that name none. An earlier release leaves
        the definition of the kind, as it does everywhere.
        """
        defined = self.kube.kubectl("get", "crd", "dinojobs.dinoctl.io", "--ignore-not-found", "-o", "name")
        values = {
            "crds": {"install": not defined},
            "image": {"name": self.kube.image, "pullPolicy": "Never"},
            "operator": {
                "config": {"defaultProfile": next(iter(profiles)), "profiles": dict(profiles)},
                "env": [{"name": name, "value": value} for name, value in self.kube.pod_environment.items()],
                "resources": {"requests": {"cpu": "50m"}},
            },
        }
        self._values.write_text(json.dumps(values))
        self.deploy("install")

    @property
    def _values(self) -> Path:
        return self.directory / "values.json"

    def deploy(self, verb: str, *settings: str) -> None:
        """Installs or upgrades to the values of ``install``, changed by ``settings``."""
        self.helm(verb, "dinoctl", str(_CHART), "-f", str(self._values), *settings, "--wait")

    def uninstall(self) -> None:
        self.helm("uninstall", "dinoctl", "--wait")

    def helm(self, *arguments: str) -> str:
        return self._run(str(TOOLS["helm"].path), *arguments, "--namespace", self.namespace)

    def dinoctl(self, *arguments: str) -> str:
        return self._run(str(Path(sys.executable).parent / "dinoctl"), *arguments)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.get("dinojob", name, "-n", self.namespace).get("status", {})
        return found

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=_LIMIT_S)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def _environment(self) -> dict[str, str]:
        paths = {"PYTHONPATH": str(ROOT / "platform"), "HOME": str(self.directory), "COLUMNS": "160"}
        return {**os.environ, **self.kube.environment, **self.kube.s3.environment, **paths, "DINOCTL_TARGET": "cluster"}
