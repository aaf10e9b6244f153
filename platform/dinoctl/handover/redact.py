"""What must not leave a machine: values of secret variables, tokens, passwords in URLs."""

import re
from collections.abc import Iterable, Mapping

_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL")
_PLACE = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL)$")
_SHAPES = re.compile(rb"(?<=//)[^/@\s:]+:[^/@\s]+(?=@)|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+|(?<=Bearer )\S+")
_HIDDEN = b"***"


class Redactor:
    """Takes values of secret variables, tokens, and passwords in URLs out of text. ``names``: variables that are secret
    whatever they are called.
    """

    def __init__(self, environ: Mapping[str, str], names: Iterable[str] = ()) -> None:
        told = {environ.get(name, "") for name in names}
        guessed = {
            value for name, value in environ.items() if _SECRET.search(name.upper()) and not _PLACE.search(name.upper())
        }
        secrets = {value for value in told if len(value) >= 4} | {value for value in guessed if len(value) >= 8}
        longest_first = sorted((re.escape(value.encode()) for value in secrets), key=len, reverse=True)
        self._values = re.compile(b"|".join(longest_first)) if longest_first else None

    def __call__(self, text: bytes) -> bytes:
        """Text with *** in their place."""
        text = _SHAPES.sub(_HIDDEN, text)
        return self._values.sub(_HIDDEN, text) if self._values else text

    def text(self, text: str) -> str:
        """The same for a string."""
        return self(text.encode("utf-8", "replace")).decode()
