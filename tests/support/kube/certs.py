"""One certificate authority, one serving certificate and the key that signs ServiceAccount tokens, made by openssl."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def signer(self) -> Path:
        return self.folder / "sa.key"


def make(folder: Path, names: Sequence[str]) -> Certificates:
    """``names`` as openssl writes them: ``IP:127.0.0.1``, ``DNS:localhost``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl(folder, "req", "-x509", *key, "-days", "30", "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.crt")
    _openssl(folder, "req", *key, "-subj", "/CN=test-server", "-keyout", "tls.key", "-out", "tls.csr")
    (folder / "names").write_text(f"subjectAltName={','.join(names)}\n")
    sign = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names")
    _openssl(folder, "x509", "-req", "-in", "tls.csr", *sign, "-out", "tls.crt")
    _openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
    return made


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
