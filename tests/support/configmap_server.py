"""One ConfigMap behind TLS and a token, as the API server shows it to a pod: reads, merge patches, versions, refusals.
For tests of what a pod does; that the real server does the same is for tests/kube to say.
"""

import datetime
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class ConfigMap:
    """What the server holds. ``credentials``: directory with token and ca.crt, as a pod has it. ``refuse``: status that
    the next requests get instead of an answer; ``patches``: when, and what progress.json said then.
    """

    path: str
    credentials: Path
    port: int = 0
    data: dict[str, str] = field(default_factory=dict)
    version: int = 1
    refuse: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    patches: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    @property
    def said(self) -> dict[str, Any]:
        return json.loads(self.data.get("progress.json", "{}"))

    def change(self, progress: dict[str, Any]) -> None:
        """By somebody else."""
        with self.lock:
            self.data["progress.json"] = json.dumps(progress)
            self.version += 1

    def answer(self, method: str, path: str, token: str, kind: str, body: bytes) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.requests.append(method)
            if self.refuse:
                return self.refuse.pop(0), {"message": "refused"}
            if token != f"Bearer {(self.credentials / 'token').read_text().strip()}":
                return 401, {"message": "Unauthorized"}
            if path != self.path:
                return 403, {"message": f"{path} is forbidden"}
            if method == "PATCH":
                if kind != "application/merge-patch+json":
                    return 415, {"message": "unsupported"}
                patch = json.loads(body)
                if patch["metadata"]["resourceVersion"] != str(self.version):
                    return 409, {"message": "the object has been modified"}
                self.data |= patch["data"]
                self.version += 1
                self.patches.append((time.time(), self.said))
            return 200, {"metadata": {"resourceVersion": str(self.version)}, "data": self.data}


@contextmanager
def serve(directory: Path, namespace: str, name: str) -> Iterator[ConfigMap]:
    directory.mkdir(parents=True, exist_ok=True)
    key = _certificate(directory)
    (directory / "token").write_text("first-token\n")
    held = ConfigMap(f"/api/v1/namespaces/{namespace}/configmaps/{name}", directory)
    server = _Server(("127.0.0.1", 0), _handler(held))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "ca.crt", key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    held.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed or gives up is not our affair."""


def _handler(held: ConfigMap) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token, kind = self.headers.get("Authorization", ""), self.headers.get("Content-Type", "")
            status, fields = held.answer(self.command, self.path, token, kind, body)
            text = json.dumps(fields).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _certificate(directory: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority (``ca.crt``); returns where its key lies."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory.with_name(directory.name + ".key")
    path.write_bytes(secret)
    return path
