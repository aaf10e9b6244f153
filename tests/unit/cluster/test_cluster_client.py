"""The client against a scripted server on loopback: what is sent, what is tried again, and how trouble is told."""

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dinoctl.cluster import connect as connecting
from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import Conflict, Exists, Forbidden, Gone, Invalid, NotLeading, Throttled, Unavailable
from dinoctl.cluster.resources import CONFIGMAPS, EVENTS, PODS
from dinoctl.cluster.retry import Patience
from dinoctl.spec.errors import EnvironmentProblem

FAST = Patience(timeout=0.5, tries=4, total=10.0, first=0.01, longest=0.05)
Answer = Callable[[BaseHTTPRequestHandler], None] | tuple[int, dict | bytes] | tuple[int, dict | bytes, dict[str, str]]
OK = {"metadata": {"name": "x", "resourceVersion": "7"}}


def status(code: int, reason: str, message: str = "told by the server") -> tuple[int, dict]:
    return code, {"kind": "Status", "code": code, "reason": reason, "message": message}


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.0)


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def half(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"metadata":')
    handler.close_connection = True


class Script:
    """Answers in order, then OK for ever; ``asked`` holds (method, path, headers, body)."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.asked: list[tuple[str, str, dict[str, str], dict | None]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                script.asked.append((self.command, self.path, dict(self.headers), body))
                answer = script.answers.popleft() if script.answers else (200, OK)
                if callable(answer):
                    answer(self)
                    return
                data = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                for name, value in (answer[2] if len(answer) > 2 else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.server.shutdown()
    made.server.server_close()


def write_kubeconfig(path: Path, url: str, **user: object) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user or {"token": "secret-token"}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
            {"name": "two", "context": {"cluster": "c", "user": "u"}},
        ],
        "current-context": "one",
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def counted() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def api(script, tmp_path, counted) -> HttpApi:
    file = write_kubeconfig(tmp_path / "config", script.url)
    return connect(kubeconfig=file, patience=FAST, counter=lambda *what: counted.append(what))


def test_a_request_is_as_the_server_wants_it(script, api, counted) -> None:
    assert api.get(CONFIGMAPS, "n", "x") == OK
    method, path, headers, _ = script.asked[0]
    assert (method, path) == ("GET", "/api/v1/namespaces/n/configmaps/x")
    assert headers["authorization"] == "Bearer secret-token"
    api.apply(CONFIGMAPS, "n", {"metadata": {"name": "x"}, "data": {}}, dry_run=True)
    method, path, headers, body = script.asked[1]
    assert path.endswith("/x?fieldManager=dinoctl-operator&force=true&fieldValidation=Strict&dryRun=All")
    assert (method, headers["Content-Type"]) == ("PATCH", "application/apply-patch+yaml")
    assert body == {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {}}
    api.delete(PODS, "n", "x", grace=0, uid="u1")
    assert script.asked[2][3]["preconditions"] == {"uid": "u1"}
    assert counted == [("get", "configmaps", "200"), ("apply", "configmaps", "200"), ("delete", "pods", "200")]


@pytest.mark.parametrize(
    "trouble", [status(500, "InternalError"), status(503, "x"), status(504, "Timeout"), hang, reset, half]
)
def test_passing_trouble_is_tried_again(script, api, trouble) -> None:
    script.answers.extend([trouble, trouble])
    assert api.patch(CONFIGMAPS, "n", "x", {"data": {"a": "1"}}) == OK
    assert len(script.asked) == 3


@pytest.mark.parametrize("trouble", [status(500, "InternalError"), reset])
def test_tries_are_bounded_and_the_last_trouble_is_told(script, api, trouble) -> None:
    script.answers.extend([trouble] * 10)
    with pytest.raises(Unavailable, match=r"^get ConfigMap n/x: "):
        api.get(CONFIGMAPS, "n", "x")
    assert len(script.asked) == FAST.tries


def test_throttling_waits_as_long_as_the_server_says(script, api) -> None:
    refusal = (*status(429, "TooManyRequests"), {"Retry-After": "1"})
    script.answers.append(refusal)
    begin = time.monotonic()
    api.create(EVENTS, "n", {"metadata": {"generateName": "x-"}})
    assert time.monotonic() - begin >= 1.0
    assert len(script.asked) == 2, "a throttled request was not done, so any may be sent again"
    script.answers.append((*status(429, "TooManyRequests"), {"Retry-After": "3600"}))
    with pytest.raises(Throttled) as caught:
        api.get(CONFIGMAPS, "n", "x")
    assert caught.value.retry_after == 3600


def test_what_would_be_done_twice_is_not_tried_again(script, api) -> None:
    script.answers.append(status(500, "InternalError"))
    with pytest.raises(Unavailable):
        api.create(EVENTS, "n", {"metadata": {"generateName": "x-"}})
    assert len(script.asked) == 1
    script.answers.append(status(500, "InternalError"))
    api.create(EVENTS, "n", {"metadata": {"name": "x"}})
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (status(409, "AlreadyExists"), Exists),
        (status(409, "Conflict"), Conflict),
        (status(422, "Invalid"), Invalid),
        (status(403, "Forbidden"), Forbidden),
        (status(401, "Unauthorized"), Forbidden),
        (status(410, "Expired"), Gone),
    ],
)
def test_refusals_have_a_class_each_and_are_final(script, api, answer, error) -> None:
    script.answers.append(answer)
    with pytest.raises(error) as caught:
        api.patch(CONFIGMAPS, "n", "x", {})
    assert len(script.asked) == 1
    assert "\n" not in str(caught.value)
    assert str(answer[0]) in str(caught.value)


def test_an_answer_from_a_proxy_in_between_is_one_line(script, api) -> None:
    script.answers.append((403, b"<html>\n<body>\nBlocked by policy</body>"))
    with pytest.raises(Forbidden, match=r"^get ConfigMap n/x: <html> <body> Blocked by policy</body> \(403\)$"):
        api.get(CONFIGMAPS, "n", "x")


def test_lists_come_in_pages_and_begin_again_when_they_expire(script, api) -> None:
    def page(names: str, token: str) -> tuple[int, dict]:
        items = [{"metadata": {"name": name, "managedFields": []}} for name in names]
        return 200, {"metadata": {"resourceVersion": "9", "continue": token}, "items": items}

    script.answers.extend([page("ab", "t1"), status(410, "Expired"), page("ab", "t2"), page("c", "")])
    items, version = api.list(CONFIGMAPS, None, labels="a=b", keep=lambda body: {"name": body["metadata"]["name"]})
    assert (items, version) == ([{"name": "a"}, {"name": "b"}, {"name": "c"}], "9")
    assert script.asked[0][1] == "/api/v1/configmaps?labelSelector=a%3Db&limit=250&continue="
    assert script.asked[3][1].endswith("continue=t2")


def test_a_watch_ends_where_it_is_cut_off_and_an_error_in_it_is_raised(script, api) -> None:
    good = json.dumps({"type": "ADDED", "object": OK}).encode() + b"\n"
    script.answers.append((200, good + good[:20]))
    assert list(api.watch(CONFIGMAPS, "n", since="1")) == [("ADDED", OK)]
    gone = json.dumps({"type": "ERROR", "object": status(410, "Expired")[1]}).encode() + b"\n"
    script.answers.append((200, good + gone))
    watch = api.watch(CONFIGMAPS, "n", since="1")
    assert next(watch) == ("ADDED", OK)
    with pytest.raises(Gone):
        next(watch)


def test_a_silent_watch_is_given_up(script, api, monkeypatch) -> None:
    monkeypatch.setattr("dinoctl.cluster.api.SILENCE", 0.2)

    def silent(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.flush()
        time.sleep(1.0)

    script.answers.append(silent)
    with pytest.raises(Unavailable):
        next(api.watch(CONFIGMAPS, "n", since="1"))


def test_logs_are_lines(script, api) -> None:
    script.answers.append((200, "eins\nzwei \xff\nlast".encode("latin-1")))
    assert list(api.logs("n", "p", container="c", tail=3)) == ["eins", "zwei \ufffd", "last"]
    assert script.asked[0][1] == "/api/v1/namespaces/n/pods/p/log?container=c&tailLines=3"


def test_a_fence_is_asked_before_every_try(script, api) -> None:
    asked = []

    def guard() -> None:
        asked.append(len(script.asked))
        if len(asked) == 2:
            raise NotLeading("lease", "lost")

    script.answers.append(status(500, "InternalError"))
    with pytest.raises(NotLeading):
        api.fenced(guard).patch(CONFIGMAPS, "n", "x", {})
    assert len(script.asked) == 1
    api.fenced(guard).get(CONFIGMAPS, "n", "x")
    assert len(asked) == 2


def test_nobody_listens(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    api = connect(kubeconfig=write_kubeconfig(tmp_path / "config", url), patience=FAST)
    with pytest.raises(Unavailable, match=f"^get ConfigMap n/x: the API server at {url} does not answer: .*refused$"):
        api.get(CONFIGMAPS, "n", "x")


def test_contexts_give_the_namespace(script, tmp_path) -> None:
    file = write_kubeconfig(tmp_path / "config", script.url)
    assert connect(kubeconfig=file).namespace == "team"
    assert connect("two", file).namespace == "default"
    with pytest.raises(EnvironmentProblem, match=r"there is no context 'three'; contexts: one, two"):
        connect("three", file)


def test_no_way_to_a_cluster(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(EnvironmentProblem, match=r"no way to a cluster from .*none: .*; set KUBECONFIG") as caught:
        connect(kubeconfig=tmp_path / "none")
    assert "\n" not in str(caught.value)
    (tmp_path / "broken").write_text("a: [")
    with pytest.raises(EnvironmentProblem):
        connect(kubeconfig=tmp_path / "broken")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(EnvironmentProblem):
        connect()


def test_an_exec_plugin_gives_the_token(script, tmp_path) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "fresh"},
    }
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    plugin.chmod(0o755)
    entry = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    api = connect(kubeconfig=write_kubeconfig(tmp_path / "config", script.url, exec=entry), patience=FAST)
    api.get(CONFIGMAPS, "n", "x")
    assert script.asked[0][2]["authorization"] == "Bearer fresh"


def test_in_a_pod_its_own_account(tmp_path, monkeypatch) -> None:
    for name, text in (("token", "pod-token"), ("ca.crt", "ca"), ("namespace", "inside")):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(connecting, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    api = connect(patience=FAST)
    assert api.namespace == "inside"
    assert api.transport.host == "https://10.96.0.1:443"
    assert api.transport._headers()["authorization"].lower() == "bearer pod-token"
