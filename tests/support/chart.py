"""The chart and the manifests made from it: ``python -m support.chart`` writes what is generated."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from dinoctl.spec.crd import crd_yaml
from support.chart_values import values_schema
from support.kube.tools import TOOLS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "dinoctl"
CI = CHART / "ci"
NAMESPACE = "dinoctl-system"
_HEAD = f"""\
# Made from helm/dinoctl with ci/manifests.yaml (make manifests): the operator for `kubectl apply`. First crd.yaml, then
# this file, after editing the image and the profile in it.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"""
_KEEP = "metadata:\n  annotations: {helm.sh/resource-policy: keep}\n"


class ChartError(ValueError):
    """What Helm said."""


def helm(program: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Helm's output; raises ChartError."""
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    if done.returncode:
        raise ChartError(done.stderr.strip() + done.stdout.strip())
    return done.stdout


def template(program: Path, *values: Path | str, namespace: str = NAMESPACE, name: str = "dinoctl") -> str:
    """What the chart makes; texts are ``--set`` settings."""
    arguments = [part for one in values for part in (("-f", str(one)) if isinstance(one, Path) else ("--set", one))]
    return helm(program, "template", name, str(CHART), "--namespace", namespace, *arguments)


def schema() -> str:
    """values.schema.json."""
    return json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"


def crd_template() -> str:
    """The definition as a template: a part of the release, so that it is upgraded, and kept when that goes."""
    text = crd_yaml()
    assert "{{" not in text, "Helm would take it for its own"
    return "{{- if .Values.crds.install }}\n" + text.replace("metadata:\n", _KEEP, 1) + "{{- end }}\n"


def manifests(program: Path) -> str:
    """manifests/operator.yaml."""
    return _HEAD + template(program, CI / "manifests.yaml")


FROM_MODELS: dict[Path, Callable[[], str]] = {
    CHART / "values.schema.json": schema,
    CHART / "templates" / "crd.yaml": crd_template,
}
MANIFESTS = ROOT / "manifests" / "operator.yaml"


if __name__ == "__main__":
    for path, make in FROM_MODELS.items():
        path.write_text(make(), encoding="utf-8")
    MANIFESTS.write_text(manifests(TOOLS["helm"].path), encoding="utf-8")
